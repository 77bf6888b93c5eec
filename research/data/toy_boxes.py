"""Made-up images with boxes: what tests and the tiny setting of detection train on."""

from dataclasses import dataclass

import numpy as np

from research.data import boxes
from research.data.boxes import Annotated, BoxedImages


@dataclass(frozen=True)
class ToyBoxes(BoxedImages):
    """Images of 32x32 with one to three bright rectangles: red ones are high, green ones wide."""

    name: str = "toy"
    batch: int = 32
    evaluation_batch: int = 40

    def arrays(self) -> boxes.Arrays:
        """100 images to train on, 40 to test on."""
        rng = np.random.default_rng(0)

        def part(count: int) -> Annotated:
            images = rng.integers(0, 60, (count, 32, 32, 3), np.uint8)
            found: list[tuple[list, list]] = [([], []) for _ in range(count)]
            for image, (own, labels) in zip(images, found, strict=True):
                for _ in range(rng.integers(1, 4)):
                    label, (short, long) = int(rng.integers(2)), rng.integers((5, 9), (8, 15))
                    height, width = (long, short) if label == 0 else (short, long)
                    top, left = rng.integers(0, (32 - height, 32 - width))
                    image[top : top + height, left : left + width, label] = 220
                    own.append(np.array([top, left, top + height, left + width], np.float32) / 32)
                    labels.append(label)
            return Annotated(images, [np.array(own) for own, _ in found], [np.array(labels) for _, labels in found])

        return boxes.Arrays(part(100), part(40), ("high", "wide"))

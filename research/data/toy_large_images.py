"""Made-up encoded images: what the tiny setting of images larger than memory trains on."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from research.data import encoded, images
from research.data.large_images import LargeImages


@dataclass(frozen=True)
class ToyLargeImages(LargeImages):
    """The digits of scikit-learn as PNG files, in colours."""

    name: str = "toy"
    size: int = 16
    resize: int = 18
    scale: tuple[float, float] = (0.5, 1.0)

    def sources(self) -> encoded.Sources:
        """As many as are needed, none of them in a file."""
        data = images.digits(None)
        train, test = (
            EncodedDigits(pixels.repeat(3, -1) // np.array([1, 2, 3], np.uint8), labels)
            for pixels, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
        )
        return encoded.Sources(train, None, test, data.names)


@dataclass(frozen=True)
class EncodedDigits:
    """A source of images u8[examples, height, width, 3] with their labels i32[examples], encoded as they are read."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, places: Sequence[int]) -> list[encoded.Encoded]:
        """See `Source`."""
        png = lambda pixels: cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
        return [encoded.Encoded(png(self.images[place]), int(self.labels[place])) for place in places]

    def name(self, place: int) -> str:
        """See `Source`."""
        return f"digit {place}"

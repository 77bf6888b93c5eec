"""The contenders of `experiments.benchmark records` and `folder`: images/s of reading, decoding and cropping.

Each gives batches of random resized crops in half of the cases flipped, as standardised float32, and does so with as
many workers: threads here, processes in PyTorch.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

WORKERS = 2
"""Threads here, processes there; as many as the machine of the published figures has cores."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

AHEAD = 2 * WORKERS
"""How many batches PyTorch makes ahead, while another contender has its turn."""

PHOTOS, CLASSES = 600, 10
"""How many JPEGs the benchmark makes, and their classes."""


class Loading(NamedTuple):
    """What is read: the height and width of a crop, the size of a batch, and the batches of a round."""

    size: int
    batch: int
    batches: int


LOADING = {"records": Loading(32, 256, 16), "folder": Loading(224, 64, 8)}
"""CIFAR-10's records, and a folder of JPEGs of 300 to 500 pixels."""


def samestep_images(what: str) -> Callable[[], float]:
    """Images/s of `LargeImages`: whole parts are decoded in threads, and standardised on the device."""
    import jax
    import jax.numpy as jnp

    from research.data.feed import prefetched
    from research.data.large_images import LargeImages

    size, batch, batches = LOADING[what]
    name = "cifar10" if what == "records" else str(photos())
    data = LargeImages(name=name, batch=batch, size=size, resize=size, workers=WORKERS)
    feed, mean, std = data.feeds().train, jnp.array(MEAN), jnp.array(STD)
    standardised = jax.jit(lambda images: (images / jnp.float32(255) - mean) / std)

    def dispatches() -> Iterator[Any]:
        with prefetched(feed, 0, 10**9, 1, lambda make, _: make(None)) as found:
            yield from found

    return rounds((standardised(one.inputs[0]) for one in dispatches()), batch, batches, jax.block_until_ready)


def pytorch_images(what: str, how: str) -> Callable[[], float]:
    """Images/s of PyTorch's DataLoader with torchvision's transforms; how: "floats", in which the workers standardise
    each image, as PyTorch's own ImageNet example does, or "bytes", which are standardised by the batch."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    transforms = torchvision_transforms()
    size, batch, batches = LOADING[what]
    crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if how == "floats" else [transforms.PILToTensor()]
    transform = transforms.Compose([*crop, *last])
    data: Any = RecordImages(transform) if what == "records" else FileImages(photos(), transform)
    # One pass after another, without a pause between them.
    sampler = RandomSampler(data, num_samples=10**7)
    loader = DataLoader(data, batch, sampler=sampler, num_workers=WORKERS, drop_last=True)
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (MEAN, STD))
    standardised = lambda images: images if how == "floats" else (images.float().div_(255) - mean) / std
    return rounds((standardised(images) for images, _ in loader), batch, batches, lambda images: images)


def rounds(images: Iterator[Any], batch: int, batches: int, ready: Callable[[Any], Any]) -> Callable[[], float]:
    """Images/s of the next batches of an iterator, once those that were made ahead have been read."""

    def once() -> float:
        for _ in range(AHEAD):
            ready(next(images))
        began = time.perf_counter()
        for _ in range(batches):
            ready(next(images))
        return batches * batch / (time.perf_counter() - began)

    return once


def torchvision_transforms() -> Any:
    """torchvision's transforms.

    Its wheel on PyPI has operators for CUDA. With a PyTorch for CPUs they are missing, and so would be the module,
    which asks for two of them by name; no transform needs them.
    """
    import torch

    if torch.version.cuda is None:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import transforms

    return transforms


class RecordImages:
    """CIFAR-10's training records for PyTorch, which are read and decoded as ours are."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    @cached_property
    def records(self) -> Any:
        """Opened by each process for itself."""
        from research.data import tfds
        from research.data.encoded import Records

        return Records(tfds.builder("cifar10", tfds.directory(None), None), "cifar10", "train", "image", "label")

    def __len__(self) -> int:
        return 50_000

    def __getitems__(self, places: list[int]) -> list[tuple[Any, int]]:
        import cv2

        pixels = lambda data: np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))
        decoded = lambda data: Image.fromarray(pixels(data))
        return [(self.transform(decoded(one.data)), one.label) for one in self.records.read(places)]


class FileImages:
    """A folder of JPEGs for PyTorch, opened as torchvision's ImageFolder does."""

    def __init__(self, path: Path, transform: Any) -> None:
        self.files, self.transform = sorted((path / "train").glob("*/*.jpg")), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        with open(self.files[place], "rb") as file:
            image = Image.open(file).convert("RGB")
        return self.transform(image), int(self.files[place].parent.name)


def photos() -> Path:
    """The folder of JPEGs, made if it isn't there: the streets of CamVid where it is, enlarged to 300 to 500 pixels a
    side, and smooth noise."""
    path = Path(tempfile.gettempdir()) / f"samestep_photos_{PHOTOS}"
    if (path / "done").exists():
        return path
    rng, streets = np.random.default_rng(0), _streets()
    for n in range(PHOTOS):
        width, height = rng.integers(300, 501, 2).tolist()
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        if streets is not None:
            street = Image.fromarray(streets[n % len(streets)]).resize((width, height), Image.Resampling.BICUBIC)
            image = Image.blend(image, street, 0.8)
        grain = rng.normal(0, 4, (height, width, 3))
        pixels = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
        file = path / "train" / str(n % CLASSES) / f"{n:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=90)
    (path / "done").touch()
    return path


def _streets() -> np.ndarray | None:
    from research.core.errors import UserError
    from research.data.masks import Masks

    try:
        return Masks(name="camvid_small").load().train[0]
    except UserError:
        return None


def tree_memory(pid: int) -> int:
    """The bytes of memory that a process and those that it started hold; what several share counts once (Linux)."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            total += int(line.split()[1]) * 1024 if line.startswith("Pss:") else 0
        for task in os.listdir(f"/proc/{pid}/task"):
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            total += sum(tree_memory(int(child)) for child in children)
    except OSError:  # it has ended
        pass
    return total

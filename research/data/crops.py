"""Decoding an image and cropping it, on the host: random parts to train on, the centre to evaluate on."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from research.data.order import hash32

TRIES = 10
"""How often a random part is drawn that may not fit the image, before its centre is taken."""

DRAWS = 2 * TRIES + 3
"""Uniform numbers that a training image needs."""

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""


def uniforms(seed: int, epoch: Any, index: Any, count: int) -> np.ndarray:
    """Numbers in [0, 1), f64[examples, count], by the key (seed, epoch, index) of each example, u32[examples] each."""
    key = hash32(np.array([seed & 0xFFFFFFFF], np.uint32)) ^ np.asarray(epoch).astype(np.uint32)
    key = hash32(hash32(key) ^ np.asarray(index).astype(np.uint32))
    counter = np.arange(1, count + 1, dtype=np.uint32) * np.uint32(0x9E3779B9)
    return hash32(hash32(key[:, None] + counter)) / 2.0**32


def random_resized_crop(
    draws: np.ndarray, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A random part of an image, whose area is uniform in `scale` (fractions of the image's) and whose ratio of width
    to height is log-uniform in `ratio` (Szegedy et al. 2015, arXiv:1409.4842).

    A part that does not fit the image is drawn again, as in torchvision; after `TRIES` of them, the centre is taken
    with the nearest ratio that `ratio` allows.

    draws  f64[2 * TRIES + 2 or more], uniform in [0, 1)
    """
    *tries, x, y = draws[: 2 * TRIES + 2].tolist()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, shape in zip(tries[::2], tries[1::2], strict=True):
        area = (scale[0] + (scale[1] - scale[0]) * area) * width * height
        wider = math.exp((low + (high - low) * shape) / 2)
        w, h = round(math.sqrt(area) * wider), round(math.sqrt(area) / wider)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def training_image(
    data: str | bytes | np.ndarray,
    draws: np.ndarray,
    side: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: bool,
) -> np.ndarray:
    """A random part of an image, resized to u8[side, side, 3], and flipped from left to right in half of the cases.

    A JPEG is decoded at a half, a quarter or an eighth of its size where the part is still as large as the result.

    draws  f64[DRAWS], uniform in [0, 1)
    """
    image = opened(data)
    width, height = image.size
    left, top, right, bottom = random_resized_crop(draws, width, height, scale, ratio)
    image.draft("RGB", (side * width // math.ceil(right - left), side * height // math.ceil(bottom - top)))
    x, y = image.width / width, image.height / height
    box = left * x, top * y, right * x, bottom * y
    # Antialiased. In one step with the crop, it sees the pixels around the part too.
    pixels = np.asarray(colours(image).resize((side, side), Image.Resampling.BILINEAR, box))
    return pixels[:, ::-1] if flip and draws[-1] < 0.5 else pixels


def evaluation_image(data: str | bytes | np.ndarray, shorter: int, side: int) -> np.ndarray:
    """The middle square u8[side, side, 3] of an image whose shorter side is resized to `shorter` pixels."""
    image = opened(data)
    sizes = [shorter * size // min(image.size) for size in image.size]
    left, top = (round((size - side) / 2) for size in sizes)
    whole = colours(image).resize((sizes[0], sizes[1]), Image.Resampling.BILINEAR)
    return np.asarray(whole.crop((left, top, left + side, top + side)))


def opened(data: str | bytes | np.ndarray) -> Image.Image:
    """The image of a file's path, of its bytes, or of pixels; of a JPEG only the header is read."""
    if isinstance(data, bytes) and data[1:4] == b"PNG":
        import cv2

        # Twice as fast as Pillow where images are small. It does not notice damage, but records have checksums.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise OSError("not a PNG file")
        return Image.fromarray(pixels)
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[..., 0] if data.shape[-1] == 1 else data)
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)


def colours(image: Image.Image) -> Image.Image:
    """The image in red, green and blue. Raises OSError where its pixels have no known range."""
    if image.mode.startswith("I;16"):  # Pillow would cut off all above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise OSError(f"pixels of mode {image.mode}")
    return image if image.mode == "RGB" else image.convert("RGB")

"""The quality of restored images beside the originals: PSNR and SSIM."""

import jax
import jax.numpy as jnp
import numpy as np

WINDOW, SIGMA = 11, 1.5
"""The Gaussian window of SSIM: its side in pixels and its standard deviation."""

K1, K2 = 0.01, 0.03
"""The constants of SSIM, for pixels in 0 ... 1."""


def psnr(images: jax.Array, originals: jax.Array) -> jax.Array:
    """The peak signal-to-noise ratio of each image in decibels, f32[batch]; at most 100, for equal images.

    images, originals: f32[batch, height, width, channels] in 0 ... 1
    """
    error = ((images - originals) ** 2).mean((1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def ssim(images: jax.Array, originals: jax.Array) -> jax.Array:
    """The structural similarity of each image, f32[batch], at most 1: the mean over pixels and channels.

    Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment: from error visibility to structural similarity".
    Its window lies inside the image. Where the image is smaller than it, the window has the largest odd side that fits.

    images, originals: f32[batch, height, width, channels] in 0 ... 1
    """
    rows, columns = (jnp.asarray(_windows(size)) for size in images.shape[1:3])

    def local(x: jax.Array) -> jax.Array:
        return jnp.einsum("ah,bw,nhwc->nabc", rows, columns, x, precision="highest")

    x, y = images, originals
    mean_x, mean_y = local(x), local(y)
    variance_x, variance_y = local(x**2) - mean_x**2, local(y**2) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * covariance + K2**2) / (variance_x + variance_y + K2**2)
    return (luminance * structure).mean((1, 2, 3))


def _windows(size: int) -> np.ndarray:
    """The weights f32[places, size] of an axis' pixels in the window at each of its places."""
    side = min(WINDOW, size - 1 + size % 2)
    window = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * SIGMA**2))
    window /= window.sum()
    return np.stack([np.pad(window, (at, size - side - at)) for at in range(size - side + 1)]).astype(np.float32)

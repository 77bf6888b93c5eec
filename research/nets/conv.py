"""Convolution, pooling and batch normalisation, for images laid out [channels, height, width, batch].

That order is for the CPU, where the batch is then what vector units run along, and no layer has to move its data
about. On a GPU or TPU the order in the program is not the one in memory: the compiler chooses that itself.

A convolution's lowering is chosen by the platform it is compiled for, here alone. The CPU's own lowerings flatten
pixels and batch, for which XLA gathers a batch that one program splits over several CPU devices: unflattened they were
8 to 16 % slower on one device.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.core.devices import axis_if_bound

Padding = Literal["SAME", "VALID"]

MOMENTUM = 0.9
"""Of the running batch statistics."""


class Conv(nn.Module):
    """A convolution, square and with one stride.

    Attributes:
        features: output channels
        kernel: its side
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: Padding = "SAME"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[channels, height, width, batch] -> [features, height', width', batch]."""
        shape = (self.kernel, self.kernel, x.shape[0], self.features)
        kernel = self.param("kernel", nn.initializers.variance_scaling(2.0, "fan_out", "normal"), shape)
        y = convolve(x, kernel, self.stride, self.padding)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,))[:, None, None, None]


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167), over the global batch, on all devices."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[channels, height, width, batch] -> the same."""
        return nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, axis=0, axis_name=axis_if_bound())(x)


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of each 2x2 square: [channels, height, width, batch] -> [channels, height // 2, width // 2, batch].

    Where two are equal the gradient is shared between them. By pairs, since the gradient of a maximum over an axis
    divides by the number of maxima, and finds none where XLA rounds a value it computes twice in two ways: NaN.
    """
    channels, height, width, batch = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(channels, height // 2, 2, width // 2, 2, batch)
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def convolve(x: jax.Array, w: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """x [channels, height, width, batch] with w [height, width, channels, features]: [features, ..., ..., batch].

    On the CPU, as matrix products: by Winograd's algorithm for 3x3 kernels in float32, else of patches. Winograd's sums
    cancel, which costs it digits: in bfloat16 it is off by 3 %. XLA's own convolution loses its threads inside a scan
    on the CPU, and is slow under vmap.
    """
    if stride == 1 and w.shape[:2] == (3, 3) and w.shape[2] >= 8 and x.dtype == jnp.float32:
        on_cpu = lambda x, w: _winograd(x, w, padding)
    else:
        on_cpu = lambda x, w: _patches(x, w, stride, padding)
    return lax.platform_dependent(x, w, cpu=on_cpu, default=lambda x, w: _lax(x, w, stride, padding))


def _lax(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("CHWN", "HWIO", "CHWN"))


def _patches(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """The convolution as one matrix product of the kernel with the patches [height * width * channels, pixels]."""
    height, width, channels, features = w.shape
    pads = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], (stride, stride), padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    tall, wide = ((size - side) // stride + 1 for size, side in zip(x.shape[1:3], w.shape[:2], strict=True))
    rows = lambda i: slice(i, i + stride * (tall - 1) + 1, stride)
    columns = lambda j: slice(j, j + stride * (wide - 1) + 1, stride)
    patches = jnp.concatenate([x[:, rows(i), columns(j)] for i in range(height) for j in range(width)])
    y = w.reshape(-1, features).T @ patches.reshape(height * width * channels, -1)
    return y.reshape(features, tall, wide, -1)


def transposed(x: jax.Array, w: jax.Array) -> jax.Array:
    """The transposed convolution of stride 2 that doubles an image: its pixel (y, x) is added to those around (2y, 2x).

    x [channels, height, width, batch] with w [k, k, channels, features], k = 3 or 4, to [features, 2 height, 2 width,
    batch]: tap t of a pixel y goes to 2y + t - 1. On the CPU it is one matrix product, and the taps added up.
    """
    if w.shape[:2] not in ((3, 3), (4, 4)):
        raise ValueError(f"kernels of side 3 or 4 expected, not {w.shape[:2]}")
    return lax.platform_dependent(x, w, cpu=_overlapped, default=_dilated)


def _dilated(x: jax.Array, w: jax.Array) -> jax.Array:
    pads = ((w.shape[0] - 2, 2),) * 2
    dimensions = ("CHWN", "HWIO", "CHWN")
    return lax.conv_general_dilated(x, w[::-1, ::-1], (1, 1), pads, (2, 2), dimension_numbers=dimensions)


def _overlapped(x: jax.Array, w: jax.Array) -> jax.Array:
    kernel, (_, height, width, batch), features = w.shape[0], x.shape, w.shape[3]
    taps = w.transpose(0, 1, 3, 2).reshape(-1, x.shape[0]) @ x.reshape(x.shape[0], -1)
    taps = taps.reshape(kernel, kernel, features, height, width, batch)

    def added(parts: jax.Array, axis: int) -> jax.Array:
        """The taps [kernel, ...], added up along `axis`, which doubles."""
        before = lambda part, n: jnp.pad(part, [(n, 1 - n) if k == axis else (0, 0) for k in range(part.ndim)])
        even = before(parts[0], 0) + before(parts[2], 1)
        odd = before(parts[1], 0) + (before(parts[3], 1) if kernel == 4 else 0)
        both = jnp.stack([even, odd], axis + 1)
        both = both.reshape(*even.shape[:axis], -1, *even.shape[axis + 1 :])
        return lax.slice_in_dim(both, 1, both.shape[axis] - 1, axis=axis)

    return added(added(taps, 2), 2)


# Winograd's F(4x4, 3x3): Lavin & Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv:1509.09308).
# Y = A^T [(G w G^T) * (B^T d B)] A for each tile d of 6x6 pixels, which overlap by 2, and its 4x4 of the output.
_BT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
_G = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    np.float32,
)  # fmt: skip
_AT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32)


@jax.custom_vjp
def _correlate(x: jax.Array, w: jax.Array) -> jax.Array:
    """The 3x3 correlation of x [channels, 4m + 2, 4n + 2, batch] without padding: [features, 4m, 4n, batch]."""
    return _forward(x, w)[0]


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    tiles = _cut(x)
    return _join(_products(_kernel(w), tiles, 0)), (tiles, w)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    tiles, w = saved
    products = _join_transposed(gradient)
    flat = lambda x: x.reshape(6, 6, x.shape[2], -1)
    dw = lax.dot_general(flat(tiles), flat(products), (((3,), (3,)), ((0, 1), (0, 1))))
    dx = _cut_transposed(_products(_kernel(w), products, 1))
    return dx, jnp.einsum("ai,bj,abco->ijco", _G, _G, dw)


def _products(kernel: jax.Array, tiles: jax.Array, transposed: int) -> jax.Array:
    """The 36 matrix products of the kernel [6, 6, channels, features], or its transpose, with tiles [6, 6, c, ...]."""
    flat = tiles.reshape(*tiles.shape[:3], -1)  # so that nothing is laid out anew for the product
    found = lax.dot_general(kernel, flat, (((2 + transposed,), (2,)), ((0, 1), (0, 1))))
    return found.reshape(6, 6, -1, *tiles.shape[3:])


_correlate.defvjp(_forward, _backward)


def _winograd(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    (top, _), (left, _) = pads = lax.padtype_to_pads(x.shape[1:3], (3, 3), (1, 1), padding)
    tall, wide = (size + sum(pad) - 2 for size, pad in zip(x.shape[1:3], pads, strict=True))
    bottom = -(-tall // 4) * 4 + 2 - x.shape[1] - top
    right = -(-wide // 4) * 4 + 2 - x.shape[2] - left
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    return _correlate(x, w)[:, :tall, :wide]


def _kernel(w: jax.Array) -> jax.Array:
    return jnp.einsum("ai,bj,ijco->abco", _G, _G, w)


def _combined(matrix: np.ndarray, parts: list[jax.Array]) -> list[jax.Array]:
    """matrix @ parts, written out: most entries are 0 or small whole numbers."""
    terms = ([float(c) * part for c, part in zip(row, parts, strict=True) if c] for row in matrix)
    return [functools.reduce(jnp.add, row) for row in terms]


def _stack(parts: list[jax.Array], axis: int = 0) -> jax.Array:
    # The barrier keeps XLA from fusing both passes, rows and columns, into one that does the first six times over.
    return lax.optimization_barrier(jnp.stack(parts, axis))


def _cut(x: jax.Array) -> jax.Array:
    """B^T d B of every tile: [channels, 4m + 2, 4n + 2, batch] -> [6, 6, channels, m, n, batch]."""
    tall, wide = x.shape[1] - 2, x.shape[2] - 2
    x = _stack(_combined(_BT, [x[:, i : i + tall - 3 : 4] for i in range(6)]))
    return jnp.stack(_combined(_BT, [x[:, :, :, j : j + wide - 3 : 4] for j in range(6)]), 1)


def _cut_transposed(tiles: jax.Array) -> jax.Array:
    """The adjoint of `_cut`: the tiles, added up where they overlap."""

    def overlapped(parts: list[jax.Array], axis: int) -> jax.Array:
        end = [(0, int(k == axis)) for k in range(parts[0].ndim)]
        start = [(int(k == axis), 0) for k in range(parts[0].ndim)]
        ends = [jnp.pad(part, end) for part in parts[:4]]
        ends[:2] = [a + jnp.pad(b, start) for a, b in zip(ends, parts[4:], strict=False)]
        shape = parts[0].shape
        whole = jnp.stack(ends, axis + 1).reshape(*shape[:axis], 4 * shape[axis] + 4, *shape[axis + 1 :])
        return lax.slice_in_dim(whole, 0, 4 * shape[axis] + 2, axis=axis)

    x = lax.optimization_barrier(overlapped(_combined(_BT.T, [tiles[:, j] for j in range(6)]), 3))
    return overlapped(_combined(_BT.T, list(x)), 1)


def _join(tiles: jax.Array) -> jax.Array:
    """A^T m A of every tile: [6, 6, features, m, n, batch] -> [features, 4m, 4n, batch]."""
    features, tall, wide, batch = tiles.shape[2:]
    x = _stack(_combined(_AT, [tiles[:, j] for j in range(6)]), 4)  # [6, features, m, n, 4, batch]
    x = jnp.stack(_combined(_AT, list(x)), 2)
    return x.reshape(features, 4 * tall, 4 * wide, batch)


def _join_transposed(y: jax.Array) -> jax.Array:
    """The adjoint of `_join`."""
    features, tall, wide, batch = y.shape
    y = y.reshape(features, tall // 4, 4, wide, batch)
    y = _stack(_combined(_AT.T, [y[:, :, i] for i in range(4)]))  # [6, features, m, 4n, batch]
    y = y.reshape(6, features, tall // 4, wide // 4, 4, batch)
    return jnp.stack(_combined(_AT.T, [y[:, :, :, :, j] for j in range(4)]), 1)


def recomputed_statistics(net: Any, params: Any, collections: dict[str, Any], inputs: Any, rng: jax.Array) -> Any:
    """The collections with the batch statistics that `params` have on `inputs`, in place of running means.

    net  a `Network`; rng, keys [batch], as for training
    """
    # Beside means and variances the collection has the singular vectors of spectral normalisation.
    is_moment = lambda path: path[-1].key in ("mean", "var")
    zeroed = lambda path, x: jnp.zeros_like(x) if is_moment(path) else x
    whole = lambda path, x: x / (1 - MOMENTUM) if is_moment(path) else x
    zeros = collections | {"batch_stats": jax.tree.map_with_path(zeroed, collections["batch_stats"])}
    _, moved = net.apply(params, zeros, inputs, rng=rng)
    return collections | {"batch_stats": jax.tree.map_with_path(whole, moved["batch_stats"])}

"""Convolution, pooling and batch normalisation of images [channels, height, width, batch].

This layout is for the CPU: its vector units work along the batch, and no layer has to transpose its input. On a GPU or
TPU the compiler chooses the layout in memory itself.

How a convolution is lowered depends on the platform that it is compiled for, and is decided in this file alone. The
lowerings for the CPU flatten pixels and batch into one axis. Where one program splits the batch over several CPU
devices, XLA gathers it to do so; lowerings that do not flatten were 8 to 16 % slower on one device.
"""

import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.core.devices import axis_if_bound
from research.core.int8 import wide

Padding = Literal["SAME", "VALID"]

FEW_PIXELS = 2048
"""Pixels of a batch, height * width * batch, up to which a CPU convolves by patches. Winograd's algorithm takes twice
as long as patches for 256 pixels, as long for 1,024 and two thirds for 2,048, and it takes longer to compile."""

MOMENTUM = 0.9
"""Decay of the running averages of batch statistics."""


class Conv(nn.Module):
    """A convolution with a square kernel and the same stride along both axes.

    Attributes:
        features: output channels
        kernel_size: height and width of the kernel
        zero: whether the kernel starts from zero, as that of the last layer of a residual branch may
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[channels, height, width, batch] -> [features, height', width', batch]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[0], self.features)
        init = nn.initializers.zeros if self.zero else nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, shape)
        y = self.product(x, kernel)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,))[:, None, None, None]

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution without the bias; of int8, in int32."""
        return convolve(x, kernel, self.stride, self.padding)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167), over the global batch of all devices.

    Attributes:
        momentum: decay of the running averages
        epsilon: number added to the variance
        scale: whether a learned scale follows
        zero: whether the scale starts from zero, as that of the last layer of a residual branch may
    """

    momentum: float = MOMENTUM
    epsilon: float = 1e-5
    scale: bool = True
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[channels, height, width, batch] -> the same."""
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            use_scale=self.scale,
            scale_init=nn.initializers.zeros if self.zero else nn.initializers.ones,
            axis=0,
            axis_name=axis_if_bound(),
        )(x)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018, arXiv:1803.08494): of each image by itself, its statistics in float32.

    Attributes:
        groups: number of groups that the channels form, or their greatest common divisor; None: up to 32 groups of at
            least 4 channels each
    """

    groups: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[channels, height, width, batch] -> the same."""
        channels = len(x)
        if self.groups is None:
            groups = next(n for n in range(max(1, min(32, channels // 4)), 0, -1) if channels % n == 0)
        else:
            groups = math.gcd(self.groups, channels)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        normed = normalise(x.reshape(groups, -1, *x.shape[1:]), (1, 2, 3)).reshape(x.shape)
        return normed * scale[:, None, None, None] + bias[:, None, None, None]


def normalise(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Shift and scale `x` to mean 0 and variance 1 over `axes`, in float32."""
    centred = x.astype(jnp.float32)
    centred -= centred.mean(axes, keepdims=True)
    return (centred * lax.rsqrt((centred**2).mean(axes, keepdims=True) + 1e-5)).astype(x.dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of each 2x2 square: [channels, height, width, batch] -> [channels, height // 2, width // 2, batch].

    Equal maxima share the gradient. It depends on comparisons of the inputs alone: the gradient of `jnp.maximum`
    compares an input with the result, and is lost where XLA computes the input twice and rounds it differently.
    """
    channels, height, width, batch = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(channels, height // 2, 2, width // 2, 2, batch)
    rows = larger(x[:, :, 0], x[:, :, 1])
    return larger(rows[:, :, :, 0], rows[:, :, :, 1])


@jax.custom_jvp
def larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger of each two numbers; its derivative compares the two, not one of them with the result."""
    return jnp.maximum(a, b)


@larger.defjvp
def _larger_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents
    share = jnp.where(a == b, 0.5, a > b).astype(a.dtype)
    return jnp.maximum(a, b), share * da + (1 - share) * db


@functools.partial(jax.jit, static_argnums=(2, 3))  # layers of one shape are traced once
def convolve(x: jax.Array, w: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """Convolve x [channels, height, width, batch] with w [height, width, channels, features].

    Returns [features, height', width', batch]. On the CPU a convolution is lowered to matrix products, since XLA's own
    uses one thread inside a scan and is slow under vmap: by Winograd's algorithm for 3x3 kernels in float32, else by
    patches. Winograd's algorithm transforms the kernel too, which costs more than it saves where pixels are few, and it
    subtracts large numbers: its error in bfloat16 would be 3 %. Of int8 the result is int32, by patches on a GPU too,
    for which XLA's convolutions of int8 are those of a few shapes and layouts.
    """
    if x.dtype == jnp.int8:
        patches = lambda x, w: _patches(x, w, stride, padding)
        return lax.platform_dependent(x, w, cpu=patches, cuda=patches, default=lambda x, w: _lax(x, w, stride, padding))
    pixels = math.prod(x.shape[1:])
    few = isinstance(pixels, int) and pixels <= FEW_PIXELS  # no int: a batch of any size, in an export
    if stride == 1 and w.shape[:2] == (3, 3) and w.shape[2] >= 8 and not few and x.dtype == jnp.float32:
        on_cpu = lambda x, w: _winograd(x, w, padding)
    else:
        on_cpu = lambda x, w: _patches(x, w, stride, padding)
    return lax.platform_dependent(x, w, cpu=on_cpu, default=lambda x, w: _lax(x, w, stride, padding))


def _lax(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    # With few images on a device, the compiler of TPUs v6e runs out of stack where this gradient and that of the norm
    # before it are one fusion. The barrier keeps them apart, on GPUs too.
    if stride > 1:
        x = lax.optimization_barrier(x)
    return lax.conv_general_dilated(
        x, w, (stride, stride), padding, None, None, ("CHWN", "HWIO", "CHWN"), preferred_element_type=wide(x.dtype)
    )


def _patches(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """The convolution as one product of the kernel with patches [height * width * channels, pixels * batch]."""
    height, width, channels, features = w.shape
    pads = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], (stride, stride), padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    out_height, out_width = ((size - k) // stride + 1 for size, k in zip(x.shape[1:3], w.shape[:2], strict=True))
    rows = lambda i: slice(i, i + stride * (out_height - 1) + 1, stride)
    columns = lambda j: slice(j, j + stride * (out_width - 1) + 1, stride)
    patches = jnp.concatenate([x[:, rows(i), columns(j)] for i in range(height) for j in range(width)])
    kernel, patches = w.reshape(-1, features).T, patches.reshape(height * width * channels, -1)
    y = jnp.matmul(kernel, patches, preferred_element_type=wide(x.dtype))
    return y.reshape(features, out_height, out_width, -1)


@jax.jit
def convolve_transposed(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolve x with w, transposed and with stride 2, which doubles the height and width of an image.

    x [channels, height, width, batch], w [k, k, channels, features] with k = 3 or 4 -> [features, 2 * height,
    2 * width, batch]. Row t of the kernel takes row y of the image to row 2 * y + t - 1. On the CPU this is one matrix
    product, whose results are added where they overlap.
    """
    if w.shape[:2] not in ((3, 3), (4, 4)):
        raise ValueError(f"a transposed convolution needs a kernel of 3x3 or 4x4, not {w.shape[:2]}")
    return lax.platform_dependent(x, w, cpu=_overlap_add, default=_lax_transposed)


def _lax_transposed(x: jax.Array, w: jax.Array) -> jax.Array:
    pads = ((w.shape[0] - 2, 2),) * 2
    dimensions = ("CHWN", "HWIO", "CHWN")
    return lax.conv_general_dilated(x, w[::-1, ::-1], (1, 1), pads, (2, 2), dimension_numbers=dimensions)


def _overlap_add(x: jax.Array, w: jax.Array) -> jax.Array:
    kernel_size, (_, height, width, batch), features = w.shape[0], x.shape, w.shape[3]
    taps = w.transpose(0, 1, 3, 2).reshape(-1, x.shape[0]) @ x.reshape(x.shape[0], -1)
    taps = taps.reshape(kernel_size, kernel_size, features, height, width, batch)

    def add(taps: jax.Array, axis: int) -> jax.Array:
        """Add the taps [kernel_size, ...] where they overlap along `axis` of each, whose size doubles."""
        shift = lambda tap, n: jnp.pad(tap, [(n, 1 - n) if k == axis else (0, 0) for k in range(tap.ndim)])
        even = shift(taps[0], 0) + shift(taps[2], 1)
        odd = shift(taps[1], 0) + (shift(taps[3], 1) if kernel_size == 4 else 0)
        interleaved = jnp.stack([even, odd], axis + 1).reshape(*even.shape[:axis], -1, *even.shape[axis + 1 :])
        return lax.slice_in_dim(interleaved, 1, interleaved.shape[axis] - 1, axis=axis)

    return add(add(taps, 2), 2)


# Winograd's F(4x4, 3x3): Lavin & Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv:1509.09308).
# A tile d of 6x6 pixels gives 4x4 pixels of the output, A^T [(G w G^T) * (B^T d B)] A; tiles overlap by 2 pixels.
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
    tiles = _input_transform(x)
    return _output_transform(_products(_filter_transform(w), tiles, 0)), (tiles, w)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    tiles, w = saved
    products = _output_transform_adjoint(gradient)
    flat = lambda x: x.reshape(6, 6, x.shape[2], -1)
    dw = lax.dot_general(flat(tiles), flat(products), (((3,), (3,)), ((0, 1), (0, 1))))
    dx = _input_transform_adjoint(_products(_filter_transform(w), products, 1))
    return dx, jnp.einsum("ai,bj,abco->ijco", _G, _G, dw)


def _products(kernel: jax.Array, tiles: jax.Array, transposed: int) -> jax.Array:
    """The 36 products of the kernel [6, 6, channels, features] (transposed: 0 or 1) and tiles [6, 6, channels, ...]."""
    flat = tiles.reshape(*tiles.shape[:3], -1)  # one axis, so that XLA copies nothing for the product
    products = lax.dot_general(kernel, flat, (((2 + transposed,), (2,)), ((0, 1), (0, 1))))
    return products.reshape(6, 6, -1, *tiles.shape[3:])


_correlate.defvjp(_forward, _backward)


def _winograd(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    (top, _), (left, _) = pads = lax.padtype_to_pads(x.shape[1:3], (3, 3), (1, 1), padding)
    height, width = (size + sum(pad) - 2 for size, pad in zip(x.shape[1:3], pads, strict=True))
    bottom = -(-height // 4) * 4 + 2 - x.shape[1] - top
    right = -(-width // 4) * 4 + 2 - x.shape[2] - left
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    return _correlate(x, w)[:, :height, :width]


def _filter_transform(w: jax.Array) -> jax.Array:
    return jnp.einsum("ai,bj,ijco->abco", _G, _G, w)


def _linear_combinations(matrix: np.ndarray, parts: list[jax.Array]) -> list[jax.Array]:
    """matrix @ parts, as sums of the terms that are not 0: most entries are 0 or small integers."""
    terms = ([float(c) * part for c, part in zip(row, parts, strict=True) if c] for row in matrix)
    return [functools.reduce(jnp.add, row) for row in terms]


def _stack(parts: list[jax.Array], axis: int = 0) -> jax.Array:
    # The barrier keeps XLA from fusing the passes over rows and columns, which would compute the first six times.
    return lax.optimization_barrier(jnp.stack(parts, axis))


def _input_transform(x: jax.Array) -> jax.Array:
    """B^T d B of each tile: [channels, 4m + 2, 4n + 2, batch] -> [6, 6, channels, m, n, batch]."""
    height, width = x.shape[1] - 2, x.shape[2] - 2
    x = _stack(_linear_combinations(_BT, [x[:, i : i + height - 3 : 4] for i in range(6)]))
    return jnp.stack(_linear_combinations(_BT, [x[:, :, :, j : j + width - 3 : 4] for j in range(6)]), 1)


def _input_transform_adjoint(tiles: jax.Array) -> jax.Array:
    """The adjoint of `_input_transform`: tiles are added where they overlap."""

    def overlap_add(parts: list[jax.Array], axis: int) -> jax.Array:
        end = [(0, int(k == axis)) for k in range(parts[0].ndim)]
        start = [(int(k == axis), 0) for k in range(parts[0].ndim)]
        ends = [jnp.pad(part, end) for part in parts[:4]]
        ends[:2] = [a + jnp.pad(b, start) for a, b in zip(ends, parts[4:], strict=False)]
        shape = parts[0].shape
        whole = jnp.stack(ends, axis + 1).reshape(*shape[:axis], 4 * shape[axis] + 4, *shape[axis + 1 :])
        return lax.slice_in_dim(whole, 0, 4 * shape[axis] + 2, axis=axis)

    x = lax.optimization_barrier(overlap_add(_linear_combinations(_BT.T, [tiles[:, j] for j in range(6)]), 3))
    return overlap_add(_linear_combinations(_BT.T, list(x)), 1)


def _output_transform(tiles: jax.Array) -> jax.Array:
    """A^T m A of each tile: [6, 6, features, m, n, batch] -> [features, 4m, 4n, batch]."""
    features, height, width, batch = tiles.shape[2:]
    x = _stack(_linear_combinations(_AT, [tiles[:, j] for j in range(6)]), 4)  # [6, features, m, n, 4, batch]
    x = jnp.stack(_linear_combinations(_AT, list(x)), 2)
    return x.reshape(features, 4 * height, 4 * width, batch)


def _output_transform_adjoint(y: jax.Array) -> jax.Array:
    """The adjoint of `_output_transform`."""
    features, height, width, batch = y.shape
    y = y.reshape(features, height // 4, 4, width, batch)
    y = _stack(_linear_combinations(_AT.T, [y[:, :, i] for i in range(4)]))  # [6, features, m, 4n, batch]
    y = y.reshape(6, features, height // 4, width // 4, 4, batch)
    return jnp.stack(_linear_combinations(_AT.T, [y[:, :, :, :, j] for j in range(4)]), 1)


def recomputed_statistics(net: Any, params: Any, collections: dict[str, Any], inputs: Any, rng: jax.Array) -> Any:
    """The collections with the batch statistics that `params` have on `inputs`, in place of running averages.

    net  a `Network`
    rng  keys [batch], as in training
    """
    # Beside means and variances the collection has the singular vectors of spectral normalisation.
    is_moment = lambda path: path[-1].key in ("mean", "var")
    zeroed = lambda path, x: jnp.zeros_like(x) if is_moment(path) else x
    whole = lambda path, x: x / (1 - MOMENTUM) if is_moment(path) else x
    zeros = collections | {"batch_stats": jax.tree.map_with_path(zeroed, collections["batch_stats"])}
    _, moved = net.apply(params, zeros, inputs, rng=rng)
    return collections | {"batch_stats": jax.tree.map_with_path(whole, moved["batch_stats"])}

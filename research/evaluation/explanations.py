"""Why a trained image classifier decides as it does: maps of the pixels that a class's score depends on.

Each function is pure, and traced inside a compiled program. It reads the classifier, as it is evaluated, as a function
from images to logits; Grad-CAM and attention roll-out look at the Flax modules that this function calls. Of a net that
it calls several times, on several views of an image, they look at the first call.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from research.core.errors import UserError
from research.core.types import Tree
from research.nets.attention import attention_weights

Logits = Callable[[jax.Array], jax.Array]
"""Images f32[batch, height, width, channels] in 0 ... 1 -> logits [batch, classes], each of its image alone."""


def scores(logits: Logits, images: jax.Array, classes: jax.Array) -> jax.Array:
    """The logit of one class of each image, f32[batch]; classes i32[batch]."""
    return jnp.take_along_axis(logits(images), classes[:, None], 1)[:, 0]


def gradients(logits: Logits, images: jax.Array, classes: jax.Array) -> jax.Array:
    """The derivative of each image's score by its own pixels, [batch, height, width, channels]."""
    return jax.grad(lambda x: scores(logits, x, classes).sum())(images)


def saliency(logits: Logits, images: jax.Array, classes: jax.Array) -> jax.Array:
    """The largest absolute derivative over the channels of each pixel, [batch, height, width].

    Simonyan, Vedaldi & Zisserman 2014, "Deep inside convolutional networks" (arXiv:1312.6034), section 3.1.
    """
    return jnp.abs(gradients(logits, images, classes)).max(-1)


def smoothed_saliency(
    logits: Logits, images: jax.Array, classes: jax.Array, keys: jax.Array, samples: int = 16, noise: float = 0.15
) -> jax.Array:
    """`saliency` of the mean derivative over noisy copies of each image, [batch, height, width].

    SmoothGrad: Smilkov, Thorat, Kim, Viégas & Wattenberg 2017 (arXiv:1706.03825).

    keys     [batch], of the noise, one for each image
    samples  number of copies
    noise    standard deviation of the normal noise, in units of the difference of the image's extreme pixels
    """
    spread = noise * (images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True))

    def add(total: jax.Array, sample: jax.Array) -> tuple[jax.Array, None]:
        normal = lambda key: jax.random.normal(jax.random.fold_in(key, sample), images.shape[1:])
        return total + gradients(logits, images + spread * jax.vmap(normal)(keys), classes), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(images), jnp.arange(samples))
    return jnp.abs(total / samples).max(-1)


def integrated_gradients(
    logits: Logits, images: jax.Array, classes: jax.Array, baseline: jax.Array, steps: int = 64
) -> jax.Array:
    """The attribution of each number of the images, [batch, height, width, channels]; they may be negative.

    Sundararajan, Taly & Yan 2017, "Axiomatic attribution for deep networks" (arXiv:1703.01365), equation 1: the
    integral of the derivative on the straight line from the baseline to the image. By completeness, the attributions of
    an image sum to `score_difference`, up to the error of the integral, here by the midpoint rule.

    baseline  an image without what is to be explained, broadcast to `images`
    steps     number of points at which the derivative is taken
    """
    change = images - baseline

    def add(total: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
        return total + gradients(logits, baseline + at * change, classes), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(images), (jnp.arange(steps) + 0.5) / steps)
    return change * total / steps


def score_difference(logits: Logits, images: jax.Array, classes: jax.Array, baseline: jax.Array) -> jax.Array:
    """The score of each image less that of the baseline, f32[batch]."""
    return scores(logits, images, classes) - scores(logits, jnp.broadcast_to(baseline, images.shape), classes)


class Seen(NamedTuple):
    """What a convolutional net computes.

    logits  [batch, classes]
    maps    the outputs of its modules that are feature maps of more than one pixel, [batch, height, width, features]
            each, in the order in which they are computed
    kernel  of the first convolution, [height, width, channels, features]; None where there is no convolution
    """

    logits: jax.Array
    maps: list[jax.Array]
    kernel: jax.Array | None


def seen(logits: Logits, images: jax.Array, change: tuple[int, jax.Array] | None = None) -> Seen:
    """What the net computes of `images`, see `Seen`.

    change  (the place of one of `maps`, an array of its shape that is added to it)

    A convolution is a module with a kernel [height, width, inputs, outputs] whose input is a batch of maps: Flax's own,
    [batch, height, width, channels], or one of `nets/conv.py`'s layout, [channels, height, width, batch].
    """
    maps: list[jax.Array] = []
    kernels: list[jax.Array] = []
    last: list[bool] = []  # whether the layout is Flax's own
    calls = 0

    def record(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal calls
        module = context.module
        calls += not module.path  # the outermost module
        output = call(*arguments, **options)
        if context.method_name != "__call__" or calls > 1:
            return output
        kernel = _kernel(module, arguments)
        if kernel is not None:
            kernels.append(kernel.astype(jnp.float32))
            last.append(isinstance(module, nn.Conv))
        if kernels and getattr(output, "ndim", 0) == 4:
            turned = output if last[-1] else output.transpose(3, 1, 2, 0)
            if len(turned) == len(images) and turned.shape[1] * turned.shape[2] > 1:
                if change is not None and len(maps) == change[0]:
                    turned = turned + change[1].astype(turned.dtype)
                    output = turned if last[-1] else turned.transpose(3, 1, 2, 0)
                maps.append(turned.astype(jnp.float32))
        return output

    with nn.intercept_methods(record):
        outputs = logits(images)
    return Seen(outputs, maps, kernels[0] if kernels else None)


def _kernel(module: nn.Module, arguments: Sequence[Any]) -> jax.Array | None:
    """The kernel of a module that is a convolution of two dimensions, else None."""
    inputs: Any = arguments[0] if arguments else None
    if getattr(inputs, "ndim", 0) != 4 or not module.has_variable("params", "kernel"):
        return None
    kernel: Any = module.get_variable("params", "kernel")
    channels = inputs.shape[-1 if isinstance(module, nn.Conv) else 0]
    return kernel if kernel.ndim == 4 and channels % kernel.shape[2] == 0 else None


def grad_cam(logits: Logits, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Where the last feature maps speak for the class, [batch, height, width], at least 0; the size is the images'.

    Selvaraju, Cogswell, Das, Vedantam, Parikh & Batra 2017, "Grad-CAM" (arXiv:1610.02391), equations 1 and 2. The maps
    are the last output of a module that still is a map of more than one pixel: that of the last convolution, or of the
    normalisation or the residual block that it ends.

    Raises UserError where the net has no convolution.
    """
    maps = jax.eval_shape(lambda x: seen(logits, x).maps, images)
    if not maps:
        raise UserError("the net has no convolution whose feature maps Grad-CAM could weigh")
    place = len(maps) - 1

    def score(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = seen(logits, images, (place, change))
        return jnp.take_along_axis(found.logits, classes[:, None], 1).sum(), found.maps[place]

    slopes, activations = jax.grad(score, has_aux=True)(jnp.zeros(maps[place].shape))
    weights = slopes.mean((1, 2))  # the paper's alpha
    found = nn.relu(jnp.einsum("bhwk,bk->bhw", activations, weights, precision="highest"))
    return jax.image.resize(found, images.shape[:3], "bilinear")


def attention_maps(logits: Logits, images: jax.Array) -> jax.Array:
    """The attention weights of a Transformer's layers, f32[layers, batch, heads, queries, keys].

    They are computed again from the queries and keys that the attention layers sow; the net computes what it always
    does. Raises UserError where no layer sows any.
    """
    return attending(logits, images)[1]


def attending(logits: Logits, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logits, and `attention_maps`. Raises as that does."""
    sown: list[Tree] = []
    inside = False

    def record(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal inside
        if inside or context.module.path:
            return call(*arguments, **options)
        # The outermost call, once more with the collection of what is sown: layers in a scan give theirs no other way.
        module, variables = context.module.unbind()
        inside = True
        try:
            method = getattr(type(module), context.method_name)
            output, collections = module.apply(
                variables, *arguments, **options, method=method, mutable=["intermediates"]
            )
        finally:
            inside = False
        sown.append(collections.get("intermediates", {}))
        return output

    with nn.intercept_methods(record):
        outputs = logits(images)
    flat = flatten_dict(sown[0]) if sown else {}
    pairs = [(flat[path], flat[(*path[:-1], "keys")]) for path in flat if path[-1] == "queries"]
    # Of layers in a scan, a leading axis counts them.
    stacked = lambda x: x if x.ndim == 5 else x[None]
    found = [attention_weights(stacked(q), stacked(k)) for qs, ks in pairs for q, k in zip(qs, ks, strict=True)]
    if not found:
        raise UserError("the net has no attention layers whose weights could be rolled out")
    return outputs, jnp.concatenate(found)


def rollout(weights: jax.Array) -> jax.Array:
    """How much of each input token is in each output token, f32[batch, tokens, tokens]; rows sum to 1.

    Attention roll-out: Abnar & Zuidema 2020, "Quantifying attention flow in Transformers" (arXiv:2005.00928): the
    product over the layers of half the mean weights of the heads and half the residual connection.

    weights  f32[layers, batch, heads, tokens, tokens]
    """
    each = 0.5 * weights.mean(2) + 0.5 * jnp.eye(weights.shape[-1])

    def flow(below: jax.Array, layer: jax.Array) -> tuple[jax.Array, None]:
        return jnp.matmul(layer, below, precision="highest"), None

    return jax.lax.scan(flow, each[0], each[1:])[0]


def attention_rollout(logits: Logits, images: jax.Array) -> jax.Array:
    """The share of each patch in the mean of the tokens that a ViT's last layer reads, [batch, height, width].

    See `rollout`. Raises UserError where the net has no attention, or its tokens are not the patches of the image.
    """
    batch, height, width, _ = images.shape
    shares = rollout(attention_maps(logits, images)).mean(1)
    side = round((height * width / shares.shape[1]) ** 0.5)
    grid = height // side, width // side
    if grid[0] * grid[1] != shares.shape[1]:
        raise UserError(f"the net's {shares.shape[1]} tokens are not square patches of images of {height}x{width}")
    return shares.reshape(batch, *grid).repeat(side, 1).repeat(side, 2)


class Deletion(NamedTuple):
    """What is left of a prediction as pixels are removed.

    right        bool[shares, batch], whether the class has the largest logit
    probability  f32[shares, batch], of the class
    """

    right: jax.Array
    probability: jax.Array


def deletion(
    logits: Logits,
    images: jax.Array,
    classes: jax.Array,
    importance: jax.Array,
    baseline: jax.Array,
    shares: Sequence[float],
) -> Deletion:
    """The predictions of images whose most important pixels are those of the baseline (Petsiuk, Das & Saenko 2018,
    "RISE", arXiv:1806.07421, section 4).

    A faithful map makes them fall sooner than a random one. Of equally important pixels, the first in a row are removed
    first.

    classes     i32[batch]
    importance  [batch, height, width]
    baseline    broadcast to `images`
    shares      the shares of the pixels that are removed, each from 0 to 1
    """
    pixels = importance[0].size
    order = jnp.argsort(-importance.reshape(len(importance), -1), stable=True)
    rank = jnp.argsort(order).reshape(importance.shape)

    def after(count: jax.Array) -> Deletion:
        outputs = logits(jnp.where((rank < count)[..., None], baseline, images))
        probability = jnp.take_along_axis(jax.nn.softmax(outputs), classes[:, None], 1)[:, 0]
        return Deletion(outputs.argmax(-1) == classes, probability)

    return jax.lax.map(after, jnp.array([round(share * pixels) for share in shares]))

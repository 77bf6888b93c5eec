"""Attacks on image classifiers: within a small distance of each image, the pixels by which the loss is largest.

An attack is a pure function of one key for each example, traced inside a compiled step. The classifier is read as it is
evaluated, with its running batch statistics.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.core.errors import between
from research.core.state import example_keys, fold_name

Loss = Callable[[jax.Array], jax.Array]
"""Images f32[batch, height, width, channels] in 0 ... 1 -> f32[batch], each that of its image alone."""


def margin_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The largest other logit less that of the label, f32[batch], of logits [batch, classes] and labels i32[batch].

    It is what Andriushchenko et al. raise. The cross-entropy is rounded to 0 where a classifier is very sure, and a
    search by its values would find nothing there.
    """
    of_label = jax.nn.one_hot(labels, logits.shape[-1]) > 0
    return jnp.where(of_label, -jnp.inf, logits).max(-1) - jnp.where(of_label, logits, -jnp.inf).max(-1)


@dataclass(frozen=True)
class Attack:
    """Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083) on the loss, within a box around each image.

    Attributes:
        steps: number of steps; 0: no attack
        radius: largest change of a pixel, whose range is 0 ... 1
        step_size: change of a pixel in one step; None: 2.5 times the radius, divided by the number of steps
    """

    steps: int = 0
    radius: float = 0.3
    step_size: float | None = None

    def __post_init__(self) -> None:
        between(self, "adversarial", 0, math.inf, "steps", "radius", "step_size")


def projected_gradient(
    attack: Attack, loss: Loss, images: jax.Array, keys: jax.Array, radius: jax.Array | float | None = None
) -> jax.Array:
    """Images within the radius of `images` f32[batch, height, width, channels] and in 0 ... 1: Madry et al., section 2.

    keys    [batch], of the random start in the box, one for each image
    radius  takes the place of the attack's own; the size of a step is scaled with it
    """
    radius = attack.radius if radius is None else radius
    step_size = 2.5 * attack.radius / max(attack.steps, 1) if attack.step_size is None else attack.step_size
    alpha = step_size * (radius / jnp.maximum(attack.radius, 1e-12))
    project = lambda x: jnp.clip(jnp.clip(x, images - radius, images + radius), 0, 1)

    def ascend(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        gradient = jax.grad(lambda x: loss(x).sum())(x)
        return project(x + alpha * jnp.sign(gradient)), None

    start = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], minval=-1, maxval=1))(keys)
    return jax.lax.scan(ascend, project(images + radius * start), None, length=attack.steps)[0]


def square_search(radius: jax.Array | float, queries: int, loss: Loss, images: jax.Array, keys: jax.Array) -> jax.Array:
    """The same by values of the loss alone, without its gradient: a random search over squares of pixels.

    Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 and 2, with their schedule of the squares' size. It shows
    whether gradients are masked: it should find no more than `projected_gradient` does.

    queries  evaluations of the loss, after the first
    """
    _, height, width, channels = images.shape
    shifted = lambda delta: jnp.clip(images + delta, 0, 1)
    signs = lambda key, shape: radius * jax.random.rademacher(key, shape, jnp.float32)
    # Their start: each column of each channel is moved by the radius, up or down.
    start = jax.vmap(lambda key: jnp.broadcast_to(signs(key, (1, width, channels)), (height, width, channels)))(keys)

    def propose(found: tuple[jax.Array, jax.Array], query: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        delta, value = found
        # The share of the pixels that a square has: 0.8, halved at these of 10,000 queries.
        halvings = jnp.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
        share = 0.8 / 2 ** (query * 10_000 / queries > halvings).sum()
        side = jnp.maximum(1, jnp.round(jnp.sqrt(share * height * width))).astype(jnp.int32)
        side = jnp.minimum(side, min(height, width))

        def square(key: jax.Array, delta: jax.Array) -> jax.Array:
            at, sign = jax.random.split(jax.random.fold_in(key, query))
            top, left = jnp.floor(jax.random.uniform(at, (2,)) * (jnp.array([height, width]) - side + 1))
            rows, columns = jnp.arange(height), jnp.arange(width)
            inside = ((rows >= top) & (rows < top + side))[:, None] & ((columns >= left) & (columns < left + side))
            return jnp.where(inside[..., None], signs(sign, (1, 1, channels)), delta)

        proposed = jax.vmap(square)(keys, delta)
        other = loss(shifted(proposed))
        better = other > value
        return (jnp.where(better[:, None, None, None], proposed, delta), jnp.where(better, other, value)), None

    (delta, _), _ = jax.lax.scan(propose, (start, loss(shifted(start))), jnp.arange(queries))
    return shifted(delta)


def strongest(
    attack: Attack,
    loss: Loss,
    right: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    index: jax.Array,
    restarts: int,
    radius: jax.Array | float | None = None,
) -> jax.Array:
    """Whether the classifier is right about each image, and after each of so many `projected_gradient` attacks on it,
    bool[batch].

    right  images -> whether the classifier is right about each, bool[batch]
    index  i32[batch], of the images, by which the random starts are drawn
    """

    def once(stands: jax.Array, restart: jax.Array) -> tuple[jax.Array, None]:
        keys = example_keys(fold_name(jax.random.key(restart), "attack"), index)
        return stands & right(projected_gradient(attack, loss, images, keys, radius)), None

    return jax.lax.scan(once, right(images), jnp.arange(restarts))[0]

"""Mixup and CutMix: each training image with a part of another one, and the labels of both.

Images change places within pairs of neighbours in the batch, which is shuffled. So no device needs the images of
another one, and what becomes of an image hangs on the two keys of the pair alone.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.core.errors import UserError
from research.core.losses import Criterion
from research.core.metrics import Mean, Metrics


class Mixed(NamedTuple):
    """The targets of mixed images.

    labels  i32[batch], of the images
    others  i32[batch], of what was mixed in
    share   f32[batch], of the image that is its own, in 0 ... 1
    """

    labels: Any
    others: Any
    share: Any


@dataclass(frozen=True)
class Mixing:
    """How each training image is mixed with its neighbour in the batch; off by default. With both, half of each.

    Attributes:
        mixup: the images' pixels are averaged, with a weight drawn from Beta(mixup, mixup) (Zhang et al. 2018,
            arXiv:1710.09412); None: they are not
        cutmix: a rectangle of the other image replaces that of the image, the share of whose area is drawn from
            Beta(cutmix, cutmix) before it is cut off at the edges (Yun et al. 2019, arXiv:1905.04899); None: none does
    """

    mixup: float | None = None
    cutmix: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"mixing.{name} must be more than 0, or None for none, not {value}")

    @property
    def on(self) -> bool:
        """Whether images are mixed at all."""
        return self.mixup is not None or self.cutmix is not None


def mixed(config: Mixing, keys: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Mixed]:
    """Mixes each image with its neighbour: of rows 0 and 1, 2 and 3, ...

    keys    [batch], an even number, by the global index of the examples
    images  f32[batch, height, width, channels]; the result has the same shape
    labels  i32[batch]
    """
    neighbours = lambda x: x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
    others = neighbours(images), neighbours(labels)
    images, share = jax.vmap(lambda *one: _mix(config, *one))(keys, images, others[0])
    return images, Mixed(labels, others[1], share)


def _mix(config: Mixing, key: jax.Array, image: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An image with a part of another one, [height, width, channels] each, and the share that is its own."""
    which, keys = jax.random.uniform(key), [jax.random.fold_in(key, n) for n in range(2)]
    found = []
    if config.mixup is not None:
        share = jax.random.beta(keys[0], config.mixup, config.mixup)
        found.append((share * image + (1 - share) * other, share))
    if config.cutmix is not None:
        kept, place = jax.random.split(keys[1])
        inside = rectangle(place, jax.random.beta(kept, config.cutmix, config.cutmix), *image.shape[:2])
        found.append((jnp.where(inside[..., None], other, image), 1 - inside.mean()))
    if len(found) == 1:
        return found[0]
    return jax.tree.map(lambda a, b: jnp.where(which < 0.5, a, b), *found)


def rectangle(key: jax.Array, kept: jax.Array, height: int, width: int) -> jax.Array:
    """Whether each pixel is in a rectangle of the image's proportions, bool[height, width].

    Its centre is anywhere in the image, and it is cut off at the edges.

    kept  f32[], the share of the image's area that the whole rectangle leaves
    """
    centre = jax.random.uniform(key, (2,))
    inside = []
    for at, size in zip(centre, (height, width), strict=True):
        side, middle = jnp.floor(size * jnp.sqrt(1 - kept)), jnp.floor(at * size)
        first = middle - jnp.floor(side / 2)
        pixels = jnp.arange(size)
        inside.append((pixels >= first) & (pixels < first + side))
    return inside[0][:, None] & inside[1][None, :]


def criterion_of_mixed(criterion: Criterion) -> Criterion:
    """`criterion`, a mean over the examples, of targets `Mixed`: by its share, that of either label.

    Of a cross-entropy, this is the one against the mixed labels. The accuracy is weighted likewise.
    """

    def of_mixed(outputs: Any, targets: Mixed, mask: jax.Array) -> tuple[Mean, Metrics]:
        own = criterion(outputs, targets.labels, mask * targets.share)
        other = criterion(outputs, targets.others, mask * (1 - targets.share))
        return jax.tree.map(jnp.add, own, other)

    return of_mixed

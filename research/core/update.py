"""`update`, the one verb: a gradient step of one name's parameters.

    state, aux = update(state, "discriminator", loss, batch)

It owns microbatches, merging over devices, the loss scale of float16, clipping, the optimizer, batch statistics,
averaged weights and the log lines. A learner's step is its paper's algorithm box in calls of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
import tyro

from research.core.devices import position, summed
from research.core.errors import RunError, UserError, positive
from research.core.lookahead import lookahead
from research.core.metrics import Mean, Metric, Metrics, added, mean
from research.core.optimizers import Optimizer, optimizer, schedule
from research.core.patterns import check_patterns, matching
from research.core.pruning import Pruning, pruning, sparsity_of
from research.core.state import State, example_keys, owned, rng
from research.core.types import Tree

Dtype = Literal["float32", "bfloat16", "float16"]

INITIAL_SCALE = 2.0**15
"""The loss scale of float16 at the start: the largest one of Micikevicius et al. 2018 (arXiv:1710.03740)."""

GROWTH_INTERVAL, MAX_SCALE = 2000, 2.0**24
"""The updates without an overflow after which it is doubled, and its limit, as in NVIDIA's Apex."""


@dataclass(frozen=True)
class UpdateConfig:
    """How an update is computed.

    Attributes:
        grad_accum_steps: microbatches that a batch is cut into, computed one after another to save memory; it divides
            each device's share of the batch
        clip: global norm to which gradients are clipped; None for no clipping
        dtype: dtype that nets compute in, in training and evaluation; parameters, optimizer states and losses stay
            float32. float16 is for GPUs without bfloat16: it needs a loss scale, which is adapted as training goes on
        freeze: patterns of the paths of parameters that stay as they are, such as 'encoder/*'; batch statistics move
            all the same
        freeze_after: patterns of the paths of parameters, each with the number of updates after which they stay as
            they are; lookahead still sets them to its average, once, and pruning still sets weights to 0
        rates: patterns of the paths of parameters, each with the factor by which their learning rate differs
        pruning: which weights become 0 on the way, and when; none by default
    """

    grad_accum_steps: int = 1
    clip: float | None = None
    dtype: Annotated[Dtype, tyro.conf.arg(aliases=("--dtype",))] = "float32"
    freeze: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--freeze",))] = ()
    freeze_after: tuple[tuple[str, int], ...] = ()
    rates: tuple[tuple[str, float], ...] = ()
    pruning: Pruning = field(default_factory=Pruning)

    def __post_init__(self) -> None:
        positive(self, "update", "grad_accum_steps")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"update.clip must be above 0, not {self.clip}: None is no clipping")
        for pattern, rate in self.rates:
            if rate < 0:
                raise UserError(f"update.rates must be at least 0, not {rate} for {pattern!r}")


class Aux(NamedTuple):
    """What a loss gives besides its value.

    metrics  further metrics, of this part of the batch alone
    moved    the collections of this name that the forward pass has moved, as {"batch_stats": ...}
    rows     a tree with leaves [batch, ...], given back in the batch's order: priorities, samples
    """

    metrics: Mapping[str, Metric] = MappingProxyType({})
    moved: Mapping[str, Tree] = MappingProxyType({})
    rows: Tree = ()


Loss = Callable[[Tree, State, Any, jax.Array], tuple[Mean, Aux]]
"""(params, state, batch, rng) -> (loss, aux), all of this part of the batch alone.

params  what moves: the parameters of one name
state   all the others, as the order of the algorithm has left them; under `state.collections[name]`, this name's own
batch   leaves [batch, ...]
rng     one key for each example, [batch], by its position in the global batch and the count of this name's updates
"""


class LossScale(NamedTuple):
    """The factor that keeps gradients within the range of float16 (Micikevicius et al. 2018, arXiv:1710.03740).

    factor   f32[], that of the next update; at least 1
    good     i32[], updates since it last changed
    skipped  i32[], updates of the whole run whose gradient overflowed, which have moved nothing
    """

    factor: jax.Array
    good: jax.Array
    skipped: jax.Array


class Moving(NamedTuple):
    """`State.opt_state` of one name.

    count  i32[], its updates done, the skipped ones included: its rng and its moving average go by it
    inner  the optimizer's own state; its schedule goes by the updates that were not skipped
    scale  the loss scale in float16, () in other dtypes
    """

    count: jax.Array  # type: ignore[assignment]  # a field, not tuple's method
    inner: optax.OptState
    scale: LossScale | tuple[()] = ()


class Update(Protocol):
    """(state, name, loss, batch) -> (state, aux); see `updater`."""

    def __call__(
        self, state: State, name: str, loss: Loss, batch: Any, whole_batch: bool = False
    ) -> tuple[State, Aux]: ...


class Updater(NamedTuple):
    """What `updater` makes.

    init    (key, {name: (params, collections)}, further collections) -> State
    update  see `updater`
    """

    init: Callable[..., State]
    update: Update


def updater(
    config: UpdateConfig,
    optimizers: Mapping[str, tuple[Optimizer, int]],
    average: Mapping[str, float | None] = MappingProxyType({}),
) -> Updater:
    """`init`, which makes the first State, and `update`, the gradient step.

    optimizers  by name: its optimizer, and the number of its updates in the whole run
    average     by name: the decay of the moving average of its parameters that is kept to evaluate by (`ema_update`),
                or None

    `update(state, name, loss, batch)` is one step of the optimizer of `name` down the mean of `loss` over the global
    batch. The gradient is that of the summed losses of all microbatches on all devices, divided once by their summed
    count: uneven masks come out right, and a count of 0 leaves a gradient of 0. In the returned `Aux` stand the metrics
    of the loss, `NAME_loss`, `NAME_gradient_norm` and `NAME_learning_rate` (without NAME_ where there is but one), and
    the rows.

    In float16 the mean loss is multiplied by the loss scale before it is differentiated, and the gradient is divided by
    it afterwards, in float32. An update whose gradient is not finite is skipped: it moves the count and the scale
    alone, which is halved, and doubled after `GROWTH_INTERVAL` others. `NAME_loss_scale` and `NAME_skipped_updates` (1
    or 0, so that their mean is the fraction) are logged; the metrics of a skipped update count for nothing. An overflow
    at a scale of 1 is skipped too, but its metrics stay, so that `check_finite` ends the run.

    With `config.pruning`, `NAME_sparsity` is logged, and averages are 0 wherever their parameter is.

    whole_batch  the loss is no sum over the examples (a contrastive one): `grad_accum_steps` above 1 is refused
    """
    transforms = {name: _transform(how, updates, config) for name, (how, updates) in optimizers.items()}
    rates = {name: schedule(how, updates) for name, (how, updates) in optimizers.items()}
    decays = {name: decay for name, decay in average.items() if decay is not None}
    parts, half = config.grad_accum_steps, config.dtype == "float16"
    prunes = config.pruning.sparsity is not None

    def init(
        key: jax.Array,
        nets: Mapping[str, tuple[Tree, dict[str, Tree]]],
        collections: Mapping[str, Tree] = MappingProxyType({}),
    ) -> State:
        for name, net in nets.items():
            if not (isinstance(net, tuple) and len(net) == 2):
                raise RunError(f"init takes (params, collections) of {name!r}, as a net's `init` gives them")
        if missing := optimizers.keys() - nets.keys():
            named = ", ".join(map(repr, nets))
            raise RunError(f"the updater has an optimizer of {min(missing)!r}, and init was given {named}")
        params = {name: params for name, (params, _) in nets.items()}
        check_patterns(params, config.freeze, "--freeze")
        check_patterns(params, [pattern for pattern, _ in config.freeze_after], "update.freeze_after")
        check_patterns(params, [pattern for pattern, _ in config.rates], "update.rates")
        for name, (how, _) in optimizers.items():
            check_patterns({name: params[name]}, [pattern for pattern, _ in how.decays], "optimizer.decays")
        if prunes:
            check_patterns(params, config.pruning.paths, "update.pruning.paths")
        scale = LossScale(jnp.float32(INITIAL_SCALE), jnp.int32(0), jnp.int32(0)) if half else ()
        opt_state = {name: Moving(jnp.int32(0), transforms[name].init(params[name]), scale) for name in transforms}
        kept = {name: own for name, (_, own) in nets.items() if own} | dict(collections)
        if decays:  # copies, or donation would meet one buffer twice
            kept["average"] = {name: jax.tree.map(jnp.copy, params[name]) for name in decays}
        return State(jnp.int32(0), key, params, opt_state, kept, ())

    def mean_gradient(
        state: State, name: str, loss: Loss, batch: Any, whole_batch: bool
    ) -> tuple[Tree, Mean, Metrics, dict[str, Tree], Tree]:
        """The gradient of the mean loss over the global batch; the loss, the metrics, what was moved, and the rows."""
        params, (count, _, scale) = state.params[name], state.opt_state[name]
        size = len(jax.tree.leaves(batch)[0])
        keys = example_keys(rng(state._replace(step=count), name), position(size))

        def part(own: dict[str, Tree], batch_and_keys: tuple[Any, jax.Array]) -> tuple[dict[str, Tree], Any]:
            def total(params: Tree) -> tuple[jax.Array, tuple[Mean, Aux]]:
                found = loss(params, _put(state, name, own), *batch_and_keys)
                if not (isinstance(found, tuple) and list(map(type, found)) == [Mean, Aux]):
                    kinds = ", ".join(type(x).__name__ for x in found) if type(found) is tuple else ""
                    kind = f"({kinds})" if kinds else type(found).__name__
                    raise RunError(f"the loss of {name!r} is to return (Mean, Aux), not {kind}")
                value, aux = found
                return value.value * scale.factor if scale else value.total, (value, aux)

            gradient, (value, aux) = jax.grad(total, has_aux=True)(params)
            if scale:
                gradient = jax.tree.map(lambda g: g * (value.count / scale.factor), gradient)
            return {**own, **aux.moved}, (gradient, value, dict(aux.metrics), aux.rows)

        if parts == 1:
            own, (gradient, value, metrics, rows) = part(owned(state, name), (batch, keys))
        elif whole_batch:
            raise UserError(f"the loss of {name} is of the whole batch: update.grad_accum_steps must be 1, not {parts}")
        else:
            own, (gradient, value, metrics, rows) = _accumulated(part, owned(state, name), (batch, keys), parts)

        gradient, examples = summed((gradient, value.count))
        gradient = jax.tree.map(lambda g: g / jnp.maximum(examples, 1e-8), gradient)
        return gradient, value, metrics, own, rows

    def update(state: State, name: str, loss: Loss, batch: Any, whole_batch: bool = False) -> tuple[State, Aux]:
        if name not in optimizers:
            raise RunError(f"there is no optimizer of {name!r}: the updater has {', '.join(map(repr, optimizers))}")
        params, (count, inner, scale) = state.params[name], state.opt_state[name]
        gradient, value, metrics, own, rows = mean_gradient(state, name, loss, batch, whole_batch)
        if config.freeze:  # they count for nothing in the norm either
            frozen = matching(params, config.freeze)
            gradient = jax.tree.map(lambda g, stays: jnp.zeros_like(g) if stays else g, gradient, frozen)
        gradient, norm = _clipped(gradient, config.clip)
        steps, stepped = transforms[name].update(gradient, inner, params)
        moved = optax.apply_updates(params, steps)
        averages = state.collections.get("average", {})
        average = ema_update(averages[name], moved, decays[name], count + 1) if name in decays else ()
        pruned = config.pruning.pruned(params, config.freeze) if prunes else ()
        if prunes and name in decays:
            zeroed = lambda a, p, hit: jnp.where(p == 0, 0, a) if hit else a
            average = jax.tree.map(zeroed, average, moved, pruned)

        before, after = (params, inner, owned(state, name), averages.get(name, ())), (moved, stepped, own, average)
        rate = rates[name](count - scale.skipped if scale else count)
        log: Metrics = {"loss": value, "gradient_norm": mean(norm), "learning_rate": mean(rate)}
        if prunes:
            log["sparsity"] = mean(sparsity_of(moved, pruned))
        if scale:
            overflow = ~jnp.isfinite(norm)
            after = optax.tree.where(overflow, before, after)
            uncounted = jax.tree.map(jnp.zeros_like, (log, metrics))
            log, metrics = optax.tree.where(overflow & (scale.factor > 1), uncounted, (log, metrics))
            log |= {"loss_scale": mean(scale.factor), "skipped_updates": mean(overflow)}
            scale = _rescaled(scale, overflow)
        params, inner, own, average = after

        state = _put(state, name, own)
        if name in decays:
            state = state._replace(collections=state.collections | {"average": averages | {name: average}})
        state = state._replace(
            params=state.params | {name: params},
            opt_state=state.opt_state | {name: Moving(count + 1, inner, scale)},
        )
        prefix = "" if len(optimizers) == 1 else f"{name}_"
        return state, Aux({f"{prefix}{key}": x for key, x in log.items()} | metrics, own, rows)

    return Updater(init, update)


def scan_updates(update: Update, state: State, name: str, loss: Loss, batches: Any) -> tuple[State, Aux]:
    """Several updates of one name, one after another: one for each of `batches`, leaves [updates, batch, ...].

    The metrics are added up over the updates; the rows are stacked. `loss` gets the State without its `world`.
    """

    def one(state: State, batch: Any) -> tuple[State, tuple[Metrics, Tree]]:
        state, aux = update(state, name, loss, batch)
        return state, (dict(aux.metrics), aux.rows)

    after, (metrics, rows) = jax.lax.scan(one, state._replace(world=()), batches)
    return after._replace(world=state.world), Aux(added(metrics), owned(after, name), rows)


def strided(batch: Tree, parts: int) -> Tree:
    """A batch, leaves [batch, ...], as `parts` batches, leaves [parts, batch / parts, ...].

    Part k has every `parts`-th example from the k-th on, so that no device loses its share of any part.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def ema_update(average: Tree, params: Tree, decay: float, count: jax.Array) -> Tree:
    """The exponential moving average of the parameters, after update number `count` has made them `params`.

    Its decay at update t is min(decay, (1 + t) / (10 + t)), so that the start is forgotten soon
    (Polyak & Juditsky 1992; the warm-up as in TensorFlow's ExponentialMovingAverage).
    """
    t = count.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)


def _transform(how: Optimizer, updates: int, config: UpdateConfig) -> optax.GradientTransformation:
    """The optimizer `how` of `updates` in all, by the parts of the parameters, with lookahead; last, weights are
    pruned. Raises UserError where a skipped update of float16 may be the one that these are due at."""
    pruned_last = config.pruning.sparsity is not None and config.pruning.end == 1
    if config.dtype == "float16" and (how.lookahead.every or pruned_last):
        what = "update.pruning.end=1" if pruned_last else "optimizer.lookahead"
        raise UserError(f"{what} needs the last update, which float16 may skip: choose --dtype bfloat16 or float32")
    tx = lookahead(_partitioned(optimizer(how, updates), config), how.lookahead, updates)
    if config.pruning.sparsity is None:
        return tx
    return optax.chain(tx, pruning(config.pruning, updates, config.freeze))


def _partitioned(tx: optax.GradientTransformation, config: UpdateConfig) -> optax.GradientTransformation:
    """`tx` for the parameters that are not frozen, its steps times the factors of `rates`; the others stay."""
    during = [(pattern, optax.scale_by_schedule(lambda count, n=n: count < n)) for pattern, n in config.freeze_after]
    if config.freeze:
        labels = lambda params: jax.tree.map(str, matching(params, config.freeze))
        tx = optax.partition({"False": tx, "True": optax.set_to_zero()}, labels)
    factors = [
        optax.masked(factor, lambda params, pattern=pattern: matching(params, [pattern]))
        for pattern, factor in [*during, *((pattern, optax.scale(factor)) for pattern, factor in config.rates)]
    ]
    return optax.chain(tx, *factors) if factors else tx


def _put(state: State, name: str, own: dict[str, Tree]) -> State:
    return state._replace(collections=state.collections | {name: own}) if own else state


def _accumulated(part: Callable, own: dict[str, Tree], data: Any, parts: int) -> tuple[dict[str, Tree], Any]:
    """`part` of each microbatch: gradients, losses and metrics added up, the rows in the batch's order again."""
    size = len(jax.tree.leaves(data)[0])
    if size % parts:
        raise UserError(f"update.grad_accum_steps={parts} does not divide a device's batch of {size}")
    data = strided(data, parts)
    first = jax.tree.map(lambda x: x[0], data)
    _, (gradient, _, _, _) = jax.eval_shape(part, own, first)

    def accumulate(carry: tuple[dict[str, Tree], Tree], microbatch: Any) -> tuple[Any, Any]:
        own, (gradient, *others) = part(carry[0], microbatch)
        return (own, jax.tree.map(jnp.add, carry[1], gradient)), others

    start = own, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), gradient)
    (own, gradient), (value, metrics, rows) = jax.lax.scan(accumulate, start, data)
    rows = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[2:]), rows)
    value, metrics = jax.tree.map(lambda x: x.sum(0), (value, metrics))
    return own, (gradient, value, metrics, rows)


def _rescaled(scale: LossScale, overflow: jax.Array) -> LossScale:
    """The loss scale after an update: halved by an overflow, doubled after `GROWTH_INTERVAL` updates without one."""
    good = jnp.where(overflow, 0, scale.good + 1)
    full = good == GROWTH_INTERVAL
    factor = scale.factor * jnp.where(overflow, 0.5, jnp.where(full, 2.0, 1.0))
    return LossScale(jnp.clip(factor, 1, MAX_SCALE), jnp.where(full, 0, good), scale.skipped + overflow)


def _clipped(gradient: Tree, clip: float | None) -> tuple[Tree, jax.Array]:
    """The gradient with a global norm of at most `clip`, and its norm before that."""
    # As products, not sums of squares: XLA's long sums are slow on a CPU (17 % of a whole update of DQN).
    norm = jnp.sqrt(sum(jnp.tensordot(g, g, g.ndim, precision="highest") for g in jax.tree.leaves(gradient)))
    if clip is None:
        return gradient, norm
    factor = jnp.minimum(1, clip / jnp.maximum(norm, 1e-8))
    return jax.tree.map(lambda g: g * factor, gradient), norm

"""float16's loss scale, against numbers worked out by hand; and what refuses float16."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compile as compile_for
from experiments import train
from research.core.errors import RunError, UserError
from research.core.lookahead import Lookahead
from research.core.metrics import mean
from research.core.optimizers import Optimizer
from research.core.pruning import Pruning
from research.core.state import Batch, owned
from research.core.update import Aux, UpdateConfig, updater
from research.training.checks import check_finite

SCHEDULED = Optimizer(name="sgd", learning_rate=0.1, momentum=0.5, nesterov=False, schedule="linear")


def product(params, state, batch, rng):
    """The mean of gain * w x, w x in float16: the gradient of w is that of gain * x. It counts its calls."""
    output = (params["kernel"].astype(jnp.float16) * batch.inputs.astype(jnp.float16)).astype(jnp.float32)
    moved = {"calls": owned(state, "net")["calls"] + 1}
    return mean(batch.targets * output, batch.mask), Aux({"output": mean(output, batch.mask)}, moved)


def batch(inputs, gain=1.0, mask=1.0):
    x = jnp.asarray(inputs, jnp.float32)
    return Batch(jnp.arange(len(x)), jnp.full(len(x), mask), x, jnp.full(len(x), gain))


def made(parts=1, factor=2.0**15, good=0):
    """(the first State, with w = 2, a moving average and a collection; update)"""
    init, update = updater(UpdateConfig(parts, dtype="float16"), {"net": (SCHEDULED, 10)}, {"net": 0.5})
    state = init(jax.random.key(0), {"net": ({"kernel": jnp.float32(2)}, {"calls": jnp.int32(0)})})
    scale = state.opt_state["net"].scale
    assert (scale.factor, scale.good, scale.skipped) == (2**15, 0, 0)
    moving = state.opt_state["net"]._replace(scale=scale._replace(factor=jnp.float32(factor), good=jnp.int32(good)))
    return state._replace(opt_state={"net": moving}), jax.jit(lambda state, batch: update(state, "net", product, batch))


def scaling(state):
    """(count, loss scale, good updates, skipped updates)"""
    count, _, (factor, good, skipped) = state.opt_state["net"]
    return int(count), float(factor), int(good), int(skipped)


@pytest.mark.parametrize("parts, overflows", [(1, 1), (2, 1), (4, 2)])
def test_an_overflow_is_skipped_and_halves_the_scale(parts, overflows):
    """A part's gradient in float16, scale * the mean of its x, is at most 65,504: of all x at once it is 2.5 * scale,
    of two parts up to 3 * scale and of four up to 4 * scale. So the scale falls to 2^14, 2^14 and 2^13.
    """
    state, update = made(parts)
    for n in range(1, overflows + 1):
        before, (state, aux) = state, update(state, batch([1, 2, 3, 4]))
        assert scaling(state) == (n, 2.0 ** (15 - n), 0, n)
        before_inner, inner = before.opt_state["net"].inner, state.opt_state["net"].inner
        stayed = (before.params, before.collections, before_inner), (state.params, state.collections, inner)
        jax.tree.map(np.testing.assert_array_equal, *stayed)
        assert aux.moved == {"calls": 0}
        log = aux.metrics
        assert (log["skipped_updates"].value, log["loss_scale"].value) == (1, 2.0 ** (16 - n))
        assert [x for key in ("loss", "gradient_norm", "output") for x in log[key]] == [0] * 6
    for n, (rate, trace, kernel) in enumerate([(0.1, 2.5, 2 - 0.25), (0.09, 3.75, 1.75 - 0.3375)], overflows + 1):
        state, aux = update(state, batch([1, 2, 3, 4]))
        log = {key: float(x.value) for key, x in aux.metrics.items()}
        assert log["learning_rate"] == pytest.approx(rate)  # the schedule goes by the updates that moved something
        assert log["gradient_norm"] == 2.5 and log["skipped_updates"] == 0
        assert state.params["net"]["kernel"] == pytest.approx(kernel)
        assert float(jax.tree.leaves(state.opt_state["net"].inner)[0]) == pytest.approx(trace)
        assert scaling(state) == (n, 2.0 ** (15 - overflows), n - overflows, overflows)
    assert owned(state, "net")["calls"] == 2 * parts
    assert state.collections["average"]["net"]["kernel"] != 2


def test_the_scale_is_doubled_after_2000_good_updates_up_to_its_limit():
    state, update = made(factor=64.0, good=1998)
    seen = [scaling(state := update(state, batch([1, 2, 3, 4]))[0])[1:3] for _ in range(3)]
    assert seen == [(64, 1999), (128, 0), (128, 1)]
    state, update = made(factor=2.0**24, good=1999)
    nothing_counted = batch([1, 2, 3, 4], mask=0.0)
    assert scaling(update(state, nothing_counted)[0]) == (1, 2.0**24, 0, 0)


def test_an_overflow_at_a_scale_of_1_ends_the_run():
    """x = 30,000 and a gain of 3: the gradient is 90,000. At larger scales it is skipped, and the run goes on."""
    state, update = made(factor=2.0)
    steps = []
    for gain in (3.0, 1.0, 3.0):
        state, aux = update(state, batch([3e4] * 4, gain))
        steps.append(dict(aux.metrics))
    assert scaling(state) == (3, 1, 0, 2)  # halved at first; no scale is less than 1
    stacked = lambda *which: jax.tree.map(lambda *x: np.stack(x), *(steps[k] for k in which))
    assert [float(x.value) for x in (step["skipped_updates"] for step in steps)] == [1, 0, 1]
    check_finite(stacked(0, 1), 10, lambda: "Kept: nothing")
    with pytest.raises(RunError, match=r"overflowed float16 at step 13, at a loss scale of 1.* Kept: nothing\. Try"):
        check_finite(stacked(0, 1, 2), 10, lambda: "Kept: nothing")
    seeds = jax.tree.map(lambda x, y: np.stack([x, y], 1), stacked(0, 1, 2), stacked(0, 1, 1))
    check_finite(seeds, 10, str)  # another seed goes on


def test_other_dtypes_have_no_scale():
    init, _ = updater(UpdateConfig(dtype="bfloat16"), {"net": (SCHEDULED, 10)})
    assert init(jax.random.key(0), {"net": ({"kernel": jnp.float32(2)}, {})}).opt_state["net"].scale == ()


def test_learners_and_devices_that_can_not_compute_in_it_refuse_float16(tmp_path, capsys):
    assert train.main(["digits_gan", "--dtype", "float16", "--workdir", str(tmp_path / "run")]) == 2
    assert compile_for.main(["digits_cnn", "--topology", "v5e:2x4", "--dtype", "float16"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: GAN does not train in float16: choose --dtype float32 or bfloat16",
        "error: TPUs do not compute in float16: choose --dtype bfloat16",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "optimizer, pruning, what",
    [
        (Optimizer(lookahead=Lookahead(every=5)), Pruning(), "optimizer.lookahead"),
        (Optimizer(), Pruning(sparsity=0.5, end=1.0), "update.pruning.end=1"),
    ],
)
def test_what_is_due_at_the_last_update_does_without_float16(optimizer, pruning, what):
    """float16 may skip it."""
    for dtype in ("float16", "bfloat16"):
        with nullcontext() if dtype == "bfloat16" else pytest.raises(UserError, match=f"{what} needs the last update"):
            updater(UpdateConfig(dtype=dtype, pruning=pruning), {"net": (optimizer, 10)}, {})

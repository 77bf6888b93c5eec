"""Learning from a rollout in epochs of minibatches, as on-policy learners do."""

from typing import Any

import jax

from research.core.metrics import Metrics, added
from research.core.state import State, example_keys, rng
from research.core.types import Tree
from research.core.update import Loss, Update, scan_updates


def scan_epochs(
    update: Update, state: State, name: str, loss: Loss, rows: Any, env_id: jax.Array, epochs: int, count: int
) -> tuple[State, Metrics]:
    """`epochs` passes over the frames of a rollout, each of `count` updates on `minibatches` of them.

    rows    leaves [num_envs, length, ...]
    env_id  i32[num_envs], the environments' global indices

    The metrics are added up over all updates.
    """

    def epoch(state: State, keys: jax.Array) -> tuple[State, Metrics]:
        state, aux = scan_updates(update, state, name, loss, minibatches(rows, keys, count))
        return state, dict(aux.metrics)

    keys = jax.vmap(lambda key: jax.random.split(key, epochs), out_axes=1)(example_keys(rng(state, "shuffle"), env_id))
    after, metrics = jax.lax.scan(epoch, state._replace(world=()), keys)
    return after._replace(world=state.world), added(metrics)


def minibatches(rows: Tree, keys: jax.Array, count: int) -> Tree:
    """Frames, leaves [num_envs, length, ...], in `count` minibatches, leaves [count, num_envs * length / count, ...].

    Every minibatch has as many frames of each environment, in an order drawn by the environment's own key (`keys`
    [num_envs]): so no device needs another's.
    """

    def one(frames: Tree, key: jax.Array) -> Tree:
        order = jax.random.permutation(key, jax.tree.leaves(frames)[0].shape[0])
        return jax.tree.map(lambda x: x[order.reshape(count, -1)], frames)

    shuffled = jax.vmap(one, out_axes=1)(rows, keys)
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[3:]), shuffled)

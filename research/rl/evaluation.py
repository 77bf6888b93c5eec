"""Evaluation by whole episodes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.core.metrics import Metrics, mean
from research.core.state import Batch
from research.rl.environments import VectorEnv


def episode_keys(seed: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the episode of a seed i32[]: the key of its reset, and the key to fold the time in for each frame's."""
    # Split first: folding the time into the key that resets would repeat the keys that the reset splits it into.
    reset_key, frame_key = jax.random.split(jax.random.key(seed))
    return reset_key, frame_key


class Prediction(NamedTuple):
    """What an agent holds of an episode at its start.

    value   observation f32[batch, ...] -> the discounted return that it expects, f32[batch]
    gamma   its discount factor
    reward  the environment's rewards f32[batch] -> those that it has learned from
    """

    value: Callable[[jax.Array], jax.Array]
    gamma: float | jax.Array
    reward: Callable[[jax.Array], jax.Array]


def play(
    environment: VectorEnv,
    policy: Callable[[jax.Array], jax.Array],
    batch: Batch,
    prediction: Prediction | None = None,
) -> Metrics:
    """The mean "return" and "length" of one whole episode for each seed of `batch.index`, masked by `batch.mask`.

    policy      observation f32[batch, ...] -> action i32[batch], for instance the greedy one
    prediction  with it there is also "overestimation", the mean of the predicted less the realised discounted return
                (van Hasselt, Guez & Silver 2016, arXiv:1509.06461); what a truncated episode would have had still is
                missing from the latter
    """
    reset_keys, frame_keys = jax.vmap(episode_keys)(batch.index)
    start = environment.reset(reset_keys)

    def unfinished(carry: Any) -> jax.Array:
        time, *_, done = carry
        return (time < environment.max_steps) & ~done.all()

    def frame(carry: Any) -> Any:
        time, env_state, observation, return_, discounted, length, done = carry
        keys = jax.vmap(jax.random.fold_in, (0, None))(frame_keys, time)
        # An environment whose episode is done continues from its start; those frames are not counted.
        env_state, timestep = environment.step(keys, env_state, policy(observation), start)
        return_, length = return_ + jnp.where(done, 0, timestep.reward), length + ~done
        if prediction is not None:
            learned = prediction.gamma**time * prediction.reward(timestep.reward)
            discounted += jnp.where(done, 0, learned)
        done |= timestep.terminated | timestep.truncated
        return time + 1, env_state, timestep.observation, return_, discounted, length, done

    zeros = jnp.zeros(batch.index.shape)
    first = (jnp.int32(0), *start, zeros, zeros, zeros, zeros.astype(bool))
    *_, return_, discounted, length, _ = jax.lax.while_loop(unfinished, frame, first)
    metrics: Metrics = {"return": mean(return_, batch.mask), "length": mean(length, batch.mask)}
    if prediction is not None:
        metrics = {**metrics, "overestimation": mean(prediction.value(start[1]) - discounted, batch.mask)}
    return metrics

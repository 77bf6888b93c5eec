"""Other codebases' learners as contenders of `experiments.benchmark`, each in a Python with the versions that it pins.

    PYTHON -m experiments.peers NAME [DIR]

NAME is a function below, or purejaxql_asterix, purejaxql_breakout or purejaxql_freeway, and DIR a clone of its
repository. Nothing of ours is imported. A line of standard input plays a round, and its figure is printed: frames/s,
seeds/h, or for these games a greedy return.
"""

import importlib.util
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
import types
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

FRAMES = 250_000
"""Frames of a round of reinforcement learning."""

TEST_ENVIRONMENTS = 128
"""Environments that a greedy return is averaged over, as in `breakout_pqn`."""

SOLVED, EPISODES = 475, 20
"""The return at which CartPole counts as solved, as the mean of so many episodes of training."""


class Absent(types.ModuleType):
    """A module that is imported and not used: whatever is asked of it is `object`."""

    def __getattr__(self, name: str) -> Any:
        return object


def module(path: Path, *absent: str) -> Any:
    """The module in a file. Those called `absent` are imported there, and not used by what is measured."""
    sys.modules.update({name: Absent(name) for name in absent})
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def training(make_train: Callable[[dict], Callable], config: dict[str, Any], frames: int) -> Callable[[], float]:
    """Frames/s of a whole run of one seed."""
    import jax

    train, keys = jax.jit(jax.vmap(make_train(config))), jax.random.split(jax.random.PRNGKey(0), 1)

    def once() -> float:
        began = time.perf_counter()
        jax.block_until_ready(train(keys))
        return frames / (time.perf_counter() - began)

    return once


def purejaxrl_dqn(clone: Path) -> Callable[[], float]:
    """Its DQN on CartPole, as its own script sets it."""
    import jax

    vars(jax).setdefault("tree_map", jax.tree.map)  # as it was called before jax 0.4.26
    config = {
        "NUM_ENVS": 10,
        "BUFFER_SIZE": 10_000,
        "BUFFER_BATCH_SIZE": 128,
        "TOTAL_TIMESTEPS": FRAMES,
        "EPSILON_START": 1.0,
        "EPSILON_FINISH": 0.05,
        "EPSILON_ANNEAL_TIME": FRAMES // 2,
        "TARGET_UPDATE_INTERVAL": 500,
        "LR": 2.5e-4,
        "LEARNING_STARTS": 10_000,
        "TRAINING_INTERVAL": 10,
        "LR_LINEAR_DECAY": False,
        "GAMMA": 0.99,
        "TAU": 1.0,
        "ENV_NAME": "CartPole-v1",
        "SEED": 0,
        "NUM_SEEDS": 1,
        "WANDB_MODE": "disabled",
        "ENTITY": "",
        "PROJECT": "",
    }
    return training(module(clone / "purejaxrl" / "dqn.py", "wandb").make_train, config, FRAMES)


def purejaxrl_ppo(clone: Path) -> Callable[[], float]:
    """Its PPO on CartPole, as its own script sets it."""
    brax = ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training")
    frames = FRAMES // 512 * 512
    config = {
        "LR": 2.5e-4,
        "NUM_ENVS": 4,
        "NUM_STEPS": 128,
        "TOTAL_TIMESTEPS": frames,
        "UPDATE_EPOCHS": 4,
        "NUM_MINIBATCHES": 4,
        "GAMMA": 0.99,
        "GAE_LAMBDA": 0.95,
        "CLIP_EPS": 0.2,
        "ENT_COEF": 0.01,
        "VF_COEF": 0.5,
        "MAX_GRAD_NORM": 0.5,
        "ACTIVATION": "tanh",
        "ENV_NAME": "CartPole-v1",
        "ANNEAL_LR": True,
    }
    return training(module(clone / "purejaxrl" / "ppo.py", "navix", *brax).make_train, config, frames)


def purejaxql_pqn(clone: Path) -> Callable[[], float]:
    """Its PQN on CartPole, as its configuration sets it, without tests while it trains."""
    return _purejaxql(clone, "gymnax", "cartpole", "CartPole-v1")


def purejaxql_pqn_minatar(clone: Path) -> Callable[[], float]:
    """Its PQN on MinAtar's Breakout, as its configuration sets it, without tests while it trains."""
    return _purejaxql(clone, "minatar", "minatar", "Breakout-MinAtar")


def _purejaxql(clone: Path, script: str, setting: str, environment: str) -> Callable[[], float]:
    config = _purejaxql_setting(clone, setting, environment)
    rollout = config["NUM_ENVS"] * config["NUM_STEPS"]
    frames = FRAMES // rollout * rollout
    config |= {"TOTAL_TIMESTEPS": frames, "TOTAL_TIMESTEPS_DECAY": frames}
    return training(module(clone / "purejaxql" / f"pqn_{script}.py", "wandb").make_train, config, frames)


def _purejaxql_return(clone: Path, game: str) -> Callable[[], float]:
    """A whole run of its PQN on a game of MinAtar, and then the mean greedy return of the first whole episode of each
    of 128 environments. A round is a seed: 0, 1, and so on. The mean over all episodes that end meanwhile, which is
    what its tests log, is printed to standard error.
    """
    import jax
    import jax.numpy as jnp

    config = _purejaxql_setting(clone, "minatar", game)
    script = module(clone / "purejaxql" / "pqn_minatar.py", "wandb")
    environment, params = script.gymnax.make(game)
    environment = script.LogWrapper(environment)
    net = script.QNetwork(action_dim=environment.action_space(params).n, norm_type=config["NORM_TYPE"])
    train = jax.jit(script.make_train(config))

    @jax.jit
    def play(state: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The returns of the episodes that end `[frame, environment]`, and whether one ends."""
        weights = {"params": state.params, "batch_stats": state.batch_stats}

        def frame(carry: tuple[jax.Array, Any], key: jax.Array) -> tuple[tuple[jax.Array, Any], Any]:
            action = net.apply(weights, carry[0], train=False).argmax(-1)
            keys = jax.random.split(key, TEST_ENVIRONMENTS)
            observation, world, _, _, info = jax.vmap(environment.step, (0, 0, 0, None))(keys, carry[1], action, params)
            return (observation, world), (info["returned_episode_returns"], info["returned_episode"])

        keys = jax.random.split(key, 1 + params.max_steps_in_episode)
        start = jax.vmap(environment.reset, (0, None))(jax.random.split(keys[0], TEST_ENVIRONMENTS), params)
        return jax.lax.scan(frame, start, keys[1:])[1]

    seeds = itertools.count()

    def once() -> float:
        seed = jax.random.PRNGKey(next(seeds))
        returns, ends = play(train(seed)["runner_state"][0], jax.random.fold_in(seed, 1))
        if not ends.any(0).all():
            raise RuntimeError("an environment's first episode did not end")
        print("over all episodes:", returns[ends].mean(), file=sys.stderr, flush=True)
        return float(jnp.take_along_axis(returns, ends.argmax(0)[None], 0).mean())

    return once


def _purejaxql_setting(clone: Path, setting: str, environment: str) -> dict[str, Any]:
    """One of its files of configuration, with its tests during training turned off."""
    import jax
    from omegaconf import OmegaConf

    vars(jax).setdefault("tree_map", jax.tree.map)
    path = clone / "purejaxql" / "config" / "alg" / f"pqn_{setting}.yaml"
    config = {key: _number(x) for key, x in OmegaConf.to_container(OmegaConf.load(path)).items()}
    return config | {"ENV_NAME": environment, "TEST_DURING_TRAINING": False, "WANDB_MODE": "disabled"}


def _number(x: Any) -> Any:
    """What YAML takes for text: 1e7."""
    try:
        return float(x) if isinstance(x, str) else x
    except ValueError:
        return x


def gymnasium_cartpole(num_envs: int) -> Callable[[], float]:
    """Steps/s of Gymnasium's vector CartPole alone, by random actions that are drawn beforehand."""
    import gymnasium
    import numpy as np

    steps = 2_000_000 // num_envs if num_envs > 1 else 50_000
    environment = gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")
    environment.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, (1000, num_envs))

    def once() -> float:
        began = time.perf_counter()
        for i in range(steps):
            environment.step(actions[i % 1000])
        return steps * num_envs / (time.perf_counter() - began)

    return once


def cleanrl_ppo(clone: Path) -> Callable[[], float]:
    """Seeds an hour of its script for CartPole as it is, from the start of its process to the moment at which its last
    episodes are solved. Every round has a seed of its own."""
    seeds = itertools.count(0)

    def once() -> float:
        command = (sys.executable, str(clone.absolute() / "cleanrl" / "ppo.py"), "--seed", str(next(seeds)))
        began, recent = time.perf_counter(), deque[float](maxlen=EPISODES)
        with (
            tempfile.TemporaryDirectory() as folder,
            subprocess.Popen(
                command, cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            ) as process,
        ):
            assert process.stdout
            for line in process.stdout:
                recent.extend(float(value) for value in re.findall(r"episodic_return=\D*([\d.]+)", line))
                if _solved(recent):
                    process.kill()
                    return 3600 / (time.perf_counter() - began)
        raise RuntimeError(f"it ended at {sum(recent) / max(len(recent), 1)}, below {SOLVED}")

    return once


def sb3_ppo(_: Path) -> Callable[[], float]:
    """Seeds an hour of Stable-Baselines3's PPO in its zoo's setting for CartPole, until the last episodes are solved,
    without the start of the process. Every round has a seed of its own."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class UntilSolved(BaseCallback):
        def _on_step(self) -> bool:
            return not _solved([episode["r"] for episode in list(self.model.ep_info_buffer)[-EPISODES:]])

    seeds = itertools.count(0)

    def once() -> float:
        seed, began = next(seeds), time.perf_counter()
        falling = lambda first: lambda left: first * left
        setting = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20}
        rates = {"learning_rate": falling(1e-3), "clip_range": falling(0.2)}
        model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 8, seed), ent_coef=0.0, seed=seed, **setting, **rates)
        until = UntilSolved()
        model.learn(100_000, until)
        if until.on_step():
            raise RuntimeError(f"it ended below {SOLVED}")
        return 3600 / (time.perf_counter() - began)

    return once


def _solved(returns: Collection[float]) -> bool:
    return len(returns) == EPISODES and sum(returns) >= SOLVED * EPISODES


def main(arguments: list[str]) -> None:
    """Plays a round for each line of standard input."""
    name, where = arguments
    peers: dict[str, Callable[[Any], Callable[[], float]]] = {
        f.__name__: f
        for f in (purejaxrl_dqn, purejaxrl_ppo, purejaxql_pqn, purejaxql_pqn_minatar, cleanrl_ppo, sb3_ppo)
    }
    for game in ("asterix", "breakout", "freeway"):
        peers[f"purejaxql_{game}"] = partial(_purejaxql_return, game=f"{game.capitalize()}-MinAtar")
    once = gymnasium_cartpole(int(where)) if name == "gymnasium_cartpole" else peers[name](Path(where))
    for _ in sys.stdin:
        print(once(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

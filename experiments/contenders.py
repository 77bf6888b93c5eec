"""The contenders of `experiments.benchmark`. Each function sets one up, and returns its round: units/s of some steps.

What only one contender needs is imported in its function: another's process does without.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.peers import FRAMES, SOLVED

CORES = os.cpu_count() or 1
BATCH, STEPS = 128, 10


class Reading(NamedTuple):
    """A language model's training. `layers` and `width` are the net's, `heads` is 0 for an LSTM."""

    batch: int
    context: int
    layers: int
    width: int
    heads: int
    vocabulary: int = 65
    dtype: Literal["float32", "bfloat16"] = "float32"

    def operations(self) -> float:
        """Floating-point operations a token that a Transformer needs, forward and backward: 6 for each weight that is
        multiplied, 12 for each feature of each token attended to (Chowdhery et al. 2022, "PaLM", appendix B)."""
        weights = 12 * self.layers * self.width**2 + self.vocabulary * self.width
        return 6 * weights + 12 * self.layers * self.width * self.context


TEXT = {
    "transformer": Reading(12, 64, layers=4, width=128, heads=4),
    "lstm": Reading(50, 50, layers=2, width=128, heads=0),
    "gpt2": Reading(8, 1024, layers=12, width=768, heads=12, vocabulary=50304, dtype="bfloat16"),
}
"""nanoGPT's setting for a CPU, char-rnn's, and GPT-2."""


class Adversaries(NamedTuple):
    """DCGAN's nets, for images of side x side. `widths` are the discriminator's; the generator's are in reverse."""

    side: int
    channels: int
    widths: tuple[int, ...]
    latent: int = 100
    batch: int = 64


DCGAN = {"dcgan28": Adversaries(28, 1, (64, 128)), "dcgan64": Adversaries(64, 3, (64, 128, 256, 512))}
"""Two layers, twice as wide as mnist_dcgan's, and the nets of PyTorch's tutorial."""


def samestep(what: str, place_name: Any) -> Callable[[], float]:
    """Examples/s (of text: tokens/s) of `STEPS` steps in one dispatch, the data on the device."""
    import jax.numpy as jnp
    import numpy as np

    from research.core.losses import classification, tokens
    from research.core.modules import network
    from research.core.optimizers import Optimizer
    from research.core.placement import place
    from research.core.update import UpdateConfig, updater
    from research.data.feed import device_feed
    from research.data.text import Windows
    from research.learners.supervised import supervised
    from research.nets import lstm, transformer
    from research.nets.cnn import CNN

    where, how, rng = place(place_name), Optimizer(learning_rate=1e-3), np.random.default_rng(0)
    if what == "cnn":
        net: Any = CNN(widths=(16, 32, 64), depth=2, outputs=10)
        criterion, example, per_step = classification(), jnp.zeros((1, 28, 28, 1)), BATCH
        images = rng.normal(size=(2048, 28, 28, 1)).astype(np.float32)
        feed: Any = device_feed(images, rng.integers(10, size=2048).astype(np.int32), BATCH, 0)
        dtype: Literal["float32", "bfloat16"] = "float32"
    else:
        batch, context, layers, width, heads, vocabulary, dtype = TEXT[what]
        if heads:
            stack = transformer.Stack(layers=layers, width=width, heads=heads, bias=False)
            net = transformer.LanguageModel(stack, context=context, outputs=vocabulary)
        else:
            net = lstm.LanguageModel(layers, width, outputs=vocabulary)
        criterion, example, per_step = tokens(-1), jnp.zeros((1, context), jnp.int32), batch * context
        feed = Windows(rng.integers(vocabulary, size=100_000).astype(np.int32), context, batch, 0)
    net, one = network(net, dtype), updater(UpdateConfig(dtype=dtype), {"net": (how, STEPS)})
    learner = supervised(net, one, example, criterion, criterion)
    return stepping(learner, feed, where, per_step)


def samestep_dcgan(what: str, place_name: Any) -> Callable[[], float]:
    """Images/s of `STEPS` steps in one dispatch. The generator's update has noise of its own, as in Goodfellow et al.'s
    Algorithm 1: one more forward pass of the generator than in `pytorch_dcgan`."""
    import numpy as np

    from research.core.placement import place
    from research.data.feed import device_feed
    from research.data.images import ImageSpec
    from research.learners.gan import GAN, gan
    from research.nets.dcgan import DCGANDiscriminator, DCGANGenerator

    side, channels, widths, latent, batch = DCGAN[what]
    config = GAN(generator=DCGANGenerator(widths[::-1]), discriminator=DCGANDiscriminator(widths), latent=latent)
    where, rng = place(place_name), np.random.default_rng(0)
    images = rng.integers(256, size=(2048, side, side, channels), dtype=np.uint8)
    learner = gan(config, ImageSpec((side, side, channels), 1, ("any",), (0.5,), (0.5,)))
    return stepping(learner, device_feed(images, np.zeros(2048, np.int32), batch, 0), where, batch)


def stepping(learner: Any, feed: Any, where: Any, per_step: int) -> Callable[[], float]:
    """Examples/s of `STEPS` steps in one dispatch."""
    import jax

    from research.core.transformations import scan_steps, with_feed

    feed = where.put_data(feed, None)
    steps = where.train(lambda s, f: scan_steps(with_feed(learner.step, f), STEPS)(s, None), None)
    state = where.put(jax.jit(learner.init)(jax.random.key(0)))

    def once() -> float:
        nonlocal state
        began = time.perf_counter()
        state, _ = jax.block_until_ready(steps(state, feed))
        return STEPS * per_step / (time.perf_counter() - began)

    return once


def pytorch(what: str, how: str = "eager") -> Callable[[], float]:
    """The same work in PyTorch, AdamW in both; how: eager, channels_last, or best (compiled, with a fused AdamW)."""
    import torch
    from torch.nn.functional import cross_entropy

    from experiments import baselines
    from research.nets.transformer import Stack

    torch.set_num_threads(CORES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = torch.channels_last if how == "channels_last" else torch.contiguous_format
    if what == "cnn":
        net = baselines.cnn().to(memory_format=memory)  # type: ignore[call-overload]
        images, labels = torch.randn(2048, 1, 28, 28, device=device), torch.randint(10, (2048,), device=device)
        per_step, dtype = BATCH, torch.float32

        def batch() -> tuple[torch.Tensor, torch.Tensor]:
            index = torch.randint(2048, (BATCH,), device=device)
            return images[index].contiguous(memory_format=memory), labels[index]
    else:
        size, context, layers, width, heads, vocabulary, _ = TEXT[what]
        if heads:
            stack = Stack(layers=layers, width=width, heads=heads, bias=False)
            net = baselines.LanguageModel(stack, context, vocabulary)
        else:
            net = baselines.LSTM(layers, width, vocabulary)
        text = torch.randint(vocabulary, (100_000,), device=device)
        per_step, dtype = size * context, getattr(torch, TEXT[what].dtype)

        def batch() -> tuple[torch.Tensor, torch.Tensor]:
            starts = torch.randint(len(text) - context, (size, 1), device=device)
            places = starts + torch.arange(context + 1, device=device)
            return text[places[:, :-1]], text[places[:, 1:]]

    net = net.to(device)
    adam = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.0, fused=how == "best")
    run = torch.compile(net) if how == "best" else net

    def once() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            inputs, targets = batch()
            adam.zero_grad()
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = cross_entropy(run(inputs).flatten(0, -2), targets.flatten())
            loss.backward()
            adam.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return STEPS * per_step / (time.perf_counter() - began)

    return once


def pytorch_dcgan(what: str, how: str) -> Callable[[], float]:
    """The same in PyTorch, as its tutorial trains: the discriminator's samples serve the generator's update as well."""
    import torch
    from torch.nn.functional import softplus

    from experiments import baselines

    torch.set_num_threads(CORES)
    side, channels, widths, latent, size = DCGAN[what]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = torch.channels_last if how == "channels_last" else torch.contiguous_format
    nets = baselines.dcgan(widths, latent, side, channels)
    generator, discriminator = (net.to(device, memory_format=memory) for net in nets)  # type: ignore[call-overload]
    adams = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (generator, discriminator)]
    images = torch.randint(256, (2048, channels, side, side), dtype=torch.uint8, device=device)

    def once() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            pixels = images[torch.randint(2048, (size,), device=device)]
            reals = (pixels.float() / 127.5 - 1).contiguous(memory_format=memory)
            fakes = generator(torch.randn(size, latent, device=device))
            discriminator.requires_grad_(True)
            adams[1].zero_grad()
            (softplus(-discriminator(reals)).mean() + softplus(discriminator(fakes.detach())).mean()).backward()
            adams[1].step()
            discriminator.requires_grad_(False)
            adams[0].zero_grad()
            softplus(-discriminator(fakes)).mean().backward()
            adams[0].step()
        if device == "cuda":
            torch.cuda.synchronize()
        return STEPS * size / (time.perf_counter() - began)

    return once


def samestep_rl(what: str, seeds: int | None = None) -> Callable[[], float]:
    """Frames/s of learning in the setting of purejaxrl (dqn, ppo) or purejaxql (pqn, pqn_minatar), all seeds together.

    A round is a whole run without its evaluations, or with `seeds` as many frames for any number of them. DQN's batch
    is 130, the next multiple of 10 environments above 128.
    """
    import jax

    from configs.breakout_pqn import config as breakout_pqn
    from research.core.experiment import Run
    from research.core.optimizers import Optimizer
    from research.core.state import NO_BATCH
    from research.core.transformations import per_seed, scan_steps
    from research.core.update import UpdateConfig
    from research.learners.dqn import DQN
    from research.learners.ppo import PPO
    from research.learners.pqn import PQN
    from research.learners.reinforcement import Reinforcement
    from research.nets.q import MLP

    run = lambda frames: Run(steps=FRAMES // frames // 10 * 10, steps_per_dispatch=10, metric="return")
    linear = lambda rate: Optimizer(learning_rate=rate, schedule="linear", eps=1e-5)
    settings: dict[str, Callable[[], Reinforcement]] = {
        "dqn": lambda: DQN(
            num_envs=10,
            rollout_length=10,
            buffer_size=10_000,
            learning_starts=10_000,
            batch=130,
            optimizer=Optimizer(learning_rate=2.5e-4),
            run=replace(run(100), steps_per_dispatch=500),
        ),
        "ppo": lambda: PPO(num_envs=4, value_clip=0.2, entropy_coef=0.01, optimizer=linear(2.5e-4), run=run(4 * 128)),
        "pqn": lambda: PQN(
            net=MLP(widths=(256, 256), layer_norm=True),
            epsilon_end=0.2,
            epsilon_fraction=0.2,
            optimizer=linear(1e-4),
            update=UpdateConfig(clip=10.0),
            run=run(32 * 64),
        ),
        "pqn_minatar": lambda: replace(breakout_pqn(), run=run(128 * 32)),
    }
    config = settings[what]()
    learner, chunk = config.build(), config.run.steps_per_dispatch
    keys, dispatches = jax.random.key(0), config.run.steps // chunk
    if seeds is not None:
        learner, keys = per_seed(learner), jax.random.split(keys, seeds)
        chunk, dispatches = 1, FRAMES // config.frames // seeds
    init, steps = jax.jit(learner.init), jax.jit(scan_steps(learner.step, chunk), donate_argnums=0)

    def once() -> float:
        state = jax.block_until_ready(init(keys))
        began = time.perf_counter()
        for _ in range(dispatches):
            state, _ = steps(state, NO_BATCH)
        jax.block_until_ready(state)
        return dispatches * chunk * (seeds or 1) * config.frames / (time.perf_counter() - began)

    return once


def samestep_cartpole(num_envs: int, fresh: bool) -> Callable[[], float]:
    """Steps/s of CartPole alone, by random actions; episodes begin by starts of their own, or by the same one each."""
    import jax
    import jax.numpy as jnp

    from research.rl.environments import Environment, make
    from research.rl.rollout import reset

    environment, steps = make(Environment("CartPole-v1")), 4_000_000 // num_envs // 100
    keys = jax.random.split(jax.random.key(0), num_envs)

    @jax.jit
    def play(states: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        actions = (jax.random.bits(key, (100, num_envs), jnp.uint8) % 2).astype(jnp.int32)
        starts = jax.vmap(environment.reset)(jax.random.split(key, (100, num_envs))) if fresh else None
        same = environment.reset(keys)

        def step(states: Any, now: Any) -> tuple[Any, jax.Array]:
            action, start = now
            states, timestep = environment.step(keys, states, action, start or same)
            return states, timestep.terminated.sum()

        return jax.lax.scan(step, states, (actions, starts))

    first = reset(environment, jax.random.key(0), num_envs).env_state

    def once() -> float:
        states, began = first, time.perf_counter()
        for i in range(steps):
            states, done = play(states, jax.random.key(i))
        jax.block_until_ready(done)
        return steps * 100 * num_envs / (time.perf_counter() - began)

    return once


def samestep_solved(seeds: int) -> Callable[[], float]:
    """Seeds an hour that `cartpole_ppo` trains, from the start of a process to its end: with compilation, evaluations,
    checkpoints and pictures. Every round has seeds of its own. A greedy return below `SOLVED` is a RuntimeError."""
    firsts = itertools.count(0, seeds)

    def once() -> float:
        with tempfile.TemporaryDirectory() as folder:
            where = ("--seeds", str(seeds), "--run.seed", str(next(firsts)), "--workdir", f"{folder}/run")
            command = (sys.executable, "-m", "experiments.train", "cartpole_ppo", *where)
            # Each round compiles: what an earlier one has compiled is not found.
            environment = {name: x for name, x in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
            environment["XDG_CACHE_HOME"] = folder
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            seconds = time.perf_counter() - began
            returns = json.loads(Path(folder, "run", "summary.json").read_text())["test"]["return"]["each"]
        if min(returns) < SOLVED:
            raise RuntimeError(f"a return of {min(returns)}, below {SOLVED}")
        return 3600 * seeds / seconds

    return once

"""Speed beside others', on this machine, in one go: python -m experiments.benchmark WHAT [options].

    cnn          images/s of training mnist_cnn's net
    dcgan28      images/s of training two layers of DCGAN, for MNIST: a batch of 64 for both players' updates
    dcgan64      the same for images of 64x64x3, with the nets of PyTorch's DCGAN tutorial
    transformer  tokens/s of training in nanoGPT's setting for a CPU
    lstm         characters/s of training in char-rnn's setting, 2 layers of 128
    gpt2         tokens/s of training GPT-2 of 124 M parameters in bfloat16, for a GPU, and how much of it that uses
    dqn          frames/s of DQN on CartPole, beside purejaxrl's
    ppo          frames/s of PPO on CartPole, beside purejaxrl's
    pqn          frames/s of PQN on CartPole, beside purejaxql's
    pqn_minatar  frames/s of PQN on MinAtar's Breakout, beside purejaxql's
    solved       seeds/h of PPO to a return of 475 on CartPole, 10 together, beside one of CleanRL's PPO and one of
                 Stable-Baselines3's
    seeds        frames/s of PQN on CartPole, 1 to 64 seeds in one program; --output draws them too
    cartpole     steps/s of CartPole alone, 1,024 environments (or --num-envs), beside Gymnasium's vector environment
    records      images/s of reading and cropping CIFAR-10's records, 2 workers, beside PyTorch's DataLoader
    folder       the same of JPEGs of 300 to 500 pixels, which it makes in the directory of temporary files

The nets are beside the same ones in PyTorch (pip install -e .[bench]). Those of reinforcement learning are beside
another codebase where --clone names a clone of it, run by --python, a Python with the versions that it pins; see
`experiments.peers`.

Each contender is a process of its own. They take turns, round by round, since machines are noisy; what counts are the
medians and their ratios.
"""

import contextlib
import os
import select
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import tyro

from experiments.console import check_output, print_table, script, thousands
from experiments.contenders import (
    CORES,
    DCGAN,
    TEXT,
    pytorch,
    pytorch_dcgan,
    samestep,
    samestep_cartpole,
    samestep_dcgan,
    samestep_rl,
    samestep_solved,
)
from experiments.loaders import LOADING, photos, pytorch_images, samestep_images, tree_memory
from experiments.results import command_of, provenance
from research.core.console import size
from research.core.errors import UserError, positive
from research.core.files import write_json
from research.evaluation import plots
from research.training.hardware import PEAKS

SPLIT = f"--xla_force_host_platform_device_count={CORES} --xla_cpu_multi_thread_eigen=false"
"""One XLA device a core, of one thread each: what runs best on a CPU, by --place shard_map."""

WORK = {
    "cnn": ("images/s", "the net of `mnist_cnn`"),
    "dcgan28": ("images/s", "DCGAN at 28x28, batch 64"),
    "dcgan64": ("images/s", "DCGAN at 64x64, batch 64"),
    "transformer": ("tokens/s", "a Transformer in nanoGPT's setting for a CPU"),
    "lstm": ("characters/s", "an LSTM, 2 layers of 128"),
    "gpt2": ("tokens/s", "GPT-2 of 124 M parameters in bfloat16"),
    "dqn": ("frames/s", "DQN on CartPole in purejaxrl's setting"),
    "ppo": ("frames/s", "PPO on CartPole in purejaxrl's setting"),
    "pqn": ("frames/s", "PQN on CartPole in purejaxql's setting"),
    "pqn_minatar": ("frames/s", "PQN on MinAtar's Breakout in purejaxql's setting"),
    "solved": ("seeds/h", "PPO on CartPole to a return of 475"),
    "seeds": ("frames/s", "PQN on CartPole, all seeds together"),
    "cartpole": ("steps/s", "CartPole alone"),
    "records": ("images/s", "reading CIFAR-10's records, random resized crops of 32 pixels, 2 workers"),
    "folder": ("images/s", "reading JPEGs of 300 to 500 pixels, random resized crops of 224, 2 workers"),
}
"""The unit of each benchmark, and what is measured."""

PEERS = {"dqn": "purejaxrl", "ppo": "purejaxrl", "pqn": "purejaxql", "pqn_minatar": "purejaxql"}
"""The codebase that each benchmark of reinforcement learning is beside."""


SEEDS = (1, 2, 4, 8, 16, 32, 64)


class Contender(NamedTuple):
    """One side of a benchmark.

    make     what makes its round, in a process of ours; None for one of `experiments.peers`
    flags    XLA_FLAGS of its process
    command  the command of its process, where it is not ours
    """

    make: Callable[[], Callable[[], float]] | None
    flags: str = ""
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """The options of `experiments.benchmark`.

    Attributes:
        what: training whose speed is measured
        rounds: number of measurements of each contender
        clone: directory of a clone of the other codebase
        python: a Python that has what the other codebase pins, or Gymnasium
        num_envs: number of environments, for cartpole
        output: JSON file that the figures are written to, for `experiments.results`
        contender: name of the contender that this process is; the benchmark itself sets it
    """

    what: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(constructor=tyro.extras.literal_type_from_choices(tuple(WORK)))
    ]
    rounds: int = 7
    clone: Path | None = None
    python: Path | None = None
    num_envs: int = 1024
    output: Path | None = None
    contender: str = ""

    def __post_init__(self) -> None:
        positive(self, "", "rounds", "num_envs")
        check_output(self.output)
        if self.clone is not None and not self.clone.is_dir():
            raise UserError(f"--clone: there is no directory {self.clone}")
        if self.python is not None and shutil.which(self.python) is None:
            raise UserError(f"--python: there is no program {self.python}")


def contenders(options: Options) -> dict[str, Contender]:
    """By name. The first is compared with the others."""
    what = options.what
    if what in LOADING:
        theirs = lambda how: Contender(lambda: pytorch_images(what, how))
        return {
            "samestep": Contender(lambda: samestep_images(what)),
            "PyTorch, as its example": theirs("floats"),
            "PyTorch, standardised by the batch": theirs("bytes"),
        }
    if what == "cartpole":
        peer = {"Gymnasium": _peer(options, "gymnasium_cartpole", options.num_envs)} if options.python else {}
        ours = lambda fresh: Contender(lambda: samestep_cartpole(options.num_envs, fresh))
        return {"samestep": ours(True), "samestep, the same starts": ours(False)} | peer
    if what == "solved":
        cleanrl = {"CleanRL, 1 seed": _peer(options, "cleanrl_ppo", options.clone)} if options.clone else {}
        sb3 = {"Stable-Baselines3, 1 seed": _peer(options, "sb3_ppo", ".")} if options.python else {}
        return {"samestep, 10 seeds": Contender(lambda: samestep_solved(10))} | cleanrl | sb3
    if what == "seeds":
        of = lambda seeds: Contender(lambda: samestep_rl("pqn", seeds))
        return {"1 seed" if n == 1 else f"{n} seeds": of(n) for n in SEEDS}
    if what in PEERS:
        peer = {PEERS[what]: _peer(options, f"{PEERS[what]}_{what}", options.clone)} if options.clone else {}
        return {"samestep": Contender(lambda: samestep_rl(what))} | peer
    net = lambda place_name: lambda: (samestep_dcgan if what in DCGAN else samestep)(what, place_name)
    peers = lambda how: lambda: (pytorch_dcgan if what in DCGAN else pytorch)(what, how)
    tuned = ("channels last", "channels_last") if what == "cnn" or what in DCGAN else ("compiled, fused AdamW", "best")
    split = {} if what == "gpt2" else {f"samestep, {CORES} devices": Contender(net("shard_map"), SPLIT)}
    return split | {
        "samestep, 1 device": Contender(net("jit")),
        "PyTorch as installed": Contender(peers("eager")),
        f"PyTorch, {tuned[0]}": Contender(peers(tuned[1])),
    }


def _peer(options: Options, name: str, where: Any) -> Contender:
    return Contender(None, "", (str(options.python or sys.executable), "-m", "experiments.peers", name, str(where)))


def compete(options: Options) -> tuple[dict[str, list[float]], dict[str, int]]:
    """The figures of each contender, by round; they take turns. And the bytes that its processes held at most, where
    they load data. Raises UserError where a contender ends before its last round."""
    processes = {}
    for name, contender in contenders(options).items():
        ours = (sys.executable, *shlex.split(command_of("benchmark", replace(options, contender=name)))[1:])
        environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {contender.flags}".strip()}
        processes[name] = subprocess.Popen(
            contender.command or ours, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    memory: dict[str, int] = {}

    def turn(name: str, process: subprocess.Popen) -> float:
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the empty line tells
            print(file=process.stdin, flush=True)
        while options.what in LOADING and not select.select([process.stdout], [], [], 0.5)[0]:
            memory[name] = max(memory.get(name, 0), tree_memory(process.pid))
        line = process.stdout.readline()
        if not line:
            where = "" if options.clone is None else f", and whether {options.clone} is a clone of what it needs"
            raise UserError(f"the contender {name} ended with status {process.wait()}: see its message above{where}")
        return float(line)

    try:
        warm = {name: turn(name, process) for name, process in processes.items()}  # compiles; does not count
        figures: dict[str, list[float]] = {name: [] for name in warm}
        for _ in range(options.rounds):
            for name, process in processes.items():
                figures[name].append(turn(name, process))
        for process in processes.values():
            process.communicate()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return figures, memory


def record(
    options: Options, figures: dict[str, list[float]], memory: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """What is written to `--output`: the figures of each contender, and where they come from.

    memory  bytes by contender, see `compete`
    """
    unit, title = WORK[options.what]
    peer = (" --clone DIR" if options.clone else "") + (" --python PYTHON" if options.python else "")
    envs = f" --num-envs {options.num_envs}" if options.what == "cartpole" else ""
    ours = next(iter(figures.values()))
    command = f"python -m experiments.benchmark {options.what} --rounds {options.rounds}{envs}{peer}"
    return {
        "about": {"title": title, **provenance(command, device())},
        "unit": unit,
        "contenders": [
            {
                "name": name,
                "median": statistics.median(values),
                "least": min(values),
                "most": max(values),
                "ratio": statistics.median(a / b for a, b in zip(ours, values, strict=True)),
                **({"memory": memory[name]} if name in memory else {}),
            }
            for name, values in figures.items()
        ],
    }


def device() -> str:
    """What JAX calls the first device; asked of a process of its own, which lets go of it."""
    ask = "import jax; print(jax.devices()[0].device_kind)"
    return subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def benchmark(options: Options) -> None:
    """Prints the table, or is a contender: plays a round for each line of standard input."""
    if options.contender:
        make = contenders(options)[options.contender].make
        assert make is not None
        once = make()
        for _ in sys.stdin:
            print(once(), flush=True)
        return
    if options.what == "folder":
        photos()  # made once: the contenders start together
    result = record(options, *compete(options))
    columns = ["contender", f"median {result['unit']}", "least", "most", "ours is so many times that"]
    peak = PEAKS.get(device()) if options.what == "gpt2" else None
    if peak is not None:
        columns.append("model FLOP utilisation")
    if options.what in LOADING:
        columns.append("memory")
    rows = []
    for row in result["contenders"]:
        numbers = (row["median"], row["least"], row["most"])
        used = [] if peak is None else [f"{row['median'] * TEXT[options.what].operations() / peak:.1%}"]
        held = [size(row["memory"])] if "memory" in row else []
        rows.append((row["name"], *map(thousands, numbers), f"{row['ratio']:.2f}", *used, *held))
    print_table(columns, rows, options.what)
    print(f"{options.rounds} rounds, {CORES} cores, load {os.getloadavg()[0]:.1f}")
    if options.output is not None:
        write_json(options.output, result)
        if options.what == "seeds":
            speeds = [row["median"] for row in result["contenders"]]
            plots.growth(SEEDS, speeds, "seeds", result["unit"], options.output.with_suffix(".png"))


main = script("benchmark", __doc__, Options, benchmark)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

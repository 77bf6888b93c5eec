"""Does every config compile for devices that aren't here? python -m experiments.compiled [NAME ...] [options].

Each cell is a command line of `experiments.compile`: a config's training in its own dtype or in bfloat16, or a large
Transformer in one of several layouts, compiled for some devices by their own compiler, in a process of its own. Cells
of compilers that are not installed are left: run it once in each environment that has one.
Cells that are in the file already, of the same code, are kept.
"""

import ast
import dataclasses
import functools
import hashlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from experiments.compile import Command
from experiments.console import check_output, script
from experiments.results import ROOT, provenance
from research.core.console import say
from research.core.errors import NotInstalled, RunError, UserError
from research.core.experiment import Experiment
from research.core.files import write_json
from research.data import made_up
from research.training import aot, config
from research.training.checks import check_dtype
from research.training.topology import parse, topology

TOPOLOGIES = ("v5e:2x4", "h100", "h100:8", "v6e:2x4")
LARGE_TOPOLOGIES = {"v5e:16x16": 256, "v5p:4x4x8": 128}
"""Of the Transformers, with the number of devices."""

LLAMA = (
    "--net.stack.activation swiglu --net.stack.positions rotary --net.stack.remat full --data.context 2048 "
    "--loss-chunk 1024"
)
TRANSFORMERS = {
    "1B": "--net.stack.layers 16 --net.stack.width 2048 --net.stack.heads 32 --net.stack.num-kv-heads 8 "
    "--net.stack.mlp-dim 8192 --data.vocabulary 128256",
    "8B": "--net.stack.layers 32 --net.stack.width 4096 --net.stack.heads 32 --net.stack.num-kv-heads 8 "
    "--net.stack.mlp-dim 14336 --data.vocabulary 128256 --net.no-tied",
    "30B": "--net.stack.layers 60 --net.stack.width 6656 --net.stack.heads 52 --net.stack.mlp-dim 17920 "
    "--data.vocabulary 32000 --net.no-tied",
}
"""Options of `gpt2`, with the sizes of Llama 3.2 1B, of Llama 3 8B (Grattafiori et al. 2024, arXiv:2407.21783) and of
LLaMA 33B (Touvron et al. 2023, arXiv:2302.13971)."""

LAYOUTS = {"replicated": "", "fsdp": "--shard fsdp", "data-x-model": "--shard tensor --mesh data={data},model=4"}


def main(arguments: list[str]) -> int:
    """Returns the exit status, see `console.status`."""
    if arguments[:1] == ["--cell"]:
        print(json.dumps(cell(*arguments[1:])))
        return 0
    return script("compiled", __doc__, table)(arguments)


def table(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    topologies: tuple[str, ...] = TOPOLOGIES,
    dtypes: tuple[Literal["own", "bfloat16"], ...] = ("own", "bfloat16"),
    limit: int = 600,
    quick: tyro.conf.FlagCreatePairsOff[bool] = False,
    fresh: tyro.conf.FlagCreatePairsOff[bool] = False,
    large: tyro.conf.FlagCreatePairsOff[bool] = False,
    output: Path | None = None,
) -> None:
    """Fills the file.

    Args:
        names: configs; default: all
        topologies: devices to compile for, as `experiments.compile --topology` has them; not of --large
        dtypes: own: the one that a config says
        limit: seconds after which a compilation is ended; it is then tried with the least effort
        quick: compile with the least effort at once; the memory is then an estimate from above
        fresh: compile the cells again that are in the file
        large: compile Transformers of 1B, 8B and 30B parameters in place of the configs, each replicated, by FSDP, and
            over data and model, for slices of 256 and 128 chips; one sequence of 2,048 tokens a chip
        output: JSON file with the cells, for `experiments.results`; default: compiled.json or compiled_large.json
            there
    """
    output = output or ROOT / "docs" / "results" / f"compiled{'_large' if large else ''}.json"
    check_output(output)
    jax.config.update("jax_platforms", "cpu")
    for name in names:
        config.load(name)
    there = json.loads(output.read_text()) if output.exists() else {"about": {}, "compiled": {}}
    found: dict[str, Any] = there["compiled"]
    codes: dict[str, str] = there["about"].get("code", {})
    for where in LARGE_TOPOLOGIES if large else topologies:
        try:
            topology(where)
        except NotInstalled as reason:
            say(str(reason))
            continue
        rows = transformers(LARGE_TOPOLOGIES[where]) if large else configs(names or config.names(), dtypes)
        for row, arguments in rows.items():
            key, code = f"{row} {where}", digest(arguments[0])
            codes[row.split()[0]] = code
            if not fresh and found.get(key, {}).get("code") == code:
                continue
            found[key] = {**compiled([*arguments, "--topology", where], limit, quick), "code": code}
            say(f"{key}: {found[key]}")
            options = [*(["--large"] if large else []), *(["--quick"] if quick else []), f"--limit {limit}"]
            about = provenance(" ".join(["python -m experiments.compiled", *options]), "cpu")
            about |= {"rows": ["parameters", "layout"] if large else ["config", "dtype"], "code": codes}
            write_json(output, {"about": about, "compiled": dict(sorted(found.items()))})


def configs(names: Iterable[str], dtypes: Iterable[str]) -> dict[str, list[str]]:
    """The command lines of the configs by row, "NAME DTYPE"."""
    pairs = [(name, config.load(name).update.dtype if dtype == "own" else dtype) for dtype in dtypes for name in names]
    return {f"{name} {dtype}": [name, "--dtype", dtype] for name, dtype in pairs}


def transformers(devices: int) -> dict[str, list[str]]:
    """The command lines of the Transformers by row, "SIZE LAYOUT"."""
    same = f"gpt2 {LLAMA} --data.batch {devices} --data.evaluation-batch {devices} --run.steps-per-dispatch 1"
    return {
        f"{size} {layout}": f"{same} {options} {places.format(data=devices // 4)}".split()
        for size, options in TRANSFORMERS.items()
        for layout, places in LAYOUTS.items()
    }


def digest(name: str) -> str:
    """The state of the code that the programs of a config are made of: the core, and what the config imports, directly
    or through others, but for its reports. Comments and docstrings don't count."""
    others = (ROOT / "research" / "training" / file for file in ("aot.py", "dispatch.py", "topology.py"))
    files = {*(ROOT / "research" / "core").glob("*.py"), *others}
    modules = [f"configs.{name}"]
    for module in modules:
        path = ROOT / f"{module.replace('.', '/')}.py"
        files.add(path)
        programs = [other for other in sorted(imported(path)) if not other.startswith("research.evaluation.")]
        modules += [other for other in programs if other not in modules]
    return hashlib.sha256("".join(_code(path) for path in sorted(files)).encode()).hexdigest()[:12]


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """The modules of ours that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if (ROOT / f"{name.replace('.', '/')}.py").exists() else node.module for name in whole}
    return frozenset(name for name in found if name.split(".")[0] in ("research", "configs", "experiments"))


@functools.cache
def _code(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = lambda line: isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
            node.body = [line for line in node.body if not text(line)]
    return ast.dump(tree)


def compiled(arguments: list[str], limit: int, quick: bool) -> dict[str, Any]:
    """The content of a cell; a compiler that crashes or takes too long is one too."""
    options = ["--quick"] if quick else []
    command = [sys.executable, "-m", "experiments.compiled", "--cell", *arguments, *options]
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit} s"} if quick else compiled(arguments, limit, True)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or [""])[-1]
        return {"failed": f"crashed: {last[:200] or f'exit status {ran.returncode}'}"}
    return json.loads(ran.stdout.splitlines()[-1])


def cell(name: str, *arguments: str) -> dict[str, Any]:
    """A cell, compiled in this process: of a command line of `experiments.compile`, its sizes raised by `divided`."""
    jax.config.update("jax_platforms", "cpu")
    command = config.parse(name, list(arguments), Command, "compiled")
    devices, effort = topology(command.topology), "quick" if command.quick else "full"
    try:
        check_dtype(command.config, parse(command.topology).platform)
        with tempfile.TemporaryDirectory() as directory:
            experiment, _ = made_up.available(divided(command.config, len(devices.devices)), Path(directory))
            facts = aot.compiled(
                experiment, devices, command.place, mesh=command.mesh, shard=command.shard, quick=command.quick
            )
    except (RunError, UserError) as error:
        return {"failed": str(error)[:200], "effort": effort}
    bound = aot.bound(facts, devices)
    return {
        "memory": facts.memory,
        "fits": facts.memory <= devices.memory,
        "collectives": facts.collectives,
        "bound": bound if experiment.update.dtype == "bfloat16" and math.isfinite(bound) else None,
        "seconds": round(facts.seconds, 1),
        "effort": effort,
    }


def divided(experiment: Any, devices: int) -> Experiment:
    """The experiment, its sizes raised to the next ones that the devices divide."""
    up = lambda size: -(-size // devices) * devices
    if not hasattr(experiment, "data"):
        fields = {field.name for field in dataclasses.fields(experiment)} & {"num_envs", "batch", "episodes"}
        return dataclasses.replace(experiment, **{name: up(getattr(experiment, name)) for name in fields})
    data = experiment.data
    raised = dataclasses.replace(data, batch=up(data.batch), evaluation_batch=up(data.evaluation_batch))
    return dataclasses.replace(experiment, data=raised)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Does every config compile for devices that aren't here? python -m experiments.compiled [NAME ...] [options].

Each cell is a config's training, in its own dtype or in bfloat16, compiled for some devices by their own compiler, in a
process of its own. Cells of compilers that are not installed are left: run it once in each environment that has one.
Cells that are in the file already, of the same code, are kept.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.console import status
from experiments.results import ROOT, provenance
from research.core.console import say
from research.core.errors import RunError, UserError
from research.core.experiment import Experiment
from research.core.files import write_json
from research.data import made_up
from research.training import aot, config
from research.training.checks import check_dtype
from research.training.topology import NotInstalled, parse, topology

TOPOLOGIES = ("v5e:2x4", "h100", "h100:8", "v6e:2x4")


def main(arguments: list[str]) -> int:
    """Returns the exit status, see `console.status`."""
    if arguments[:1] == ["--cell"]:
        print(json.dumps(cell(*arguments[1:])))
        return 0
    return status(lambda: tyro.cli(table, args=arguments, prog="python -m experiments.compiled", description=__doc__))


def table(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    topologies: tuple[str, ...] = TOPOLOGIES,
    limit: int = 600,
    quick: tyro.conf.FlagCreatePairsOff[bool] = False,
    fresh: tyro.conf.FlagCreatePairsOff[bool] = False,
    output: Path = ROOT / "docs" / "results" / "compiled.json",
) -> None:
    """Fills the file.

    Args:
        names: configs; default: all
        topologies: devices to compile for, as `experiments.compile --topology` has them
        limit: seconds after which a compilation is ended; it is then tried with the least effort
        quick: compile with the least effort at once; the memory is then an estimate from above
        fresh: compile the cells again that are in the file
        output: JSON file with the cells, for `experiments.results`
    """
    jax.config.update("jax_platforms", "cpu")
    for name in names:
        config.load(name)
    found: dict[str, Any] = json.loads(output.read_text())["compiled"] if output.exists() else {}
    code = digest()
    for where in topologies:
        try:
            topology(where)
        except NotInstalled as reason:
            say(str(reason))
            continue
        for own in (True, False):
            for name in names or config.names():
                dtype = config.load(name).update.dtype
                if not own and dtype == "bfloat16":
                    continue
                key = f"{name} {dtype if own else 'bfloat16'} {where}"
                if not fresh and found.get(key, {}).get("code") == code:
                    continue
                found[key] = {**compiled(key, limit, quick), "code": code}
                say(f"{key}: {found[key]}")
                options = [*(["--quick"] if quick else []), f"--limit {limit}"]
                about = provenance(" ".join(["python -m experiments.compiled", *options]), "cpu")
                write_json(output, {"about": about, "compiled": dict(sorted(found.items()))})


def digest() -> str:
    """The state of the code that a program is made of."""
    files = sorted(path for folder in ("research", "configs") for path in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def compiled(key: str, limit: int, quick: bool) -> dict[str, Any]:
    """The content of a cell; a compiler that crashes or takes too long is one too."""
    command = [sys.executable, "-m", "experiments.compiled", "--cell", *key.split(), "quick" if quick else "full"]
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit} s"} if quick else compiled(key, limit, True)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or [""])[-1]
        return {"failed": f"crashed: {last[:200] or f'exit status {ran.returncode}'}"}
    return json.loads(ran.stdout.splitlines()[-1])


def cell(name: str, dtype: str, where: str, effort: str) -> dict[str, Any]:
    """A cell, compiled in this process."""
    jax.config.update("jax_platforms", "cpu")
    experiment: Any = config.load(name)
    experiment = dataclasses.replace(experiment, update=dataclasses.replace(experiment.update, dtype=dtype))
    devices = topology(where)
    try:
        check_dtype(experiment, parse(where).platform)
        with tempfile.TemporaryDirectory() as directory:
            experiment, _ = made_up.available(divided(experiment, len(devices.devices)), Path(directory))
            facts = aot.compiled(experiment, devices, quick=effort == "quick")
    except (RunError, UserError) as error:
        return {"failed": str(error)[:200], "effort": effort}
    return {
        "memory": facts.memory,
        "fits": facts.memory <= devices.memory,
        "collectives": facts.collectives,
        "seconds": round(facts.seconds, 1),
        "effort": effort,
    }


def divided(experiment: Any, devices: int) -> Experiment:
    """The experiment, its sizes raised to the next ones that the devices divide."""
    up = lambda size: -(-size // devices) * devices
    if not hasattr(experiment, "data"):
        sizes = {name: up(getattr(experiment, name)) for name in ("num_envs", "batch", "episodes")}
        return dataclasses.replace(experiment, **sizes)
    data = experiment.data
    raised = dataclasses.replace(data, batch=up(data.batch), evaluation_batch=up(data.evaluation_batch))
    return dataclasses.replace(experiment, data=raised)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

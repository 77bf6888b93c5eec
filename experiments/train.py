"""Train a config: python -m experiments.train NAME [options]. NAME --help lists all options."""

import sys

import jax

from experiments.console import measured, number, show, status, unnamed
from research.training import config
from research.training.processes import supervised
from research.training.run import train


def main(arguments: list[str]) -> int:
    """Return the exit status, see `console.status`."""
    if (ended := unnamed(arguments, "experiments.train", _list)) is not None:
        return ended
    run = lambda: status(lambda: _train(*arguments))
    together = any(argument.startswith("--processes") for argument in arguments)
    return supervised("experiments.train", arguments, run) if together else run()


def _list() -> None:
    width = max(map(len, config.names()))
    print(f"{__doc__}\n\nconfigs:")
    for name in config.names():
        print(f"  {name:{width}}  {config.header(name).splitlines()[0]}")


def _train(name: str, *arguments: str) -> None:
    result = train(name, config.parse(name, list(arguments)))
    if jax.process_index():  # one of several processes shows what came out
        return
    title = f"{name}: test metrics of the {result['state']} checkpoint, step {result['step']}"
    show(title, measured(result), {"published": result["published"]})
    print(f"{result['seconds']:.1f} s, {number(result['steps_per_second']) or 'no'} steps/s, {result['device']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

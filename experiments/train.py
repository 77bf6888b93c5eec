"""Train a config: python -m experiments.train NAME [options]. NAME --help lists all options."""

import sys

from research.training.supervisor import supervised


def main(arguments: list[str]) -> int:
    """Return the exit status, see `console.status`."""
    together = any(argument.startswith("--processes") for argument in arguments)
    run = lambda: _main(arguments)
    return supervised("experiments.train", arguments, run) if together else run()


# The functions below import what they need: a process that only watches its child, see `supervised`, stays small.


def _main(arguments: list[str]) -> int:
    from experiments.console import status, unnamed

    ended = unnamed(arguments, "experiments.train", _list)
    return status(lambda: _train(*arguments)) if ended is None else ended


def _list() -> None:
    from research.training import config

    width = max(map(len, config.names()))
    print(f"{__doc__}\n\nconfigs:")
    for name in config.names():
        print(f"  {name:{width}}  {config.header(name).splitlines()[0]}")


def _train(name: str, *arguments: str) -> None:
    import jax

    from experiments.console import measured, number, show
    from research.training import config
    from research.training.run import train

    result = train(name, config.parse(name, list(arguments)))
    if jax.process_index():  # one of several processes shows what came out
        return
    title = f"{name}: test metrics of the {result['state']} checkpoint, step {result['step']}"
    show(title, measured(result), {"published": result["published"]})
    print(f"{result['seconds']:.1f} s, {number(result['steps_per_second']) or 'no'} steps/s, {result['device']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

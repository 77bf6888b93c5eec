"""A tiny run of digits_cnn, for the tests of what surrounds training."""


def tiny(steps: int = 4) -> list[str]:
    """Its options: so many steps, two a dispatch, an evaluation and a checkpoint after each dispatch."""
    net = "--net.widths 4 --net.depth 1 --data.batch 8"
    return f"{net} --steps {steps} --run.steps-per-dispatch 2 --run.evaluate-every 2 --run.save-every 2".split()


TINY = tiny()

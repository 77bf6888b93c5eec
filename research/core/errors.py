"""What goes wrong, in one clear message each."""


class Mistake(ValueError):
    """What the user typed can't be run: one clear message that names the mend; exit status 2."""


class Failure(RuntimeError):
    """Something went wrong on the way: one clear message that names the mend; exit status 1."""

"""What goes wrong, in one clear message each."""


class UserError(ValueError):
    """What the user typed can't be run: one clear message that names the mend; exit status 2."""


class RunError(RuntimeError):
    """Something went wrong on the way: one clear message that names the mend; exit status 1."""

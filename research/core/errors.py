"""What goes wrong, in one clear message each."""

from typing import Any


class UserError(ValueError):
    """What the user typed can't be run: one clear message that names the mend; exit status 2."""


class RunError(RuntimeError):
    """Something went wrong on the way: one clear message that names the mend; exit status 1."""


def positive(config: Any, prefix: str, *names: str) -> None:
    """Raises UserError unless the fields `names` of `config` are None, or whole numbers (or tuples) of at least 1."""
    for name in names:
        value = getattr(config, name)
        sizes = value if isinstance(value, tuple) else (value,)
        if value is not None and min(sizes, default=0) < 1:
            shown = f"{prefix}.{name}" if prefix else name
            raise UserError(f"{shown} must be at least 1, not {value}")

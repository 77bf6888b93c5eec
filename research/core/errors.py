"""What goes wrong, in one clear message each."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any


class UserError(ValueError):
    """What the user typed can't be run: one clear message that names the mend; exit status 2."""


class NotInstalled(UserError):
    """What the user typed needs a package that can't be used here; the message says how it could."""


class RunError(RuntimeError):
    """Something went wrong on the way: one clear message that names the mend; exit status 1."""


def nearest(name: str, names: Iterable[str], near: Sequence[str] = ()) -> str:
    """The names nearest to a wrong one, as the end of a message: "did you mean …?", or else all of them.

    near  those that are known to be nearest
    """
    known = list(names)
    near = near or difflib.get_close_matches(name, known, 3, 0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}"


def positive(config: Any, prefix: str, *names: str) -> None:
    """Raises UserError unless the fields `names` of `config` are None, or whole numbers (or tuples) of at least 1."""
    for name in names:
        value = getattr(config, name)
        sizes = value if isinstance(value, tuple) else (value,)
        if value is not None and min(sizes, default=0) < 1:
            shown = f"{prefix}.{name}" if prefix else name
            raise UserError(f"{shown} must be at least 1, not {value}")


def between(config: Any, prefix: str, low: float, high: float, *names: str) -> None:
    """Raises UserError unless the fields `names` of `config` are None, or numbers (or tuples) from `low` to `high`,
    inclusive. Values that a sweep traces are not looked at."""
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(low <= x <= high for x in numbers if isinstance(x, int | float)):
            shown = f"{prefix}.{name}" if prefix else name
            allowed = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise UserError(f"{shown} must be {allowed}, not {value}")

"""Types that all modules share."""

from typing import Any

Tree = Any
"""A pytree of arrays."""

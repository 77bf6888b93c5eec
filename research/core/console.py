"""Where people are told things."""

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where people are told things; standard output is for results."""


def warn(text: str) -> None:
    """One line for people, above the progress bar where there is one."""
    console.print(f"warning: {text}", markup=False)

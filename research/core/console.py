"""Messages for the person at the terminal, on standard error."""

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Standard error; standard output is for results."""


def say(text: str) -> None:
    """Print one line, above the progress bar where there is one."""
    console.print(text, markup=False)


def warn(text: str) -> None:
    """Print one line that begins with "warning:"."""
    say(f"warning: {text}")

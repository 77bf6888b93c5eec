"""Messages for the person at the terminal, on standard error."""

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Standard error; standard output is for results."""


def say(text: str) -> None:
    """Print one line, above the progress bar where there is one."""
    console.print(text, markup=False)


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def warn(text: str) -> None:
    """Print one line that begins with "warning:"."""
    say(f"warning: {text}")

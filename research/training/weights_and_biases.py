"""The metrics of a run on Weights & Biases (the extra `wandb`), by --log.wandb.

Its own environment variables hold: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, and others.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from research.core.errors import UserError


def check_installed() -> None:
    """Raises UserError where the package is not installed. It is not imported."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("--log.wandb needs the package wandb: pip install -e .[wandb]")


class WeightsAndBiases:
    """The run of `directory`, with its config.json. A resumed run is continued, by the id in wandb/id of the directory;
    steps that it repeats are ignored.

    Raises UserError where Weights & Biases can't start, such as without a login.
    """

    def __init__(self, directory: Path) -> None:
        import wandb

        about, known = directory / "config.json", directory / "wandb" / "id"
        self._image = wandb.Image
        try:
            self._run = wandb.init(
                dir=directory,
                name=directory.resolve().name,
                id=known.read_text() if known.exists() else None,
                resume="allow",
                config=json.loads(about.read_text()) if about.exists() else None,
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"Weights & Biases can't start ({reason}): run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        known.parent.mkdir(exist_ok=True)
        known.write_text(self._run.id)

    def numbers(self, step: int, unix: float, values: Mapping[str, float]) -> None:
        """Add the values of a step, by name."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, tag: str, png: Path) -> None:
        """Add a picture of a step, to what is there: a step that was logged before takes no more."""
        self._run.log({tag: self._image(str(png)), "step": step}, commit=False)

    def flush(self) -> None:
        """Nothing: a thread of its own sends what there is."""

    def close(self) -> None:
        """Wait until everything is sent, or written where it is offline."""
        self._run.finish()

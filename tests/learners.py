"""The tiny settings that every file of research/learners brings, for what holds for every learner."""

import importlib
from pathlib import Path

import research.learners
from research.core.experiment import Experiment

FILES = sorted(Path(research.learners.__path__[0]).glob("*.py"))
MODULES = [importlib.import_module(f"research.learners.{path.stem}") for path in FILES if path.stem != "__init__"]
EXPERIMENTS: dict[str, Experiment] = {
    name: experiment for module in MODULES if hasattr(module, "tiny") for name, experiment in module.tiny().items()
}

"""Learners: one algorithm a file, with its tiny settings."""

import importlib
import pkgutil

from research.core.experiment import Experiment


def tiny() -> dict[str, Experiment]:
    """The tiny settings that the files here bring, by name: for what holds for every learner."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {name: setting for module in modules if hasattr(module, "tiny") for name, setting in module.tiny().items()}

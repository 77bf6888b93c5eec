"""Eight fake devices, exact matrix products, programs compiled quickly and kept between runs; groups for xdist."""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

# The suite runs one process a core, and so do the processes it starts: one thread each, and a core of its own.
worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker is not None and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
# A program is compiled in one part: each of 32, for as many threads, would cost its own.
FLAGS = "--xla_cpu_multi_thread_eigen=false --xla_cpu_parallel_codegen_split_count=1"
# With the older emitters programs compile in a third to a half of the time.
FLAGS += " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
# Tests compile for most of their time, and what they claim holds of unoptimised programs too: see `optimised`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

if os.environ.get("SAMESTEP_REQUIRE_TORCH") and find_spec("torch") is None:
    raise pytest.UsageError(
        "SAMESTEP_REQUIRE_TORCH is set, and PyTorch is not installed: the tests that compare with it would be skipped. "
        'Install it (pip install -e ".[bench]") or unset the variable'
    )

LONGEST = (
    "test_gan",
    "test_sequences",
    "test_laws",
    "test_golden",
    "test_configs",
    "test_extending",
    "test_command_line",
    "test_text_runs",
    "test_processes",
    "test_jobs",
    "test_bucket",
    "test_dqn",
    "test_steps",
    "test_samples",
    "test_export",
    "test_inception",
    "test_places",
    "test_dtypes",
    "test_resume",
    "test_experiments",
)
"""Files that are begun first, so that both workers end at about the same time; except in random order."""

PARTS = {"test_resume": "whole", "test_laws": "name", "test_golden": "name", "test_configs": "name"}
"""Files whose tests need not share a process where the first word of this parameter differs. Of a config it is the data
set or the environment, which a process reads or checks once."""


@pytest.fixture
def rng():
    """A NumPy generator of the test's own: what a test draws doesn't hang on the tests that ran before it."""
    return np.random.default_rng(0)


@pytest.fixture
def optimised():
    """For a test that trains for longer than its program compiles, or that is about what the compiler makes of one."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def dropped():
    """After each file, what it compiled is dropped: a worker that runs many of them stays small."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def without_pictures():
    """For files whose runs are about something else: pictures take more than half of the time of a tiny run.
    test_experiments.py, test_samples.py and test_text_runs.py have them."""
    from research.training import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "reported", lambda *_: {})
        patch.setattr(run, "learning_curves", lambda *_: None)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """For `--dist loadgroup`: a worker runs a whole file, or the tests of one parameter."""
    if worker is None:
        return
    for item in items:
        file, values = item.path.stem, item.callspec.params if hasattr(item, "callspec") else {}
        part = str(values.get(PARTS.get(file), "")).partition("_")[0]
        item.add_marker(pytest.mark.xdist_group(f"{file} {part}"))
    if not config.pluginmanager.hasplugin("randomly"):
        items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """Tracing makes so many small objects that looking for garbage as often as usual takes a tenth of the time. What
    was imported is never garbage."""
    gc.freeze()
    gc.set_threshold(50_000)

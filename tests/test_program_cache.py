"""The cache of compiled programs: where it is, and for whom."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from research.training import program_cache
from research.training.program_cache import keep_programs

OPTIONS = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory, and JAX as if it had not been told of a cache."""
    before = {option: getattr(jax.config, option) for option in OPTIONS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(program_cache.socket, "gethostname", lambda: "here")
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for option, value in before.items():
        jax.config.update(option, value)
    compilation_cache.reset_cache()


def kept(home) -> list[Path]:
    return sorted((home / ".cache" / "samestep" / "here").glob("*-cache"))


def test_programs_of_an_accelerator_are_kept_up_to_a_bound(home, monkeypatch):
    """A CPU plays the accelerator: JAX keeps, finds and deletes programs of each platform alike."""
    monkeypatch.setattr(program_cache, "LIMIT", 2**16)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    keep_programs("gpu", 1)

    def program(n):
        jax.jit(lambda x: jnp.sin(x + n) @ x)(jnp.ones((4, 4)))

    for n in range(30):
        program(n)
    found = [path for path in kept(home) if "lambda" in path.name]
    assert found and sum(path.stat().st_size for path in kept(home)) <= 2**16
    jax.clear_caches()
    compilation_cache.reset_cache()
    program(29)
    assert [path for path in kept(home) if "lambda" in path.name and path not in found] == [], "it was found again"


@pytest.mark.parametrize("platform, processes", [("cpu", 1), ("tpu", 2)])
def test_others_are_not(home, platform, processes):
    keep_programs(platform, processes)
    assert jax.config.jax_compilation_cache_dir is None and not list(home.iterdir())


def test_a_cache_that_jax_was_told_of_stays(home, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    keep_programs("gpu", 1)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", "/shared")
    keep_programs("gpu", 1)
    assert jax.config.jax_compilation_cache_dir == "/shared" and not list(home.iterdir())


def test_where_it_can_not_be_made_nothing_is_kept(home, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    keep_programs("gpu", 1)
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    keep_programs("gpu", 1)
    assert jax.config.jax_compilation_cache_dir is None

"""Compiled programs on disk, so that a run that is started again need not compile again."""

import os
import socket
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

DIRECTORY = "jax_compilation_cache_dir"
"""JAX's option."""

LIMIT = 4 * 2**30
"""Bytes that a host's cache may have; what was used least recently is deleted."""


def keep_programs(platform: str, processes: int) -> None:
    """Lets JAX keep compiled programs on this host, in samestep/HOST of $XDG_CACHE_HOME or ~/.cache, up to `LIMIT`.

    platform   what programs are compiled for. CPUs compile quickly, and a program for one may not run on another: their
               programs are not kept
    processes  the number of processes of the run. Several of them can't have a cache each: JAX lets the first alone
               write, and those of GPUs tune their programs together

    A cache that JAX has been told of (`JAX_COMPILATION_CACHE_DIR`), for example one that hosts share, stays as it is:
    without a bound, unless `JAX_COMPILATION_CACHE_MAX_SIZE` gives one. Where the directory can't be made, none is kept.
    """
    told = "JAX_COMPILATION_CACHE_DIR" in os.environ or getattr(jax.config, DIRECTORY)
    if told or platform == "cpu" or processes > 1:
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")  # RuntimeError: there is no home
        directory = cache / "samestep" / (socket.gethostname() or "host")
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    jax.config.update(DIRECTORY, str(directory))
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", LIMIT)
    compilation_cache.reset_cache()  # else one that JAX did without at its first program would stay unused

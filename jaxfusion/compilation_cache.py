"""Compiled programs kept on disk, so that the next run of the same step starts without compiling it."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps what is compiled for an accelerator in ~/.cache/jaxfusion/xla, or under XDG_CACHE_HOME where that is set.

    A directory that was chosen, by JAX_COMPILATION_CACHE_DIR or jax.config, stays. Programs for the CPU are not kept:
    they compile quickly, and one that was made for another CPU's instructions may not run.
    """
    if jax.config.jax_compilation_cache_dir is None and jax.default_backend() != "cpu":
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxfusion" / "xla"))

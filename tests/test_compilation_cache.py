"""Where compiled programs are kept, and that a directory which somebody chose is left alone."""

from pathlib import Path

import jax
import pytest

from jaxfusion.compilation_cache import use_compilation_cache


@pytest.fixture
def cache_dir():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_nothing_is_kept_for_the_cpu(cache_dir):
    use_compilation_cache()
    assert cache_dir() is None


def test_an_accelerators_programs_are_kept_in_the_users_cache(cache_dir, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # there is none to ask
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    use_compilation_cache()
    assert cache_dir() == str(Path.home() / ".cache" / "jaxfusion" / "xla")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    use_compilation_cache()
    assert cache_dir() == str(tmp_path)

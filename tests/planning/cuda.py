"""Whether JAX can compile for described GPUs here: its CUDA build is large, and CI has it on one Python alone."""

from importlib.util import find_spec

import pytest

CUDA = find_spec("jax_plugins") is not None and find_spec("jax_plugins.xla_cuda13") is not None
needs_cuda_build = pytest.mark.skipif(not CUDA, reason="it needs JAX's CUDA build: pip install -e '.[cuda]'")

"""Before anything of the package is imported: JAX on the CPU, and jaxtyping's checks on for the whole package."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))  # for `from tests.references import ...` however pytest is started

import jax
from jax.tree_util import GetAttrKey
from jaxtyping import install_import_hook

_register_dataclass = jax.tree_util.register_dataclass


def _register_unchecked(cls: type, data_fields: Sequence[str], meta_fields: Sequence[str], **kwargs: Any) -> type:
    """JAX rebuilds a dataclass around all sorts of things: shapes, shardings, arrays with a device axis in front.

    It does so through __init__, where jaxtyping's checks are. In the tests it goes round them, so that what our own
    code builds is checked and what JAX builds is not.
    """
    if not cls.__module__.startswith("jaxfusion"):
        return _register_dataclass(cls, data_fields, meta_fields, **kwargs)

    def flatten(instance: Any) -> tuple[list, tuple]:
        data = [(GetAttrKey(name), getattr(instance, name)) for name in data_fields]
        return data, tuple(getattr(instance, name) for name in meta_fields)

    def unflatten(meta: tuple, data: Sequence) -> Any:
        instance = object.__new__(cls)
        for name, value in zip((*data_fields, *meta_fields), (*data, *meta), strict=True):
            object.__setattr__(instance, name, value)
        return instance

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of what the tests' time goes into
jax.tree_util.register_dataclass = _register_unchecked
install_import_hook(["jaxfusion.batch", "jaxfusion.config", "jaxfusion.models"], "beartype.beartype")

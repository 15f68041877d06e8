"""Before the package is imported: JAX on the CPU, and jaxtyping's checks on for batch, config and models."""

import gc
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what the tests' time goes into; here, and in the processes that tests start.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if version("jaxlib") < "0.11":  # a third of the time; later ones do not know the flag
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
sys.path.insert(0, str(Path(__file__).parents[1]))  # for `from tests.references import ...` however pytest is started

import jax
import pytest
from jax.tree_util import GetAttrKey
from jaxtyping import install_import_hook

# An int counts as a float, as everywhere else in Python's typing (PEP 484).
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

_register_dataclass = jax.tree_util.register_dataclass


def _register_unchecked(
    cls: type, data_fields: Sequence[str] = (), meta_fields: Sequence[str] = (), **kwargs: Any
) -> type:
    """JAX rebuilds a dataclass around all sorts of things: shapes, shardings, arrays with a device axis in front.

    It does so through __init__, where jaxtyping's checks are. In the tests it goes round them, so that what our own
    code builds is checked and what JAX builds is not.
    """
    if not cls.__module__.startswith("jaxfusion"):
        fields = (data_fields, meta_fields) if data_fields or meta_fields else ()
        return _register_dataclass(cls, *fields, **kwargs)

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


jax.tree_util.register_dataclass = _register_unchecked
install_import_hook(["jaxfusion.batch", "jaxfusion.config", "jaxfusion.models"], CHECKER)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the first few records of each built-in data set."""
    from jaxfusion.data.builtin import (
        BUILTIN,
        digit_choices,
        digit_dialogues,
        digit_scenes,
        guest_reviews,
        moving_digits,
        prepare,
        restaurant_reviews,
    )

    data_dir = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        for split, (_, images) in digit_scenes.SPLITS.items():
            patch.setitem(digit_scenes.SPLITS, split, (24, images))
        for module in (digit_choices, digit_dialogues, guest_reviews, moving_digits, restaurant_reviews):
            for split in module.SPLITS:
                patch.setitem(module.SPLITS, split, 24)
        for name in BUILTIN:
            prepare(name, data_dir)
    return data_dir


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Between two files: compiled programs are let go before the process has more pieces of memory than Linux gives it
    (vm.max_map_count, 65,530), where the next compilation would crash."""
    if nextitem is not None and nextitem.path != item.path and _num_memory_maps() > 20_000:
        jax.clear_caches()


def _num_memory_maps() -> int:
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


def pytest_collection_finish() -> None:
    """Tracing makes far more objects than garbage: what has been imported is not looked through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)

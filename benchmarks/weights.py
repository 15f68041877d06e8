"""Parameters from a seed, the same in every process that asks: our step and a peer's begin at the same ones."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxfusion.models.vlm import Model, Params, init
from jaxfusion.pretrained.table import flatten, unflatten

POOL = 1 << 20  # normal values that all leaves take theirs from: billions of new ones would take minutes


def random_params(model: Model) -> Params:
    """float32 arrays of the host: matrices of deviation 0.02, biases near 0, norms' scales near what they begin with;
    an adapter's second matrix is zero, as it begins. A leaf depends on its path and shape alone."""
    pool = 0.02 * np.random.default_rng(0).standard_normal(POOL, np.float32)
    shapes = flatten(jax.eval_shape(lambda rng: init(model, rng), jax.random.key(0)))
    with ThreadPoolExecutor() as threads:  # what takes the time is memory's first touch, of which one core does little
        leaves = threads.map(lambda item: _leaf(*item, pool), shapes.items())
        return unflatten(dict(zip(shapes, leaves, strict=True)))


def _leaf(path: str, leaf: Any, pool: np.ndarray) -> np.ndarray:
    if path.endswith("lora_b"):
        return np.zeros(leaf.shape, np.float32)
    shifted = np.roll(pool, zlib.crc32(path.encode()) % POOL)
    values = np.empty(leaf.size, np.float32)
    for start in range(0, leaf.size, POOL):
        values[start : start + POOL] = shifted[: leaf.size - start]
    values = values.reshape(leaf.shape)
    return values + 1 if path.endswith("scale") else values

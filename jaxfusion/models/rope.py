"""Rotary position embedding (Su et al. 2021), and the ways to stretch it over a longer context."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxfusion.config.model import RopeConfig


class Rotation(NamedTuple):
    """How one layer rotates: radians a position for each pair of dimensions, and what the result is multiplied by."""

    frequency: Float[Array | np.ndarray, " half"]
    magnitude: Float[Array | np.ndarray, ""]


def rotation(rope: RopeConfig, head_dim: int) -> Rotation:
    """float32 constants for heads of `head_dim`; a layer that does not rotate has frequencies of 0."""
    half = head_dim // 2
    if not rope.theta:
        return Rotation(np.zeros(half, np.float32), np.float32(1))
    frequency = rope.theta ** (-np.arange(half) / half)
    match rope.scaling:
        case "linear":
            frequency = frequency / rope.factor
        case "llama3":
            frequency = frequency * _by_turns(frequency, rope)
        case "yarn":
            frequency = frequency * _by_dimension(half, rope)
    return Rotation(frequency.astype(np.float32), np.float32(_magnitude(rope)))


def _by_turns(frequency: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Llama 3: what turns fast is left alone, what turns slowly divided by the factor, and linearly in between."""
    turns = rope.original_positions * frequency / (2 * math.pi)
    kept = np.clip((turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0, 1)
    return kept + (1 - kept) / rope.factor


def _by_dimension(half: int, rope: RopeConfig) -> np.ndarray:
    """YaRN (Peng et al. 2024): the same by the pairs' indices, linearly between those with the two numbers of turns."""

    def index(turns: float) -> float:
        return half * math.log(rope.original_positions / (2 * math.pi * turns)) / math.log(rope.theta)

    fast, slow = index(rope.fast_turns), index(rope.slow_turns)
    if rope.round_bounds:
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, 2 * half - 1)
    divided = np.clip((np.arange(half) - fast) / max(slow - fast, 1e-3), 0, 1)
    return divided / rope.factor + (1 - divided)


def _magnitude(rope: RopeConfig) -> float:
    if rope.scaling != "yarn":
        return 1.0
    return rope.magnitude or (0.1 * math.log(rope.factor) + 1 if rope.factor > 1 else 1.0)


def rotate(x: Float[Array, "B T N H"], positions: Int[Array, "B T"], rotation: Rotation) -> Float[Array, "B T N H"]:
    """The two halves of each head rotated against each other by positions times frequencies, in float32."""
    angle = positions[..., None, None] * rotation.frequency
    sin, cos = (part(angle) * rotation.magnitude for part in (jnp.sin, jnp.cos))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)

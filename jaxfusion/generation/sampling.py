"""Samplers: how the next token is chosen from its logits. Small frozen dataclasses, static under jit."""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Sampler(Protocol):
    """float32 logits of each row, and a key of this step, to one token id a row."""

    def __call__(self, logits: Float[Array, "B V"], rng: Array) -> Int[Array, " B"]: ...


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """The most probable token."""

    def __call__(self, logits: Float[Array, "B V"], rng: Array) -> Int[Array, " B"]:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """A draw from softmax(logits / temperature)."""

    temperature: float = 1.0

    def __call__(self, logits: Float[Array, "B V"], rng: Array) -> Int[Array, " B"]:
        return jax.random.categorical(rng, logits / self.temperature).astype(jnp.int32)

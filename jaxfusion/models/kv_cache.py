"""Keys and values of positions that have been read, as they are kept: in floats, or in 8 bits.

In 8 bits each position has a float32 scale for each key-value head, its largest magnitude over 127, so that what is
written later changes nothing of what is there. (One scale a token and head: Hooper et al. 2024, KVQuant, for values;
here for keys too, after their rotation.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxfusion.models.int8 import Int8Array, dequantise, is_int8, quantise

Heads = Float[Array, "..."] | Int8Array


@struct.dataclass
class KVCache:
    """Keys and values of the S positions a row may have: [B, S, G, H] each, and [B, S, G, 1] the scales of 8 bits."""

    key: Heads
    value: Heads

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: DTypeLike) -> "KVCache":
        """shape: B, S, G, H. dtype: a float's, or int8."""

        def zeros() -> Heads:
            values = jnp.zeros(shape, dtype)
            return Int8Array(values, jnp.zeros((*shape[:-1], 1))) if values.dtype == jnp.int8 else values

        return cls(zeros(), zeros())

    def stored(self, key: Float[Array, "B T G H"], value: Float[Array, "B T G H"]) -> "KVCache":
        """New keys and values as this cache keeps its own."""

        def like(kept: Heads, new: Array) -> Heads:
            return quantise(new, (-1,)) if is_int8(kept) else new.astype(kept.dtype)

        return KVCache(like(self.key, key), like(self.value, value))

    def write(self, new: "KVCache", index: Int[Array, " B"]) -> "KVCache":
        """Puts T new keys and values of each row b at positions index[b] onwards."""

        def put(cache: Array, new: Array) -> Array:
            if cache.shape[0] == 1:  # a slice; places of several rows make a scatter, which is slow of many tokens
                return jax.lax.dynamic_update_slice_in_dim(cache, new, index[0], axis=1)
            update = jax.vmap(lambda row, part, at: jax.lax.dynamic_update_slice_in_dim(row, part, at, axis=0))
            return update(cache, new, index)

        return jax.tree.map(put, self, new)

    def read(self, dtype: DTypeLike) -> tuple[Float[Array, "B S G H"], Float[Array, "B S G H"]]:
        """Keys and values to compute with."""

        def floats(kept: Any) -> Array:
            return dequantise(kept, dtype) if is_int8(kept) else kept.astype(dtype)

        return floats(self.key), floats(self.value)

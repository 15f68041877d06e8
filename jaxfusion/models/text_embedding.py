"""The first room: token ids to vectors, and what is added at every position."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxfusion.config.model import TextEmbeddingConfig
from jaxfusion.models.alike import FEW, by_tiles
from jaxfusion.models.rows import look_up


class TextEmbedding(nn.Module):
    """A table of token embeddings, which may serve as the output matrix too, and one of positions."""

    config: TextEmbeddingConfig
    width: int
    dtype: jnp.dtype

    def setup(self) -> None:
        # Not GPT-2's fixed 0.02: in a narrow model that is far below the visual tokens beside it, and what was asked
        # and where a token stands go unheard for a long time. At GPT-2's own width it is nearly the same.
        normal = nn.initializers.normal(self.width**-0.5)
        self.embedding = self.param("embedding", normal, (self.config.vocab_size, self.width))
        if self.config.positions == "learned":
            self.position_embedding = self.param("position_embedding", normal, (self.config.max_positions, self.width))
        if self.config.token_types:
            self.token_type_embedding = self.param(
                "token_type_embedding", normal, (self.config.token_types, self.width)
            )
        if self.config.norm:
            self.norm = nn.LayerNorm(epsilon=self.config.norm_eps, dtype=self.dtype)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The tokens' vectors, scaled."""
        x = look_up(self.embedding, tokens).astype(self.dtype)
        return x * jnp.asarray(self.config.scale, self.dtype) if self.config.scale != 1 else x

    def complete(self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What every position has, visual tokens included: a learned position, the first token type, and the norm."""
        if self.config.token_types:
            x = x + self.token_type_embedding[0].astype(self.dtype)
        if self.config.positions == "learned":
            x = x + look_up(self.position_embedding, positions).astype(self.dtype)
        return self.norm(x) if self.config.norm else x

    def attend(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits of each token by the transposed table, summed in float32."""
        table = self.embedding.astype(self.dtype)
        return by_tiles(lambda x: jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32), x, tile=FEW)

"""How the next token is chosen from its logits, each row of a batch by settings of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxfusion.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What one request asks for; the defaults are greedy. In the order in which they are applied:

    repetition_penalty: a token that prompt or answer hold already has its logit divided by it, or multiplied where it
                        is negative (Keskar et al. 2019); 1: no difference.
    temperature:        the rest is a draw from softmax(logits / temperature); 0: the most probable token.
    top_k:              only of so many most probable tokens (Fan et al. 2018); 0: of all.
    top_p:              only of the fewest that together have this probability (Holtzman et al. 2020); 1: of all.
    min_p:              only of those that have this share of the most probable one's (Nguyen et al. 2024); 0: of all.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Raises UserError, by the field's name, for a value that means nothing."""
        wanted = {
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "temperature": (0 <= self.temperature < float("inf"), "0 or more"),
            "top_k": (0 <= self.top_k < 2**31, "0 or more, and below 2**31"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
        }
        for name, (right, what) in wanted.items():
            if not right:
                raise UserError(f"{name}: {getattr(self, name)} was given; it must be {what}")


GREEDY = Sampling()


@struct.dataclass
class Samplings:
    """`Sampling`, one a row, as a program takes them: another row's settings need no other program."""

    repetition_penalty: Float[Array, " B"]
    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> "Samplings":
        kinds = {"top_k": np.int32}
        return cls(
            **{
                field.name: np.array([getattr(row, field.name) for row in rows], kinds.get(field.name, np.float32))
                for field in fields(Sampling)
            }
        )


def penalised(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], samplings: Samplings) -> Float[Array, "B V"]:
    """The logits with each row's repetition penalty. seen: tokens that the row holds already."""

    def apply(logits: Array) -> Array:
        penalty = samplings.repetition_penalty[:, None]
        return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)

    return jax.lax.cond(jnp.any(samplings.repetition_penalty != 1), apply, lambda logits: logits, logits)


def filtered(logits: Float[Array, "B V"], samplings: Samplings) -> Float[Array, "B V"]:
    """The logits over the temperature, minus infinity where top_k, top_p and min_p leave a token out.

    A token with the same logit as the last one that stays, stays too. Where the temperature is 0 the logits mean
    nothing: see `draw`.
    """
    temperature = jnp.where(samplings.temperature > 0, samplings.temperature, 1)[:, None]
    logits = logits / temperature
    limited = (samplings.top_k > 0) | (samplings.top_p < 1)
    lowest = jax.lax.cond(
        jnp.any(limited), _lowest, lambda logits, _: jnp.full_like(logits[:, :1], -jnp.inf), logits, samplings
    )
    best = jnp.max(logits, axis=-1, keepdims=True)
    lowest = jnp.maximum(lowest, best + jnp.log(samplings.min_p)[:, None])
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def _lowest(logits: Float[Array, "B V"], samplings: Samplings) -> Float[Array, "B 1"]:
    """The lowest logit that top_k, and then top_p of what it leaves, let stay."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    count = jnp.where(samplings.top_k > 0, jnp.minimum(samplings.top_k, logits.shape[-1]), logits.shape[-1])
    ordered = jnp.where(jnp.arange(logits.shape[-1]) < count[:, None], ordered, -jnp.inf)
    share = jax.nn.softmax(ordered, axis=-1)
    more_probable = jnp.cumsum(share, axis=-1) - share
    stays = (more_probable < samplings.top_p[:, None]) & (ordered > -jnp.inf)
    return jnp.take_along_axis(ordered, jnp.sum(stays, axis=-1, keepdims=True) - 1, axis=-1)


def draw(
    logits: Float[Array, "B V"],
    seen: Bool[Array, "B V"],
    samplings: Samplings,
    keys: UInt32[Array, "B K"],
    index: Int[Array, " B"],
) -> Int[Array, " B"]:
    """A token for each row. keys: raw key data of each request's seed; index: which of the request's tokens this is.

    A row's draw depends on its own logits, key and index alone, and so not on which rows stand beside it.
    """
    logits = penalised(logits, seen, samplings)
    best = jnp.argmax(logits, axis=-1)

    def drawn(logits: Array) -> Array:
        def one(key: Array, index: Array, logits: Array) -> Array:
            return jax.random.categorical(jax.random.fold_in(jax.random.wrap_key_data(key), index), logits)

        return jnp.where(samplings.temperature > 0, jax.vmap(one)(keys, index, filtered(logits, samplings)), best)

    some = jnp.any(samplings.temperature > 0)
    return jax.lax.cond(some, drawn, lambda _: best, logits).astype(jnp.int32)


def seed_keys(seeds: Sequence[int]) -> UInt32[np.ndarray, "B K"]:
    """Raw key data, on the host, of each request's seed. Raises UserError for one that 64 bits do not hold."""
    for seed in seeds:
        if not -(2**63) <= seed < 2**63:
            raise UserError(f"seed: {seed} was given; use a number of 64 bits")
    return np.stack([np.asarray(jax.random.key_data(jax.random.key(seed))) for seed in seeds])

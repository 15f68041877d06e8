"""AdamW with clipping, warm-up and cosine decay, and which parameters decay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxfusion.config.run import TrainConfig

Params = Any


def learning_rate_schedule(config: TrainConfig) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """Linear warm-up to the peak, then half a cosine towards 0 at num_steps (Loshchilov & Hutter 2017).

    The schedule's argument is the number of updates already made, so the first update has 1 / warmup_steps of the peak.
    """

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        warmup = (step + 1) / max(config.warmup_steps, 1)
        progress = (step - config.warmup_steps) / max(config.num_steps - config.warmup_steps, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        return config.learning_rate * jnp.minimum(warmup, cosine)

    return schedule


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW (Loshchilov & Hutter 2019) with decay on the leaves of `decay_mask`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config), weight_decay=config.weight_decay, mask=decay_mask),
    )


def decay_mask(params: Params) -> Params:
    """True for the matrices of linear, convolutional and recurrent layers, False for everything else.

    The name decides, since layers on a stack give biases and norms a second axis. Embeddings do not decay: a step
    touches few of their rows, and decay would shrink all the others.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)

"""What one training step takes and gives back, and what a checkpoint holds."""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int, UInt32

from jaxfusion.models.vlm import Model, Params, init


@struct.dataclass
class TrainState:
    """step: updates made so far. rng: raw key data that never changes; each step folds its own dropout key from it."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    rng: UInt32[Array, " K"]


def create_state(model: Model, optimizer: optax.GradientTransformation, rng: Array) -> TrainState:
    """Step 0 with fresh parameters. Pure; jit it to make the parameters on the device."""
    init_rng, dropout_rng = jax.random.split(rng)
    params = init(model, init_rng)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        rng=jax.random.key_data(dropout_rng),
    )

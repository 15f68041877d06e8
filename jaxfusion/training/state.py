"""What one training step takes and gives back, and what a checkpoint holds."""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int, UInt32

from jaxfusion.config.run import FrozenDtype
from jaxfusion.models.vlm import Model, Params, init
from jaxfusion.training.frozen import store
from jaxfusion.training.trainable import split

# Where the optimizer has the map of a student's hidden states, beside the rooms.
MAP = "feature_map"


@struct.dataclass
class TrainState:
    """step: updates made so far. rng: raw key data that never changes; each step folds its own dropout key from it.

    params:    all of them: float32 those that train, and the others as `store` keeps them.
    opt_state: of what trains alone.
    trainable: static; globs over the parameters' paths, as `split` takes them.
    teacher:   a frozen teacher's parameters, in the dtype that it computes in, which no checkpoint holds; None: no
               teacher.
    feature_map: {"kernel": float32[D, E]}, from the model's hidden states to a teacher's, see `Told`. It trains, and a
               checkpoint holds it, but it is none of the model's parameters; None: there is none.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    rng: UInt32[Array, " K"]
    trainable: tuple[str, ...] = struct.field(pytree_node=False, default=("*",))
    teacher: Params | None = None
    feature_map: Params | None = None


def create_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    rng: Array,
    trainable: tuple[str, ...] = ("*",),
    params: Params | None = None,
    frozen_dtype: FrozenDtype = "compute",
    map_shape: tuple[int, int] | None = None,
) -> TrainState:
    """Step 0 with the parameters given, or fresh ones. Pure; jit it to make them on the device.

    frozen_dtype: of what does not train, see `store`. map_shape: of the map to a teacher's hidden states.
    Raises UserError where a glob of `trainable` fits no parameter.
    """
    init_rng, dropout_rng = jax.random.split(rng)
    params = store(model, init(model, init_rng) if params is None else params, trainable, frozen_dtype)
    learned, feature_map = split(params, trainable)[0], None
    if map_shape is not None:
        kernel = jax.random.normal(jax.random.fold_in(init_rng, 1), map_shape) * map_shape[0] ** -0.5
        feature_map = {"kernel": kernel}
        learned = learned | {MAP: feature_map}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(learned),
        rng=jax.random.key_data(dropout_rng),
        trainable=trainable,
        feature_map=feature_map,
    )

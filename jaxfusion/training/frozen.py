"""How frozen parameters are kept: in the dtype they are computed in, or in 8 bits, and never in two copies."""

import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike

from jaxfusion.config.run import FrozenDtype
from jaxfusion.models.int8 import is_int8, quantise_kernel
from jaxfusion.models.vlm import Model, Params
from jaxfusion.training.trainable import join, split


def store(model: Model, params: Params, trainable: tuple[str, ...], frozen_dtype: FrozenDtype) -> Params:
    """The parameters as a run keeps them: float32 where they train, which are the masters, and frozen ones as asked.

    frozen_dtype: "compute", the model's own; "float32"; "int8": kernels of linear layers as `Int8Array`, all else in
        the model's own. What is in 8 bits already stays so.
    Raises UserError as `split` does.
    """
    learned, frozen = split(params, trainable)
    masters = {path: leaf.astype(jnp.float32) for path, leaf in traverse_util.flatten_dict(learned, sep="/").items()}
    return join(traverse_util.unflatten_dict(masters, sep="/"), freeze(model, frozen, frozen_dtype))


def freeze(model: Model, params: Params, frozen_dtype: FrozenDtype) -> Params:
    """All of these parameters, which may be a part of the model's, as `store` keeps what does not train."""
    dtype = "float32" if frozen_dtype == "float32" else model.config.dtype
    kept = {
        path: _stored(path, leaf, dtype, frozen_dtype == "int8")
        for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
    }
    return traverse_util.unflatten_dict(kept, sep="/")


def _stored(path: str, leaf: Params, dtype: DTypeLike, in_8_bits: bool) -> Params:
    if is_int8(leaf):
        return leaf
    kept = quantise_kernel(path, leaf) if in_8_bits else leaf
    return kept if is_int8(kept) else leaf.astype(dtype)

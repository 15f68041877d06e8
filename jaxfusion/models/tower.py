"""A vision network alone, as it comes from a checkpoint that holds nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import HostOrDevice
from jaxfusion.config.model import AttentionKernel, Vision
from jaxfusion.errors import UserError
from jaxfusion.models.vision import make_vision
from jaxfusion.models.vlm import Params


@dataclass(frozen=True)
class Tower:
    """What a vision config describes, without parameters. Hashable, so `jax.jit(see, static_argnums=0)` works.

    dtype:  of the computation.
    pixels: what the checkpoint wants done to a picture, uint8[h, w, 3] -> uint8[H, W, 3].
    origin: what export writes again, see `jaxfusion.pretrained.origin`.
    """

    config: Vision
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: AttentionKernel = "auto"
    pixels: Callable[[np.ndarray], np.ndarray] | None = field(default=None, compare=False, repr=False)
    origin: Any = field(default=None, compare=False, repr=False)

    @property
    def module(self) -> nn.Module:
        return make_vision(self.config, jnp.dtype(self.dtype), self.attention)


def see(tower: Tower, params: Params, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M K E"]:
    """The images' visual tokens, before any projector.

    params: of a whole tree, the room "vision" alone is read. images: uint8[B, M, H, W, 3], or float, normalised;
    `tower.pixels` makes one of a picture. Raises UserError for anything else than a tower.
    """
    if not isinstance(tower, Tower):
        raise UserError("tower: a vision tower alone is wanted, as jaxfusion.load gives; a whole model is for generate")
    return tower.module.apply({"params": params["vision"]}, images)

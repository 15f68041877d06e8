"""Learned positions of a square grid, resized to the grid of another image size."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float


def resize_grid(table: Float[Array, "P D"], side: int) -> Float[Array, "Q D"]:
    """P = old side squared vectors to Q = side squared, bicubically, in float32.

    As torch's interpolate(mode="bicubic", align_corners=False), without antialiasing: so transformers runs DINOv2 and
    its kin at other sizes than they were trained at.
    """
    old = round(table.shape[0] ** 0.5)
    if old == side:
        return table
    weights = cubic_weights(old, side)
    grid = rearrange(table, "(h w) d -> h w d", h=old).astype(jnp.float32)
    resized = jnp.einsum("yh,xw,hwd->yxd", weights, weights, grid, precision="highest")
    return rearrange(resized, "y x d -> (y x) d").astype(table.dtype)


def cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What each of `old` samples weighs in each of `new` over the same length (Keys 1981, a = -0.75).

    A sample stands at the middle of its cell; beyond the ends the outermost is repeated.
    """
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        at = np.floor(centre).astype(int) + offset
        np.add.at(weights, (np.arange(new), np.clip(at, 0, old - 1)), _cubic(np.abs(centre - at)))
    return weights.astype(np.float32)


def _cubic(distance: Float[np.ndarray, " N"], a: float = -0.75) -> Float[np.ndarray, " N"]:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))

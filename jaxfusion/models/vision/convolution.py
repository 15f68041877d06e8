"""What the convolutional networks share: convolution with norm, and max pooling. NHWC; padding as torch lays it."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class FrozenBatchNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015) with stored statistics, which get no gradient."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = jax.lax.stop_gradient(self.param("mean", nn.initializers.zeros, shape))
        var = jax.lax.stop_gradient(self.param("var", nn.initializers.ones, shape))
        scale, bias, mean, var = (leaf.astype(jnp.float32) for leaf in (scale, bias, mean, var))
        scale = scale * jax.lax.rsqrt(var + 1e-5)
        return (x * scale + (bias - mean * scale)).astype(self.dtype)


def num_groups(channels: int) -> int:
    """Groups of a group norm: the most, up to the paper's 32, that leave each at least four channels, else one."""
    return max((g for g in range(1, 33) if channels % g == 0 and channels // g >= 4), default=1)


class ConvNorm(nn.Module):
    """Convolution, then the norm: stored batch statistics, groups (Wu & He 2018), or none and a bias instead."""

    features: int
    kernel_size: int
    norm: Literal["batch", "group", "none"]
    dtype: DTypeLike
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w F"]:
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.kernel_size // 2,
            use_bias=self.norm == "none",
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=self.dtype,
            name="conv",
        )(x)
        match self.norm:
            case "batch":
                return FrozenBatchNorm(self.dtype, name="norm")(x)
            case "group":
                return nn.GroupNorm(num_groups(self.features), epsilon=1e-5, dtype=self.dtype, name="norm")(x)
            case "none":
                return x


def max_pool(x: Float[Array, "N H W C"], window: int, padding: int = 0) -> Float[Array, "N h w C"]:
    """Max pooling of window x window at stride 2.

    Maxima of strided slices, one axis after the other: the gradient of XLA's own window reduction is a
    select-and-scatter, an order of magnitude slower.
    """
    for axis in (1, 2):
        pads = [(padding, padding) if a == axis else (0, 0) for a in range(4)]
        x = jnp.pad(x, pads, constant_values=-jnp.inf)
        last = (x.shape[axis] - window) // 2 * 2  # where the last window starts
        parts = [jax.lax.slice_in_dim(x, i, i + last + 1, stride=2, axis=axis) for i in range(window)]
        x = functools.reduce(jnp.maximum, parts)
    return x

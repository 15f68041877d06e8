"""Frozen matrices in 8 bits: integers and a float scale for each output channel, multiplied where a layer is called.

A kernel W is stored as integers Q in [-127, 127] and scales s = max |W| / 127 over its inputs: |W - Q s| <= s / 2
(round to nearest, absolute maximum: Dettmers et al. 2022, LLM.int8(), without its outlier columns). The product is
(x Q) s: no float copy of W is made that outlives the layer, neither in the forward pass nor for the backward one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from jaxfusion.models.kernels import matrix_axes


@struct.dataclass
class Int8Array:
    """Stands in a float array's place, a kernel's among the parameters. scale: its axes, of size 1 where one scale is
    for all: a kernel's inputs."""

    values: Int8[Array, "..."]
    scale: Float[Array, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


@partial(jax.jit, static_argnums=1)  # else each operation leaves a float32 copy of a whole stack
def quantise(x: Float[Array, "..."], axes: tuple[int, ...]) -> Int8Array:
    """To the nearest integers, with one scale over these axes; where all there is zero, it stays zero."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1)
    return Int8Array(jnp.round(x / scale).astype(jnp.int8), scale)


def quantise_kernel(path: str, leaf: Any) -> Any:
    """The parameter at a path in 8 bits if it is a linear layer's kernel; else, or if it is so already, as it is."""
    axes = matrix_axes(path) if path.endswith("/kernel") and not is_int8(leaf) else None
    return leaf if axes is None else quantise(leaf, axes.inputs)


def dequantise(params: Any, dtype: DTypeLike = jnp.float32) -> Any:
    """The parameters with every `Int8Array` as a plain array of `dtype`; other leaves as they are."""

    def dense(leaf: Any) -> Any:
        return (leaf.values * leaf.scale).astype(dtype) if is_int8(leaf) else leaf

    return jax.tree.map(dense, params, is_leaf=is_int8)


def is_int8(leaf: Any) -> bool:
    return isinstance(leaf, Int8Array)


def has_int8(params: Any) -> bool:
    return any(map(is_int8, jax.tree.leaves(params, is_leaf=is_int8)))


@contextmanager
def int8_products() -> Iterator[None]:
    """Within it, every linear layer that is called takes a kernel in 8 bits, too."""

    def multiply(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if not isinstance(layer, nn.Dense | nn.DenseGeneral) or context.method_name != "__call__":
            return call(*args, **kwargs)
        kernel = layer.get_variable("params", "kernel")
        if not is_int8(kernel):
            return call(*args, **kwargs)
        axes = getattr(layer, "axis", -1)  # the last of x
        num_inputs = 1 if isinstance(axes, int) else len(axes)
        y = _product(num_inputs, args[0].astype(layer.dtype), kernel.values, kernel.scale)
        bias = layer.get_variable("params", "bias")
        return y if bias is None else y + bias.astype(layer.dtype)

    with nn.intercept_methods(multiply):
        yield


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(
    num_inputs: int, x: Float[Array, "..."], values: Int8[Array, "..."], scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """(x values) scale, in x's dtype, over the last axes of x and the first of values. Its gradient is x's alone.

    By itself JAX would keep the converted matrix of every layer for the backward pass, and the float model would be
    there after all; this keeps what was given.
    """
    y = jnp.tensordot(x, values.astype(x.dtype), num_inputs)
    return (y * jnp.squeeze(scale, tuple(range(num_inputs)))).astype(x.dtype)


def _forward(num_inputs: int, x: Array, values: Array, scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(num_inputs, x, values, scale), (values, scale)


def _backward(num_inputs: int, kept: tuple[Array, Array], by_y: Array) -> tuple[Array, None, None]:
    values, scale = kept
    scaled = (by_y * jnp.squeeze(scale, tuple(range(num_inputs)))).astype(by_y.dtype)
    outputs = tuple(range(num_inputs - values.ndim, 0))
    return jnp.tensordot(scaled, values.astype(by_y.dtype), (outputs, outputs)), None, None


_product.defvjp(_forward, _backward)

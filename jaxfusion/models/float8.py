"""Matrix products in 8-bit floats: the linear layers of stacks, multiplied in fp8 while a step is traced.

As in Micikevicius et al. 2022, "FP8 formats for deep learning": activations and kernels are rounded to e4m3, gradients
that come in to e5m2, each tensor after a division by its own scale, which goes by its largest absolute value at that
moment; products are summed in float32, and come out, scaled back, in the layer's compute dtype. Parameters keep their
dtype. Biases, adapters, attention, norms, embeddings, patches, linear and MLP projectors and output logits are computed
as ever.

Scales are powers of two: multiplying with them rounds nothing. A scale is that of the rows that are multiplied at once:
on a mesh of the whole batch; under pmap, and where gradients are accumulated, of a device's part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.lax import Precision
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxfusion.models.int8 import is_int8

MatMul = Literal["compute", "fp8"]

# A tensor's largest value is brought to between half of this and this; the formats end at 448 and 57344.
_LARGEST_EXPONENT = {jnp.float8_e4m3fn: 8, jnp.float8_e5m2: 15}
# No tensor's largest value counts as less: so no scale leaves the range of normal floats, that of zeros neither.
_TINY = 2.0**-100

_matmul: ContextVar[MatMul] = ContextVar("matmul", default="compute")


@contextmanager
def multiplied(matmul: MatMul) -> Iterator[None]:
    """Within it, the layers of stacks that are traced multiply in fp8, or in their compute dtype."""
    token = _matmul.set(matmul)
    try:
        yield
    finally:
        _matmul.reset(token)


def layer(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply`, a stack's layer as a function of arrays, with the products in force. Integer kernels keep their own."""
    if _matmul.get() == "compute":
        return apply

    def multiply(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if not isinstance(layer, nn.Dense | nn.DenseGeneral) or context.method_name != "__call__":
            return call(*args, **kwargs)
        kernel = layer.get_variable("params", "kernel")
        return call(*args, **kwargs) if is_int8(kernel) else _linear(layer, args[0], kernel)

    def run(*args: Any) -> Any:
        with nn.intercept_methods(multiply):
            return apply(*args)

    return run


def _linear(layer: nn.Dense | nn.DenseGeneral, x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Array:
    axes = getattr(layer, "axis", -1)  # the last of x
    num_inputs = 1 if isinstance(axes, int) else len(axes)
    width, outputs = prod(kernel.shape[:num_inputs]), kernel.shape[num_inputs:]
    y = product(x.astype(layer.dtype).reshape(-1, width), kernel.reshape(width, -1))
    y = y.reshape(*x.shape[: x.ndim - num_inputs], *outputs)
    bias = layer.get_variable("params", "bias")
    return y if bias is None else y + bias.astype(layer.dtype)


def product(x: Float[Array, "M K"], kernel: Float[Array, "K N"]) -> Float[Array, "M N"]:
    """x kernel in x's dtype. Each of the two gradients is in the dtype of what it is of."""
    return _product(jnp.dtype(kernel.dtype), x, kernel)


@struct.dataclass
class _Float8:
    """A matrix: values * scale."""

    values: Float[Array, "M N"]
    scale: Float[Array, ""]


def _rounded(x: Float[Array, "M N"], to: DTypeLike) -> _Float8:
    """What is not finite stays so (e4m3 has no infinities and makes them NaN), which the products show."""
    largest = jnp.maximum(jnp.max(jnp.abs(x)).astype(jnp.float32), _TINY)
    _, exponent = jnp.frexp(largest)
    scale = jnp.ldexp(jnp.float32(1), exponent - _LARGEST_EXPONENT[to])
    return _Float8((x * (1 / scale).astype(x.dtype)).astype(to), scale)


def _dot(a: _Float8, b: _Float8, axes: tuple[int, int], dtype: DTypeLike) -> Array:
    """Over an axis of each."""
    # At the default precision cuBLAS sums in less than float32 (https://github.com/openxla/xla/pull/6599).
    y = jax.lax.dot_general(
        a.values,
        b.values,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=Precision.HIGHEST,
        preferred_element_type=dtype,
    )
    return y * (a.scale * b.scale).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(kernel_dtype: DTypeLike, x: Array, kernel: Array) -> Array:
    return _forward(kernel_dtype, x, kernel)[0]


def _forward(_: DTypeLike, x: Array, kernel: Array) -> tuple[Array, tuple[_Float8, _Float8]]:
    kept = _rounded(x, jnp.float8_e4m3fn), _rounded(kernel, jnp.float8_e4m3fn)
    return _dot(*kept, (1, 0), x.dtype), kept


def _backward(kernel_dtype: DTypeLike, kept: tuple[_Float8, _Float8], by_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    given = _rounded(by_y, jnp.float8_e5m2)
    by_x = _dot(given, kernel, (1, 1), by_y.dtype)
    return by_x, _dot(x, given, (0, 0), kernel_dtype)


_product.defvjp(_forward, _backward)

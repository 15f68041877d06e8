"""Low-rank adapters (LoRA, Hu et al. 2021): a linear layer's output y = W x becomes y + (alpha / rank) B (A x).

They are added where a layer is called, so that model code knows nothing of them, and W is never touched. A layer's
adapter is two more leaves beside its kernel: `lora_a`, from the input's axes to the rank, and `lora_b`, from there to
the output's, which begins at zero.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from jaxfusion.config.model import LoraConfig
from jaxfusion.errors import UserError
from jaxfusion.models.int8 import dequantise

LEAVES = ("lora_a", "lora_b")

_prefix: ContextVar[tuple[str, ...]] = ContextVar("prefix", default=())


@contextmanager
def adapted(adapters: Sequence[LoraConfig]) -> Iterator[None]:
    """Within it, every linear layer that is called has the adapter of the first whose glob fits its path."""
    if not adapters:
        yield
        return

    def add(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if not isinstance(layer, nn.Dense | nn.DenseGeneral) or context.method_name != "__call__":
            return call(*args, **kwargs)
        found = adapter_of("/".join((*_prefix.get(), *layer.path)), adapters)
        return call(*args, **kwargs) if found is None else call(*args, **kwargs) + _branch(layer, args[0], found)

    with nn.intercept_methods(add):
        yield


@contextmanager
def inside(path: Sequence[str]) -> Iterator[None]:
    """Around modules that are applied on their own, such as a stack's layer: what their paths continue."""
    token = _prefix.set(tuple(path))
    try:
        yield
    finally:
        _prefix.reset(token)


def adapter_of(path: str, adapters: Sequence[LoraConfig]) -> LoraConfig | None:
    """The adapter of the linear layer at a path such as "decoder/layers/attention/query"."""
    return next((adapter for adapter in adapters if fnmatchcase(path, adapter.layers)), None)


def check_adapters(params: Mapping[str, Any], adapters: Sequence[LoraConfig]) -> None:
    """Raises UserError for an adapter whose glob is that of no linear layer. params: arrays or shapes."""
    layers = {path.rpartition("/")[0] for path in traverse_util.flatten_dict(params, sep="/") if is_adapter(path)}
    for adapter in adapters:
        if not any(adapter_of(layer, adapters) is adapter for layer in layers):
            shadowed = any(fnmatchcase(layer, adapter.layers) for layer in layers)
            why = "an earlier glob fits all layers of" if shadowed else "no linear layer fits"
            mend = "put it first" if shadowed else "name some as in 'decoder/layers/attention/*' or 'vision/*'"
            raise UserError(f"config.model.lora: {why} {adapter.layers!r}; {mend}")


def is_adapter(path: str) -> bool:
    """Whether a parameter's path is an adapter's leaf."""
    return path.rpartition("/")[2] in LEAVES


def merge(params: Mapping[str, Any], adapters: Sequence[LoraConfig]) -> dict[str, Any]:
    """The parameters of the same model without adapters: each W + (alpha / rank) A B in its place, in W's dtype.

    Kernels in 8 bits come out in float32, adapter or not; `dequantise` them before to have another dtype.
    """
    params = dequantise(params)
    leaves = traverse_util.flatten_dict(params, sep="/")
    merged = {path: leaf for path, leaf in leaves.items() if not is_adapter(path)}
    for path in leaves:
        layer, _, name = path.rpartition("/")
        if name == "lora_a":
            adapter, kernel = adapter_of(layer, adapters), f"{layer}/kernel"
            merged[kernel] = _merged(leaves[kernel], leaves[path], leaves[f"{layer}/lora_b"], adapter.scale)
    return traverse_util.unflatten_dict(merged, sep="/")


@jax.jit
def _merged(kernel: Array, a: Array, b: Array, scale: Float[Array, ""] | float) -> Array:
    """Of one layer, or of a stack of layers on the leading axis of all three."""

    def product(a: Array, b: Array) -> Array:
        return jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), 1, precision="highest")

    stacked = a.ndim + b.ndim - 2 > kernel.ndim
    change = scale * (jax.vmap(product) if stacked else product)(a, b)
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)


def _branch(layer: nn.Dense | nn.DenseGeneral, x: Float[Array, "..."], adapter: LoraConfig) -> Float[Array, "..."]:
    """The adapter's part of the layer's output for x, in the layer's compute dtype."""
    axes, features = getattr(layer, "axis", -1), layer.features
    num_inputs = 1 if isinstance(axes, int) else len(axes)  # the last of x
    inputs, outputs = x.shape[-num_inputs:], (features,) if isinstance(features, int) else tuple(features)
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(inputs), as in PEFT
    a = layer.param(LEAVES[0], uniform, (*inputs, adapter.rank))
    b = layer.param(LEAVES[1], nn.initializers.zeros, (adapter.rank, *outputs))
    x, a, b = (value.astype(layer.dtype) for value in (x, a, b))
    return jnp.tensordot(jnp.tensordot(x, a, num_inputs), b, 1) * adapter.scale

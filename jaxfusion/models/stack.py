"""A stack of equal layers on stacked parameters, run as one scan or unrolled, with the same result."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfusion.models import remat
from jaxfusion.models.int8 import has_int8

Params = Any
Layer = Callable[..., tuple[jax.Array, Any]]


def init_stack(module: nn.Module, rng: jax.Array, num_layers: int, *args: Any) -> Params:
    """Parameters of `num_layers` copies of `module`, each leaf with a leading layer axis."""
    return jax.vmap(lambda r: module.init(r, *args)["params"])(jax.random.split(rng, num_layers))


def stack_param(module: nn.Module, name: str, init: Callable[[jax.Array], Params]) -> Params:
    """`module.param(name, init)` of a stack's parameters.

    Flax compares what is there with what `init` gives leaf by leaf, and a kernel in 8 bits is two leaves; its shape is
    compared when its layer is called.
    """
    found = module.get_variable("params", name)
    return found if has_int8(found) else module.param(name, init)


def run_stack(
    apply: Layer, params: Params, x: jax.Array, xs: Any = None, *, scan: bool = True, grouped: bool = False
) -> tuple[jax.Array, Any]:
    """x -> apply(params[l], x, xs[l]) for each layer l; returns the last x and the layers' second results, stacked.

    scan: compile one layer and loop over it; False lays all layers out, which compiles longer and can run faster.
    grouped: a layer is a stack of its own, whose layers are rematerialised, see `jaxfusion.models.remat`, and not it.
    """
    if not grouped:
        apply = remat.layer(apply, in_scan=scan)
    if scan:
        return jax.lax.scan(lambda carry, layer: apply(layer[0], carry, layer[1]), x, (params, xs))
    outputs = []
    for index in range(jax.tree.leaves(params)[0].shape[0]):
        layer_params, layer_xs = jax.tree.map(lambda leaf, i=index: leaf[i], (params, xs))
        x, output = apply(layer_params, x, layer_xs)
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

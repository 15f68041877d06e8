"""A stack of equal layers, run as one scan or laid out, with the same result.

Its parameters are stacked, one array for all layers, in which they are trained and kept; or one tree a layer
(`Unstacked`), which decodes fastest: each matrix is read where it lies, and a cache is written where it lies.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxfusion.models import float8, remat
from jaxfusion.models.int8 import has_int8
from jaxfusion.models.rows import by_rows, platform

Params = Any


@struct.dataclass
class Unstacked:
    """One tree a layer, in place of a tree whose leaves lead with the layer."""

    layers: tuple[Any, ...]

    @classmethod
    def of(cls, stacked: Any, finish: Callable[[Any], Any] = lambda layer: layer) -> "Unstacked":
        """finish: what is made of each layer as soon as it is on its own."""
        length = jax.tree.leaves(stacked)[0].shape[0]
        return cls(tuple(finish(jax.tree.map(lambda leaf, i=index: leaf[i], stacked)) for index in range(length)))


Layer = Callable[..., tuple[jax.Array, Any]]


def init_stack(module: nn.Module, rng: jax.Array, num_layers: int, *args: Any) -> Params:
    """Parameters of `num_layers` copies of `module`, each leaf with a leading layer axis."""
    return jax.vmap(lambda r: module.init(r, *args)["params"])(jax.random.split(rng, num_layers))


def stack_param(module: nn.Module, name: str, init: Callable[[jax.Array], Params]) -> Params:
    """`module.param(name, init)` of a stack's parameters.

    Flax compares what is there with what `init` gives leaf by leaf; a kernel in 8 bits is two leaves, and layers may be
    unstacked: their shapes are compared when a layer is called.
    """
    found = module.get_variable("params", name)
    return found if isinstance(found, Unstacked) or has_int8(found) else module.param(name, init)


def run_stack(
    apply: Layer, params: Params, x: jax.Array, xs: Any = None, *, scan: bool | None = True, grouped: bool = False
) -> tuple[jax.Array, Any]:
    """x -> apply(params[l], x, xs[l]) for each layer l; returns the last x and the layers' second results, stacked.

    scan: compile one layer and loop over it; False lays all layers out, which compiles longer and can run faster: on a
        GPU a loop copies what layers keep for their gradients into one array for all. None: as `is_scanned` says.
    grouped: a layer is a stack of its own, whose layers are rematerialised, see `jaxfusion.models.remat`, and not it.
    """
    scan = is_scanned(scan)
    if not grouped:
        apply = remat.layer(float8.layer(_given_by_rows(apply)), in_scan=scan)
    if isinstance(params, Unstacked):
        return _run_unstacked(apply, params, x, xs)
    if scan:
        return jax.lax.scan(lambda carry, layer: apply(layer[0], carry, layer[1]), x, (params, xs))
    outputs = []
    for index, layer_params in enumerate(_laid_out(params)):
        x, output = apply(layer_params, x, jax.tree.map(lambda leaf, i=index: leaf[i], xs))
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def _given_by_rows(apply: Layer) -> Layer:
    def run(*args: Any) -> tuple[jax.Array, Any]:
        x, output = apply(*args)
        return by_rows(x), output

    return run


def is_scanned(scan: bool | None) -> bool:
    """Whether a stack runs as a loop. None: everywhere but on a GPU, where it is slower (benchmarks/RESULTS.md)."""
    return platform() != "gpu" if scan is None else scan


def _laid_out(params: Params) -> list[Params]:
    """A tree a layer. By one split of each leaf, whose gradient puts the layers' together in one pass over memory; that
    of an index is a whole stack of zeros but for one layer."""
    leaves, structure = jax.tree.flatten(params)
    length = leaves[0].shape[0]
    parts = ([jnp.squeeze(part, 0) for part in jax.lax.split(leaf, (1,) * length)] for leaf in leaves)
    return [jax.tree.unflatten(structure, layer) for layer in zip(*parts, strict=True)]


def _run_unstacked(apply: Layer, params: Unstacked, x: jax.Array, xs: Any) -> tuple[jax.Array, Unstacked]:
    """xs: a tuple, each part of which is stacked or `Unstacked` as well."""
    outputs = []
    for index, layer_params in enumerate(params.layers):
        x, output = apply(layer_params, x, tuple(layer_of(part, index) for part in xs))
        outputs.append(output)
    return x, Unstacked(tuple(outputs))


def layer_of(tree: Any, index: int) -> Any:
    """What one layer has of a stack's tree."""
    if isinstance(tree, Unstacked):
        return tree.layers[index]
    return jax.tree.map(lambda leaf: leaf[index], tree)


def grouped(tree: Any, size: int) -> Any:
    """A stack's tree as a stack of groups of so many layers."""
    if isinstance(tree, Unstacked):
        starts = range(0, len(tree.layers), size)
        return Unstacked(tuple(Unstacked(tree.layers[start : start + size]) for start in starts))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), tree)


def ungrouped(tree: Any) -> Any:
    """The inverse of `grouped`."""
    if isinstance(tree, Unstacked):
        return Unstacked(tuple(layer for group in tree.layers for layer in group.layers))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

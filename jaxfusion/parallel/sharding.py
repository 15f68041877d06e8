"""Which part of a parameter each device holds: a path says what a matrix's axes are, and one table what lies where.

decoder/layers/mlp/up/kernel [layers, embed, mlp] -> PartitionSpec(None, "fsdp", "tensor")

An optimizer's state, a teacher and a checkpoint have the parameter's path at the end of their own, and so its parts.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfusion.config.run import ShardingRule
from jaxfusion.errors import UserError
from jaxfusion.models.rows import FSDP, TENSOR

# The logical axes of matrices, the last ones of theirs: in front of them may be one of layers, which stays whole.
LOGICAL_AXES = {
    "*/query/kernel": ("embed", "heads", "head_dim"),
    "*/key/kernel": ("embed", "heads", "head_dim"),
    "*/value/kernel": ("embed", "heads", "head_dim"),
    "*/query/bias": ("heads", "head_dim"),
    "*/key/bias": ("heads", "head_dim"),
    "*/value/bias": ("heads", "head_dim"),
    "*/out/kernel": ("heads", "head_dim", "embed"),
    "*/gate/kernel": ("embed", "mlp"),
    "*/up/kernel": ("embed", "mlp"),
    "*/gate/bias": ("mlp",),
    "*/up/bias": ("mlp",),
    "*/down/kernel": ("mlp", "embed"),
    "*text_embedding/embedding": ("vocab", "embed"),
    "*output/kernel": ("embed", "vocab"),
    "*decoder/kernel": ("embed", "vocab"),
}

# Which axis of the mesh a logical one is shared out over.
MESH_AXES = {"embed": FSDP, "heads": TENSOR, "mlp": TENSOR, "vocab": TENSOR}

# Of whatever else there is (convolutions, tables of positions, adapters) the longest axis, if it has as many numbers.
# What is smaller costs less to keep than to put together.
MIN_SIZE = 2**14


def partition(
    path: str, shape: Sequence[int], sizes: Mapping[str, int], rules: Sequence[ShardingRule] = ()
) -> PartitionSpec:
    """Of an array in a state: over which of the mesh's axes each of its own is shared out.

    sizes: of the mesh's axes. rules: go before the table, the first that fits. An axis that its devices cannot share
    evenly stays whole.
    """
    if max(sizes.get(FSDP, 1), sizes.get(TENSOR, 1)) == 1 or not shape:
        return PartitionSpec()
    # A kernel in 8 bits is two arrays, see `jaxfusion.models.int8`.
    path = path.removesuffix("/values").removesuffix("/scale")
    wanted = next((rule.axes for rule in rules if any(_fits(path, glob) for glob in rule.globs)), None)
    if wanted is None:
        named = next((axes for glob, axes in LOGICAL_AXES.items() if fnmatchcase(path, glob)), None)
        wanted = _of_any(shape, sizes) if named is None else tuple(MESH_AXES.get(axis, "") for axis in named)
    if len(wanted) > len(shape):  # a factored second moment, say
        wanted = ()
    wanted = ("",) * (len(shape) - len(wanted)) + tuple(wanted)
    return PartitionSpec(*(_shared(axis, size, sizes) for axis, size in zip(wanted, shape, strict=True)))


def _fits(path: str, glob: str) -> bool:
    """Whether a glob over parameters' paths fits one, or what of a state belongs to it."""
    return fnmatchcase(path, glob) or fnmatchcase(path, f"*/{glob}")


def _of_any(shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[str, ...]:
    if prod(shape) < MIN_SIZE:
        return ()
    longest = max(range(len(shape)), key=lambda axis: (shape[axis] % sizes.get(FSDP, 1) == 0, shape[axis]))
    return tuple(FSDP if axis == longest else "" for axis in range(len(shape)))


def _shared(axis: str, size: int, sizes: Mapping[str, int]) -> str | None:
    return axis if sizes.get(axis, 1) > 1 and size % sizes[axis] == 0 else None


def shardings(tree: Any, mesh: Mesh, rules: Sequence[ShardingRule] = ()) -> Any:
    """A sharding for each array, or shape, of a state, or of a part of one."""

    def of(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition(name, leaf.shape, mesh.shape, rules))

    return jax.tree_util.tree_map_with_path(of, tree)


def check_rules(params: Any, rules: Sequence[ShardingRule]) -> None:
    """Raises UserError for a rule that fits no parameter, or has more axes than one that it fits."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
    for number, rule in enumerate(rules):
        for glob in rule.globs:
            fitting = [path for path in paths if fnmatchcase(path, glob)]
            if not fitting:
                raise UserError(f"config.parallel.rules[{number}].globs: no parameter fits {glob!r}; correct it")
            for path in fitting:
                if len(rule.axes) > len(paths[path]):
                    raise UserError(
                        f"config.parallel.rules[{number}].axes: {path} has {len(paths[path])} axes, and here are "
                        f"{len(rule.axes)}; leave some out"
                    )

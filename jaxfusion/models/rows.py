"""Where a program runs, what lies along the axes of its mesh, and how what the compiler cannot share out runs on each
device's own rows and heads.

`jaxfusion.parallel` compiles a step with its mesh in context (`jax.sharding.use_abstract_mesh`), that of planning's
described devices too. Kernels of our own are opaque to XLA: on a mesh it would gather all rows on every device.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

DATA = "data"  # rows
FSDP = "fsdp"  # rows, and parts of each parameter, put together where it is used (ZeRO-3, Rajbhandari et al. 2020)
TENSOR = "tensor"  # heads, an MLP's hidden units and a vocabulary's tokens (Megatron, Shoeybi et al. 2019)
AXES = (DATA, FSDP, TENSOR)


def platform() -> str:
    """What the program is compiled for: that of the mesh in context, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """The name of what the program is compiled for, as JAX has it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def rows_over(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """A mesh's axes over which rows are shared out."""
    return tuple(axis for axis in mesh.axis_names if axis in (DATA, FSDP))


def row_axes() -> tuple[str, ...]:
    """The axes of the mesh in context over which the compiler shares out rows; () on one device, and where each device
    has its own program already (pmap, or inside of `on_own_rows`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in rows_over(mesh) if axis in _shared_by_compiler(mesh))


def copy_axes() -> tuple[str, ...]:
    """Those of `row_axes` along which every device holds the same parts of the parameters."""
    return tuple(axis for axis in row_axes() if axis == DATA)


def _shared_by_compiler(mesh: AbstractMesh) -> set[str]:
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {axis for axis, kind in kinds if kind == AxisType.Auto and mesh.shape[axis] > 1}


def by_itself(function: Callable[..., Any], axes: Iterable[str], inputs: Any, outputs: Any) -> Callable[..., Any]:
    """shard_map over these axes of the mesh in context; the compiler shares out over the others."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = {axis for axis in mesh.axis_names if mesh.shape[axis] == 1}  # else it takes them for axes to share over
    return jax.shard_map(function, in_specs=inputs, out_specs=outputs, axis_names=set(axes) | alone, check_vma=False)


def by_rows(x: jax.Array) -> jax.Array:
    """x, which leads with the row, shared out by rows and by nothing else: what a layer gives to the next.

    Without it the compiler may as well leave parameters in parts and move what is computed.
    """
    axes = row_axes()
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def on_own_rows(function: Callable[..., Any], *arrays: Any, whole: tuple[Any, ...] = ()) -> Any:
    """function(*arrays, *whole), whose arrays and results all lead with the row, run by each device on its own rows.

    whole: what every device has the whole of, such as weights. Their gradients are added up over the devices once,
        after all of the function's backward pass, whatever loops it has.
    """
    over = _shared_by_compiler(jax.sharding.get_abstract_mesh())
    if not over:
        return function(*arrays, *whole)
    rows = PartitionSpec(row_axes())
    specs = (rows,) * len(arrays) + (PartitionSpec(),) * len(whole)
    return by_itself(function, over, specs, rows)(*arrays, *whole)


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """table[ids], the rows of a table for ids that lead with the row; the table may be shared out in any way."""
    return on_own_rows(lambda ids, table: table[ids], ids, whole=(table,))


def on_own_heads(function: Callable[..., Any], heads: tuple[Any, ...], rows: tuple[Any, ...]) -> Any:
    """function(*heads, *rows), run by each device on its own rows and heads.

    heads: arrays [B, T, N, H], as is the result, each with its own T and N. rows: others that lead with the row.
    Where devices cannot share some array's heads evenly, each has all of them.
    """
    axes, mesh = row_axes(), jax.sharding.get_abstract_mesh()
    over = _shared_by_compiler(mesh)  # the compiler cannot share out what is inside
    if not over:
        return function(*heads, *rows)
    shared = TENSOR in over and all(x.shape[2] % mesh.shape[TENSOR] == 0 for x in heads)
    by_heads = PartitionSpec(axes, None, TENSOR if shared else None)
    specs = (by_heads,) * len(heads) + (PartitionSpec(axes),) * len(rows)
    return by_itself(function, over, specs, by_heads)(*heads, *rows)

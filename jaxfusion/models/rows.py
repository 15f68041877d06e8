"""Where a program runs, and how what the compiler cannot share out runs on each device's own rows.

`jaxfusion.parallel` compiles a step with its mesh in context (`jax.sharding.use_abstract_mesh`), that of planning's
described devices too. Kernels of our own are opaque to XLA: on a mesh it would gather all rows on every device.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def platform() -> str:
    """What the program is compiled for: that of the mesh in context, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """The name of what the program is compiled for, as JAX has it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def row_axes() -> tuple[str, ...]:
    """The axes of the mesh in context over which rows are shared; () on one device, and where each device has its own
    program already (pmap)."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in axes if kind == AxisType.Auto) if mesh.size > 1 else ()


def on_own_rows(function: Callable[..., Any], *arrays: Any, whole: tuple[Any, ...] = ()) -> Any:
    """function(*arrays, *whole), whose arrays and results all lead with the row, run by each device on its own rows.

    whole: what every device has the whole of, such as weights. Their gradients are added up over the devices once,
        after all of the function's backward pass, whatever loops it has.
    """
    axes = row_axes()
    if not axes:
        return function(*arrays, *whole)
    rows = PartitionSpec(axes)
    specs = (rows,) * len(arrays) + (PartitionSpec(),) * len(whole)
    run = jax.shard_map(function, in_specs=specs, out_specs=rows, axis_names=set(axes), check_vma=False)
    return run(*arrays, *whole)

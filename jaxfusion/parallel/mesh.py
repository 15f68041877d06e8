"""jit over a mesh: arrays are whole to whoever writes the program, and the compiler shares out the work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding

from jaxfusion.config.run import ParallelConfig, ShardingRule
from jaxfusion.errors import UserError
from jaxfusion.models.rows import AXES
from jaxfusion.parallel.sharding import partition, shardings
from jaxfusion.parallel.strategy import Parallel, Step, Tree


def make_mesh(devices: Sequence[Any], config: ParallelConfig = ParallelConfig()) -> Mesh:
    """The axes "data", "fsdp" and "tensor" of the config over these devices, neighbours along the last.

    Raises UserError where the axes' product is not the number of devices.
    """
    inner, count = config.fsdp * config.tensor, len(devices)
    data = config.data or count // inner
    if data * inner != count:
        shape = f"data {data or 1} x fsdp {config.fsdp} x tensor {config.tensor}"
        raise UserError(
            f"config.parallel: {shape} is not the number of devices, {count}; "
            "change one of them, or leave data at 0 and the product of the others a divisor of that"
        )
    grid = np.asarray(devices, dtype=object).reshape(data, config.fsdp, config.tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@dataclass(frozen=True)
class MeshParallel(Parallel):
    """rules: see `ParallelConfig.rules`."""

    rules: tuple[ShardingRule, ...] = ()

    def compile(self, step: Step, *, donate: bool = False) -> Step:
        def on_mesh(state: Any, batch: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # for jaxfusion.models.rows
                result = step(state, batch)
            return jax.lax.with_sharding_constraint(result, shardings(result, self.mesh, self.rules))

        return jax.jit(on_mesh, donate_argnums=0 if donate else ())

    def put_batch(self, batch: Tree) -> Tree:
        return jax.device_put(batch, self.rows)

    def put_state(self, state: Tree) -> Tree:
        return jax.device_put(state, shardings(state, self.mesh, self.rules))

    def unreplicate(self, state: Tree) -> Tree:
        return state

    def place(self, path: str, shape: jax.ShapeDtypeStruct) -> Sharding:
        return NamedSharding(self.mesh, partition(path, shape.shape, self.mesh.shape, self.rules))

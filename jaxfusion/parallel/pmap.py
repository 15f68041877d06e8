"""Replicated data parallelism by pmap: one program a device, which holds all of the state and its own rows."""

from typing import Any

import jax
from jax.sharding import Sharding, SingleDeviceSharding

from jaxfusion.models.rows import DATA
from jaxfusion.parallel.strategy import Parallel, Step, Tree


class PmapParallel(Parallel):
    """One program a device: every array has a leading axis of devices, and the step adds up what it must."""

    def compile(self, step: Step, *, donate: bool = False) -> Step:
        def one_device(state: Any, batch: Any) -> Any:
            return step(state, batch, axis_name=DATA)

        return jax.pmap(
            one_device, axis_name=DATA, devices=self.mesh.devices.ravel().tolist(), donate_argnums=0 if donate else ()
        )

    def put_batch(self, batch: Tree) -> Tree:
        split = jax.tree.map(lambda x: x.reshape(self.num_devices, -1, *x.shape[1:]), batch)
        return jax.device_put(split, self.rows)

    def put_state(self, state: Tree) -> Tree:
        def put(x: jax.Array) -> jax.Array:
            copies = [jax.device_put(x[None], device) for device in self.mesh.devices.flat]
            return jax.make_array_from_single_device_arrays((self.num_devices, *x.shape), self.rows, copies)

        return jax.tree.map(put, state)

    def unreplicate(self, state: Tree) -> Tree:
        return jax.tree.map(lambda x: x.addressable_data(0)[0], state)

    def place(self, path: str, shape: jax.ShapeDtypeStruct) -> Sharding:
        return SingleDeviceSharding(self.mesh.devices.flat[0])

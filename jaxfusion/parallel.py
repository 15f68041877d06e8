"""Data parallelism over all local devices, by two roads with one interface and the same numbers.

parallel = make_parallel(config.parallel)
step = parallel.compile(partial(train_step, model, optimizer), donate=True)
state = parallel.put_state(state)
state, metrics = step(state, parallel.put_batch(batch))
loss = parallel.unreplicate(metrics)["loss"]
"""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxfusion.config.run import ParallelConfig, TrainConfig
from jaxfusion.errors import UserError
from jaxfusion.hardware import has_fp8

Tree = TypeVar("Tree")
Step = Callable[..., Any]  # step(state, batch, axis_name=None), of any state and result

AXIS = "data"
MAX_CPU_DEVICES = 8  # the small models that one trains on a CPU do not gain from more


@dataclass(frozen=True)
class Parallel(ABC):
    """Rows of a batch are shared out evenly; the state is on every device."""

    mesh: Mesh

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def rows(self) -> Sharding:
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def check_batch_size(self, setting: str, batch_size: int, parts: int = 1, otherwise: str = "") -> None:
        """Raises UserError, which names the setting, for a number of rows that the devices cannot share evenly.

        parts: in which each device takes its rows, one after the other. otherwise: another mend, "or ...".
        """
        if batch_size <= 0 or batch_size % (self.num_devices * parts):
            each = f", each in {parts} parts" if parts > 1 else ""
            raise UserError(
                f"{setting}: {batch_size} rows cannot be shared evenly by {self.num_devices} devices{each}; "
                f"use a multiple of {self.num_devices * parts}{otherwise and ', ' + otherwise}"
            )

    def check_training(self, settings: TrainConfig, otherwise: str = "") -> None:
        """Raises UserError for a batch that the devices cannot share evenly, and products that they do not have.

        otherwise: see `check_batch_size`.
        """
        self.check_batch_size("config.train.batch_size", settings.batch_size, settings.accumulate, otherwise)
        device = self.mesh.devices.flat[0]
        if settings.matmul == "fp8" and device.platform != "cpu" and not has_fp8(device):  # a CPU does without them
            raise UserError(
                f"config.train.matmul: {device.device_kind} has no fp8 matrix products, which NVIDIA GPUs of compute "
                "capability 8.9 or higher have; set it to 'compute'"
            )

    @abstractmethod
    def compile(self, step: Step, *, donate: bool = False) -> Step:
        """(state, batch) -> step(state, batch, axis_name) on all devices, compiled once for each batch shape.

        step: its results must be the same on every device, as `train_step` and `eval_step` see to.
        donate: the state's memory is reused for the new state, and the old one is gone.
        """

    @abstractmethod
    def put_batch(self, batch: Tree) -> Tree:
        """A host's batch, or any tree of arrays that lead with the row, to the devices."""

    @abstractmethod
    def put_state(self, state: Tree) -> Tree:
        """A copy of each array to every device. One copy may be the given array itself."""

    @abstractmethod
    def unreplicate(self, state: Tree) -> Tree:
        """The tree as one copy of it, whatever `put_state` and `compile` made of it."""

    @abstractmethod
    def abstract(self, shapes: Tree) -> Tree:
        """Shapes with the sharding that arrays had best have before `put_state`, for a checkpoint to restore to."""


class MeshParallel(Parallel):
    """jit over a mesh: arrays are whole, and the compiler shares out the work."""

    @property
    def replicated(self) -> Sharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def compile(self, step: Step, *, donate: bool = False) -> Step:
        def on_mesh(state: Any, batch: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # for jaxfusion.models.rows
                return step(state, batch)

        return jax.jit(
            on_mesh,
            in_shardings=(self.replicated, self.rows),
            out_shardings=self.replicated,
            donate_argnums=0 if donate else (),
        )

    def put_batch(self, batch: Tree) -> Tree:
        return jax.device_put(batch, self.rows)

    def put_state(self, state: Tree) -> Tree:
        return jax.device_put(state, self.replicated)

    def unreplicate(self, state: Tree) -> Tree:
        return state

    def abstract(self, shapes: Tree) -> Tree:
        return _with_sharding(shapes, self.replicated)


class PmapParallel(Parallel):
    """One program a device: every array has a leading axis of devices, and the step adds up what it must."""

    def compile(self, step: Step, *, donate: bool = False) -> Step:
        def one_device(state: Any, batch: Any) -> Any:
            return step(state, batch, axis_name=AXIS)

        return jax.pmap(
            one_device, axis_name=AXIS, devices=self.mesh.devices.tolist(), donate_argnums=0 if donate else ()
        )

    def put_batch(self, batch: Tree) -> Tree:
        split = jax.tree.map(lambda x: x.reshape(self.num_devices, -1, *x.shape[1:]), batch)
        return jax.device_put(split, self.rows)

    def put_state(self, state: Tree) -> Tree:
        def put(x: jax.Array) -> jax.Array:
            copies = [jax.device_put(x[None], device) for device in self.mesh.devices]
            return jax.make_array_from_single_device_arrays((self.num_devices, *x.shape), self.rows, copies)

        return jax.tree.map(put, state)

    def unreplicate(self, state: Tree) -> Tree:
        return jax.tree.map(lambda x: x.addressable_data(0)[0], state)

    def abstract(self, shapes: Tree) -> Tree:
        return _with_sharding(shapes, SingleDeviceSharding(self.mesh.devices[0]))


def make_parallel(config: ParallelConfig) -> Parallel:
    """The strategy that the config names, over all local devices; one device is no special case."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return {"mesh": MeshParallel, "pmap": PmapParallel}[config.strategy](mesh)


def use_cpu_cores(batch_size: int) -> None:
    """Where JAX runs on the CPU, makes one device of each core, as far as they share batch_size rows evenly.

    One CPU device computes most of a step on one core, so two devices on two cores are nearly twice as fast. Call it
    before JAX touches a device; later, or where the number was chosen by JAX_NUM_CPU_DEVICES or XLA_FLAGS, it does
    nothing. Accelerators are not affected.
    """
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not chosen and batch_size > 0:
        shared = max(n for n in range(1, min(cores, MAX_CPU_DEVICES) + 1) if batch_size % n == 0)
        with contextlib.suppress(RuntimeError):  # JAX has its devices already
            jax.config.update("jax_num_cpu_devices", shared)


def _with_sharding(shapes: Tree, sharding: Sharding) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)

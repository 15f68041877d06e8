"""What every strategy can do, and what it refuses."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxfusion.config.run import TrainConfig
from jaxfusion.errors import UserError
from jaxfusion.hardware import has_fp8
from jaxfusion.models.rows import FSDP, rows_over

Tree = TypeVar("Tree")
Step = Callable[..., Any]  # step(state, batch, axis_name=None), of any state and result


@dataclass(frozen=True)
class Parallel(ABC):
    """Rows of a batch are shared out evenly over the mesh's axes for rows."""

    mesh: Mesh

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def row_shares(self) -> int:
        """Parts that a batch's rows are shared out in: devices along an axis for tensors hold the same rows."""
        shares = 1
        for axis in rows_over(self.mesh):
            shares *= self.mesh.shape[axis]
        return shares

    @property
    def shares_state(self) -> bool:
        """Whether a device holds only its part of the parameters."""
        return self.row_shares < self.num_devices or self.mesh.shape.get(FSDP, 1) > 1

    @property
    def rows(self) -> Sharding:
        return NamedSharding(self.mesh, PartitionSpec(rows_over(self.mesh)))

    def check_batch_size(self, setting: str, batch_size: int, parts: int = 1, otherwise: str = "") -> None:
        """Raises UserError, which names the setting, for a number of rows that the devices cannot share evenly.

        parts: in which each device takes its rows, one after the other. otherwise: another mend, "or ...".
        """
        shares = self.row_shares
        if batch_size <= 0 or batch_size % (shares * parts):
            each = f", each in {parts} parts" if parts > 1 else ""
            devices = f"{shares} devices" if shares == self.num_devices else f"{shares} groups of devices"
            raise UserError(
                f"{setting}: {batch_size} rows cannot be shared evenly by {devices}{each}; "
                f"use a multiple of {shares * parts}{otherwise and ', ' + otherwise}"
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
        """Each array to where its parts belong, or a copy of it to every device. One copy may be the given array."""

    @abstractmethod
    def unreplicate(self, state: Tree) -> Tree:
        """The tree as one copy of it, whatever `put_state` and `compile` made of it."""

    @abstractmethod
    def place(self, path: str, shape: jax.ShapeDtypeStruct) -> Sharding:
        """Where an array of a state had best be before `put_state`: what is read, restored or made anew goes there.

        path: in the state, or in a part of it, as in "decoder/layers/mlp/up/kernel".
        """

    def abstract(self, shapes: Tree) -> Tree:
        """Shapes with their `place`."""

        def placed(path: Any, x: Any) -> jax.ShapeDtypeStruct:
            where = self.place(jax.tree_util.keystr(path, simple=True, separator="/"), x)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        return jax.tree_util.tree_map_with_path(placed, shapes)

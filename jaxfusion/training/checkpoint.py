"""Checkpoints of a run: parameters, optimizer, step, random state and data iterator in one directory a step.

Orbax writes in the background to a temporary directory and renames it when all is there, so a run that is killed in
the middle of a save leaves the earlier checkpoints, and nothing that looks like a checkpoint and is not.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from jaxfusion.errors import UserError
from jaxfusion.models.vlm import Params
from jaxfusion.training.state import TrainState

IteratorState = dict[str, Any]

PARAMS, OPTIMIZER, ITERATOR = "params", "optimizer", "iterator"


class Checkpoints:
    """The checkpoints of one workdir; a context manager that finishes the last save on leaving."""

    def __init__(self, workdir: Path, keep: int) -> None:
        """keep: how many of the newest checkpoints stay. Raises UserError if that is none."""
        if keep < 1:
            raise UserError(f"config.train.keep_checkpoints: {keep} would leave none to continue from; use 1 or more")
        self.directory = workdir.absolute() / "checkpoints"
        self._manager = _manager(self.directory, max_to_keep=keep, cleanup_tmp_directories=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, one that is still being written included."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, iterator_state: IteratorState) -> None:
        """Copies the state to the host and returns; the rest is done in the background.

        iterator_state: JSON-able, after the batch of this step. A step that is already saved is not saved again.
        """
        if step == self.latest_step:
            return
        items = {
            PARAMS: ocp.args.StandardSave(state.params),
            OPTIMIZER: ocp.args.StandardSave(_rest(state)),
            ITERATOR: ocp.args.JsonSave(iterator_state),
        }
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore_latest(self, abstract_state: TrainState) -> tuple[TrainState, IteratorState] | None:
        """State and iterator state of the newest checkpoint; None where there is none yet.

        abstract_state: the state's shapes and, where it matters, shardings: arrays come back on just those.
        Raises UserError if the checkpoint holds another model's or optimizer's state.
        """
        self._manager.wait_until_finished()
        step = self.latest_step
        if step is None:
            return None
        rest = _rest(abstract_state)
        _check_fit(self._manager, step, self.directory, {PARAMS: abstract_state.params, OPTIMIZER: rest})
        items = {
            PARAMS: ocp.args.StandardRestore(_with_sharding(abstract_state.params)),
            OPTIMIZER: ocp.args.StandardRestore(_with_sharding(rest)),
            ITERATOR: ocp.args.JsonRestore(),
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return abstract_state.replace(params=restored[PARAMS], **restored[OPTIMIZER]), restored[ITERATOR]

    def wait(self) -> None:
        """Returns when every save so far is on the disk."""
        self._manager.wait_until_finished()


def restore_params(workdir: Path, abstract_params: Params) -> Params:
    """The parameters of the newest checkpoint, for evaluation and generation.

    abstract_params: shapes and, where it matters, shardings.
    Raises UserError if there is no checkpoint or it holds another model's parameters.
    """
    directory = workdir.absolute() / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{workdir}: there is no trained model in it; train first, or give a run's directory")
    with _manager(directory, read_only=True) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{workdir}: it holds no finished checkpoint; train on until the first one is saved")
        _check_fit(manager, step, directory, {PARAMS: abstract_params})
        items = {PARAMS: ocp.args.StandardRestore(_with_sharding(abstract_params))}
        return manager.restore(step, args=ocp.args.Composite(**items))[PARAMS]


def _manager(directory: Path, **options: Any) -> ocp.CheckpointManager:
    logging.getLogger("absl").addFilter(_not_from_orbax)
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(**options),
        item_handlers={
            PARAMS: ocp.StandardCheckpointHandler(),
            OPTIMIZER: ocp.StandardCheckpointHandler(),
            ITERATOR: ocp.JsonCheckpointHandler(),
        },
    )


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Orbax reports its every step through absl's logger; its errors are raised as well."""
    return record.levelno >= logging.ERROR or "orbax" not in record.pathname


def _rest(state: TrainState) -> dict[str, Any]:
    """All but the parameters, which are an item of their own so that they can be read alone."""
    return {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}


def _with_sharding(shapes: Any) -> Any:
    """Without a sharding Orbax would ask for the devices that the checkpoint was written on."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), shapes)


def _check_fit(manager: ocp.CheckpointManager, step: int, directory: Path, wanted: dict[str, Any]) -> None:
    stored = manager.item_metadata(step)
    for item, tree in wanted.items():
        theirs, ours = _shapes(stored[item]), _shapes(tree)
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise UserError(
                    f"{directory / str(step)}: {item}/{name} is {_show(theirs.get(name))} in the checkpoint and "
                    f"{_show(ours.get(name))} in the config's model; use the config that it was trained with, "
                    "or another workdir"
                )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _show(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {shape}"

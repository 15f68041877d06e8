"""Checkpoints of a run: what trains, optimizer, step, random state and data iterator in one directory a step.

Frozen parameters are written once, before the first step's, to a directory beside all steps' (in theirs the manager
clears away what it takes for remains of a save). They are not read anew
from the pretrained checkpoint that they may have come from: that may be moved or become another one, and what a run has
frozen is not all from there (new rows of a vocabulary, kernels in 8 bits).

Orbax writes in the background to a temporary directory and renames it when all is there, so a run that is killed in
the middle of a save leaves the earlier checkpoints, and nothing that looks like a checkpoint and is not. What a disk or
a copy has damaged since is passed over for the one before. A save that fails, as on a full disk, is told of.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import orbax.checkpoint.checkpoint_managers as policies
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from jaxfusion.errors import UserError
from jaxfusion.models.vlm import Params
from jaxfusion.training.best import Best
from jaxfusion.training.broken import (
    BrokenError,
    Tell,
    newest_whole,
    read_or_broken,
    reason_of,
    set_aside,
    tell_stderr,
)
from jaxfusion.training.state import TrainState
from jaxfusion.training.trainable import join, split

IteratorState = dict[str, Any]

PARAMS, OPTIMIZER, ITERATOR, FROZEN = "params", "optimizer", "iterator", "frozen"

# What Orbax and TensorStore raise where something cannot be written.
CANNOT_WRITE = (OSError, ValueError)


class Checkpoints:
    """The checkpoints of one workdir; a context manager that finishes the last save on leaving."""

    def __init__(
        self, workdir: Path, keep: int, tell: Tell = tell_stderr, *, every: int = 0, best: Best | None = None
    ) -> None:
        """keep: how many of the newest checkpoints stay. every: those whose step it divides do for ever; 0: none. So
        does the best one. tell: takes a line on what went wrong and was got over.

        Raises UserError if none would stay.
        """
        if keep < 1:
            raise UserError(f"config.train.keep_checkpoints: {keep} would leave none to continue from; use 1 or more")
        self.directory = workdir.absolute() / "checkpoints"
        self._tell = tell
        self.failure: str | None = None  # why the last save has failed, where it has
        self._saving: int | None = None
        self._given_up = [FROZEN]
        kept = [policies.LatestN(keep), *([policies.EveryNSteps(every)] if every else []), *([best] if best else [])]
        policy = policies.AnyPreservationPolicy(kept)
        self._manager = _manager(self.directory, preservation_policy=policy, cleanup_tmp_directories=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._manager.close()
        self._clear()

    @property
    def steps(self) -> frozenset[int]:
        """Of which there are checkpoints."""
        return frozenset(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, one that is still being written included."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, iterator_state: IteratorState) -> None:
        """Copies the state to the host and returns; the rest is done in the background. The first save also waits for
        the frozen parameters to be written.

        iterator_state: JSON-able, after the batch of this step. A step that is already saved is not saved again.
        Where it cannot be written that is told, here or later, and the checkpoints before stay.
        """
        self.wait()
        if step == self.latest_step:
            return
        self._clear()
        self.failure, self._saving = None, step
        learned, frozen = split(state.params, state.trainable)
        items = {
            PARAMS: ocp.args.StandardSave(learned),
            OPTIMIZER: ocp.args.StandardSave(_rest(state)),
            ITERATOR: ocp.args.JsonSave(iterator_state),
        }
        try:
            if frozen and self.latest_step is None:  # also over those that a run left which got no further
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(self.directory.parent / FROZEN, frozen, force=True)
                    checkpointer.wait_until_finished()  # leaving alone would not raise what goes wrong
            self._manager.save(step, args=ocp.args.Composite(**items))
        except CANNOT_WRITE as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Tells of a save that failed, and makes room of what it left. Nothing that it would have replaced is gone."""
        self.failure = reason_of(error)
        self._given_up.append(f"{self.directory.name}/{self._saving}")
        self._clear()
        self._manager.reload()
        newest = self.latest_step
        kept = "there is no checkpoint yet" if newest is None else f"the newest checkpoint is that of step {newest}"
        self._tell(f"step {self._saving} could not be saved ({self.failure}); {kept}")
        self._saving = None

    def _clear(self) -> None:
        """Removes what is left of saves that were given up; what a thread was still at then, later."""
        for name in self._given_up:
            for remains in self.directory.parent.glob(f"{name}.orbax-checkpoint-tmp*"):
                shutil.rmtree(remains, ignore_errors=True)

    def look(self) -> None:
        """Tells of a save that has failed in the background; does not wait for one that goes on."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def restore_latest(self, abstract_state: TrainState) -> tuple[TrainState, IteratorState] | None:
        """State and iterator state of the newest checkpoint that is whole; None where there is none yet.

        Newer ones that are broken are told of and renamed, so that their steps can be saved again.
        abstract_state: the state's shapes and, where it matters, shardings: arrays come back on just those.
        Raises UserError if the checkpoint holds another model's or optimizer's state, or none is whole.
        """
        self.wait()
        if self.latest_step is None:
            return None
        rest = _rest(abstract_state)
        learned, frozen = split(abstract_state.params, abstract_state.trainable)

        def read(step: int) -> Any:
            _check_fit(self._manager, step, self.directory, {PARAMS: learned, OPTIMIZER: rest})
            items = {
                PARAMS: ocp.args.StandardRestore(_with_sharding(learned)),
                OPTIMIZER: ocp.args.StandardRestore(_with_sharding(rest)),
                ITERATOR: ocp.args.JsonRestore(),
            }
            return self._manager.restore(step, args=ocp.args.Composite(**items))

        step, restored, broken = newest_whole(self.directory, self._manager.all_steps(), read)
        for other, reason in broken.items():
            self._tell(f"{set_aside(self.directory, other)} is broken ({reason}); going on from step {step}")
        if broken:
            self._manager.reload()
        params = join(restored[PARAMS], _restore_frozen(self.directory, frozen))
        return abstract_state.replace(params=params, **restored[OPTIMIZER]), restored[ITERATOR]

    def wait(self) -> None:
        """Returns when every save so far is on the disk, or has failed."""
        try:
            self._manager.wait_until_finished()
        except CANNOT_WRITE as error:
            self._give_up(error)
        self._saving = None


def restore_params(
    workdir: Path,
    abstract_params: Params,
    trainable: tuple[str, ...] = ("*",),
    prefixes: tuple[str, ...] = ("",),
) -> Params:
    """The parameters alone of `restore_newest`."""
    return restore_newest(workdir, abstract_params, trainable, prefixes)[0]


def restore_newest(
    workdir: Path,
    abstract_params: Params,
    trainable: tuple[str, ...] = ("*",),
    prefixes: tuple[str, ...] = ("",),
    tell: Tell = tell_stderr,
) -> tuple[Params, int]:
    """The parameters of the newest checkpoint that is whole, for evaluation and generation, and its step.

    abstract_params: shapes, dtypes and, where it matters, shardings. trainable: the run's globs. tell: takes a line on
    a newer one that is broken, which stays where it is. prefixes: of the paths of parameters that are read; the others
    are left out.
    Raises UserError if there is no checkpoint, none is whole, or it holds another model's parameters.
    """
    directory = workdir.absolute() / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{workdir}: there is no trained model in it; train first, or give a run's directory")
    with _manager(directory, read_only=True) as manager:
        if manager.latest_step() is None:
            raise UserError(f"{workdir}: it holds no finished checkpoint; train on until the first one is saved")
        learned, frozen = split(abstract_params, trainable)

        def read(step: int) -> Params:
            _check_fit(manager, step, directory, {PARAMS: learned})
            return _read_part(directory / str(step) / PARAMS, learned, prefixes)

        step, restored, broken = newest_whole(directory, manager.all_steps(), read)
        for other, reason in broken.items():
            tell(f"{directory / str(other)} is broken ({reason}); taking the parameters of step {step}")
        return join(restored, _restore_frozen(directory, frozen, prefixes)), step


def _restore_frozen(directory: Path, abstract: Params, prefixes: tuple[str, ...] = ("",)) -> Params:
    if not abstract:
        return {}
    home = directory.parent / FROZEN
    if not home.is_dir():
        raise UserError(f"{home}: the run's frozen parameters are missing; copy that directory along with the steps")

    def read() -> Params:
        with ocp.StandardCheckpointer() as checkpointer:
            stored = _shapes(checkpointer.metadata(home).item_metadata)
            if not stored:  # what Orbax makes of a file that is not there, or not whole
                raise BrokenError("its list of arrays cannot be read")
            _compare(home, FROZEN, stored, _shapes(abstract))
        return _read_part(home, abstract, prefixes)

    try:
        return read_or_broken(read)
    except BrokenError as error:
        raise UserError(
            f"{home}: the run's frozen parameters cannot be read ({error}); put a whole copy in their place"
        ) from None


def _read_part(item: Path, abstract: Params, prefixes: tuple[str, ...]) -> Params:
    """The parameters alone whose paths begin so."""
    flat = traverse_util.flatten_dict(_with_sharding(abstract), sep="/")
    wanted = traverse_util.unflatten_dict({p: leaf for p, leaf in flat.items() if p.startswith(prefixes)}, sep="/")
    if not wanted:
        return {}
    settings = ocp.checkpoint_utils.construct_restore_args(wanted)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(
            item, args=ocp.args.PyTreeRestore(wanted, restore_args=settings, partial_restore=True)
        )


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
    """Orbax reports its every step through absl's logger, and its errors, which it raises as well, at length."""
    return "orbax" not in record.pathname


def _rest(state: TrainState) -> dict[str, Any]:
    """All but the parameters, which are an item of their own so that they can be read alone."""
    rest = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
    return rest if state.feature_map is None else rest | {"feature_map": state.feature_map}


def _with_sharding(shapes: Any) -> Any:
    """Without a sharding Orbax would ask for the devices that the checkpoint was written on."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), shapes)


def _check_fit(manager: ocp.CheckpointManager, step: int, directory: Path, wanted: dict[str, Any]) -> None:
    """Raises UserError where the checkpoint is of something else, and BrokenError where it lacks a part."""
    for item in (*wanted, ITERATOR):
        if not (directory / str(step) / item).is_dir():
            raise BrokenError(f"{item} is missing")
    stored = manager.item_metadata(step)
    for item, tree in wanted.items():
        theirs = _shapes(stored[item])
        if not theirs:  # what Orbax makes of a file that is not there
            raise BrokenError(f"{item}/_METADATA is missing")
        _compare(directory / str(step), item, theirs, _shapes(tree))


def _compare(checkpoint: Path, item: str, theirs: dict[str, tuple], ours: dict[str, tuple]) -> None:
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise UserError(
                f"{checkpoint}: {item}/{name} is {_show(theirs.get(name))} in the checkpoint and "
                f"{_show(ours.get(name))} in the config's model; use the config that it was trained with, "
                "or another workdir"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _show(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {shape}"

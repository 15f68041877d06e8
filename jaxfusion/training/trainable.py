"""Which parameters train: a glob says so, and what no glob names is frozen before `grad` sees it."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from flax import traverse_util

from jaxfusion.errors import UserError
from jaxfusion.models.lora import is_adapter
from jaxfusion.models.vlm import Params


def split(params: Params, globs: Sequence[str]) -> tuple[Params, Params]:
    """The parameters that train and those that are frozen, each a nested dict with the other's leaves left out.

    globs: over paths such as "decoder/layers/mlp/up/kernel", as in `config.train.trainable`; "*" takes "/" in too.
    Leaves may be arrays or shapes. Raises UserError for a glob that fits no path, and where there is none.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    for glob in globs:
        _check_fits("config.train.trainable", glob, leaves, "parameter")
    trains = {path for path in leaves if any(fnmatchcase(path, glob) for glob in globs)}
    if not trains:
        raise UserError("config.train.trainable: nothing would train; name some parameters, such as 'projector/*'")
    parts = ({path: leaf for path, leaf in leaves.items() if (path in trains) == kept} for kept in (True, False))
    trainable, frozen = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return trainable, frozen


def trained_paths(params: Params, globs: Sequence[str]) -> frozenset[str]:
    """The paths of the parameters that train, as `split` has them."""
    return frozenset(traverse_util.flatten_dict(split(params, globs)[0], sep="/"))


def join(trainable: Params, frozen: Params) -> Params:
    """The inverse of `split`."""
    leaves = traverse_util.flatten_dict(trainable, sep="/") | traverse_util.flatten_dict(frozen, sep="/")
    return traverse_util.unflatten_dict(leaves, sep="/")


def first_fits(setting: str, rules: Sequence[Sequence[str]], paths: Iterable[str]) -> dict[str, int]:
    """For each path that a glob of some rule fits, the number of the first such rule.

    Raises UserError, which names the setting, for a glob that fits no path, and for a rule that comes too late for all
    that it fits.
    """
    paths = list(paths)
    for index, globs in enumerate(rules):
        for glob in globs:
            _check_fits(f"{setting}[{index}].globs", glob, paths, "parameter that trains")
    found = {}
    for path in paths:
        fitting = (i for i, globs in enumerate(rules) if any(fnmatchcase(path, glob) for glob in globs))
        if (index := next(fitting, None)) is not None:
            found[path] = index
    for index, globs in enumerate(rules):
        if index not in found.values():
            raise UserError(f"{setting}[{index}].globs: earlier rules take all that {globs} fits; put it before them")
    return found


def _check_fits(setting: str, glob: str, paths: Iterable[str], kind: str) -> None:
    if not any(fnmatchcase(path, glob) for path in paths):
        raise UserError(f"{setting}: no {kind} fits {glob!r}; {_nearest(glob, paths)}")


def check_only_adapters_train(params: Params, globs: Sequence[str]) -> None:
    """Raises UserError where something else trains as well, which adapters alone do not hold."""
    for path in sorted(trained_paths(params, globs)):
        if not is_adapter(path):
            raise UserError(f"config.train.trainable: {path} was trained besides the adapters; export it all, merged")


def _nearest(glob: str, paths: Iterable[str]) -> str:
    """What may have been meant: a parameter, or all that lie under some part of a path."""
    paths = list(paths)
    under = {path[:end] + "/*" for path in paths for end, letter in enumerate(path) if letter == "/"}
    close = difflib.get_close_matches(glob, [*sorted(under), *paths], n=1)
    rooms = sorted({path.split("/")[0] + "/*" for path in paths})
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(rooms)}"

"""Between the typed dataclasses and what people write: config files, dicts, command-line values.

Everything a person can get wrong is caught here, by the full name of the key, in one line.
"""

import ast
import dataclasses
import difflib
import re
import runpy
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxfusion.config.presets import PRESETS
from jaxfusion.config.ranges import check_ranges
from jaxfusion.config.run import Config
from jaxfusion.errors import UserError

if TYPE_CHECKING:  # the typed configs must work where only the model functions' dependencies are installed
    import ml_collections

T = TypeVar("T")

# How to write the first of several settings in a row.
EXAMPLES = {
    "rules": "({'globs': ('vision/*',), 'learning_rate': 1e-5},)",
    "others": "({'name': 'json', 'path': 'more.jsonl', 'task': 'dialogue'},)",
    "lora": "({'layers': 'decoder/layers/*', 'rank': 8},)",
}


def to_dict(value: Any) -> Any:
    """Dataclasses and ConfigDicts, at any depth, to nested dicts that JSON can hold; a room's carries its `kind`."""
    if dataclasses.is_dataclass(value):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return kind | {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "items"):  # a ConfigDict is no Mapping by type
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_dict(item) for item in value)
    return value


def from_dict(cls: type[T], values: Any, path: str = "config") -> T:
    """A dataclass from a dict or ConfigDict (dataclasses may stand in it), checked key by key. Raises UserError."""
    values = to_dict(values)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected settings, got {values!r}; set its fields, as in {path}.{_first(cls)}")
    hints = get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    given = {key: value for key, value in values.items() if key != "kind" or not hasattr(cls, "kind")}
    for key in given:
        if key not in fields:
            kind = f"{cls.kind!r} has no" if hasattr(cls, "kind") else "there is no"
            raise UserError(f"{path}.{key}: {kind} such setting; {_nearest(key, fields)}")
    return cls(**{key: _value(fields[key], value, f"{path}.{key}") for key, value in given.items()})


def _value(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
        return _union_value(get_args(hint), value, path)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{path}: {value!r} is not a choice; {_nearest(value, get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        return _tuple_value(get_args(hint), value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{path}: expected {hint.__name__}, got {type(value).__name__} {value!r}; change the value")
    return value


def _tuple_value(args: tuple, value: Any, path: str) -> tuple:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        like = f"({', '.join(_example(a) for a in args if a is not Ellipsis)},)"
        raise UserError(f"{path}: expected a tuple such as {like}, got {value!r}; write it in brackets, with a comma")
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else args
    if len(hints) != len(value):
        raise UserError(f"{path}: expected {len(hints)} values, got {len(value)}: {value!r}")
    return tuple(_value(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _union_value(choices: tuple, value: Any, path: str) -> Any:
    """A room: None, a preset's name, or a dict with a kind and fields. Or a plain value that may be None."""
    if not any(map(dataclasses.is_dataclass, choices)):
        (hint,) = (choice for choice in choices if choice is not type(None))
        return None if value is None else _value(hint, value, path)
    presets = PRESETS[path.rpartition(".")[2]]
    kinds = {cls.kind: cls for cls in choices if dataclasses.is_dataclass(cls)}
    if value is None and type(None) in choices:
        return None
    if isinstance(value, str):
        if value not in presets:
            raise UserError(f"{path}: {value!r} is not a choice; {_nearest(value, presets)}")
        return presets[value]
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a name or settings with a kind, got {value!r}; {_nearest('', presets)}")
    if "kind" not in value:
        raise UserError(f"{path}: settings need a kind; {_nearest('', kinds)}")
    if value["kind"] not in kinds:
        raise UserError(f"{path}.kind: {value['kind']!r} is not a choice; {_nearest(value['kind'], kinds)}")
    return from_dict(kinds[value["kind"]], value, path)


def _nearest(name: Any, choices: Iterable) -> str:
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"


def _example(hint: Any) -> str:
    return {int: "1", float: "0.5"}.get(hint, "..." if hint is Ellipsis else "'...'")


def _first(cls: Any) -> str:
    return dataclasses.fields(cls)[0].name if dataclasses.fields(cls) else "..."


def default_config() -> "ml_collections.ConfigDict":
    """All defaults as a ConfigDict to be changed in a config file; unknown names raise at the line that sets them."""
    import ml_collections

    return ml_collections.ConfigDict(to_dict(Config()), type_safe=False).lock()


def read_config(
    path: str | Path, overrides: Mapping[str, str] | None = None, expand: Callable[[dict], dict] = lambda values: values
) -> Config:
    """The config that a file's `get_config()` returns, with values from the command line put over it.

    overrides: dotted names without the leading "config." to values as typed, e.g. {"train.num_steps": "200"}.
    expand:    puts settings in the place of checkpoints' names, see `jaxfusion.pretrained.join`.
    Raises UserError for a missing or broken file and for every wrong name or value.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a config file, as in configs/"
        raise UserError(f"{path}: no such config file; {hint}")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if callable(get_config) else None
    except Exception as error:
        raise UserError(f"{_where(path, error)}: {_reason(error)}") from error
    if get_config is None:
        raise UserError(f"{path}: it has no get_config(); define one that returns a config")
    values = to_dict(config)
    if not isinstance(values, dict):
        raise UserError(f"{path}: get_config() returned {values!r}; let it return the config")
    return override(values, overrides or {}, expand)


def override(config: Any, texts: Mapping[str, str], expand: Callable[[dict], dict] = lambda values: values) -> Config:
    """The config (or the dict of one) with values from the command line put over it, by dotted names."""
    values = to_dict(config)
    values = expand(_without_replaced_checkpoints(values, texts))
    for name, text in texts.items():
        _override(values, name, text)
        values = expand(values)  # so that the next can change a setting of a checkpoint that this one has named
    checked = from_dict(Config, values)
    check_ranges(checked)
    return checked


def _without_replaced_checkpoints(values: dict[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """With the command line's checkpoints in place of the config's, which then are not looked for."""
    if "model" in texts:
        return values | {"model": texts["model"]}
    model = values.get("model")
    if not isinstance(model, dict):
        return values
    replaced = {
        room: texts[f"model.{room}"]
        for room, given in model.items()
        if f"model.{room}" in texts and _names_checkpoint(given, room)
    }
    return values | {"model": model | replaced}


def _names_checkpoint(given: Any, room: str) -> bool:
    if isinstance(given, dict):
        return "checkpoint" in given
    return isinstance(given, str) and given not in PRESETS.get(room, {})


def _where(path: Path, error: Exception) -> str:
    """The file and the line of it at which the error arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines and lines[-1] else str(path)


def _reason(error: Exception) -> str:
    """The error on one line. ConfigDict's message on an unknown name holds the whole config; it is cut to the name."""
    text = str(error)
    if near := re.search(r'Did you mean "(.+?)" instead of "(.+?)"', text):
        return f"there is no setting {near[2]!r}; did you mean {near[1]!r}?"
    if unknown := re.search(r'Key "(.+?)" does not exist', text):
        return f"there is no setting {unknown[1]!r} here; mend that line"
    return f"{type(error).__name__}: {' '.join(text.split())}; mend that line"


def _override(values: dict[str, Any], name: str, text: str) -> None:
    """Puts one command-line value in place; a room written as a preset's name is opened up to set a field of it.

    Of several settings in a row one is named by its number, as in "train.rules.0.learning_rate".
    """
    *parents, last = name.split(".")
    here, path = values, "config"
    for part in parents:
        key = _key(here, part, path)
        path += f".{part}"
        here[key] = list(here[key]) if isinstance(here[key], tuple) else here[key]
        if isinstance(here[key], str) and here[key] in PRESETS.get(key, {}):
            here[key] = to_dict(PRESETS[key][here[key]])
        if not isinstance(here[key], dict | list):
            raise UserError(f"config.{name}: {path} is {here[key]!r} and has no settings; choose another value for it")
        here = here[key]
    if isinstance(here, list):
        here[_key(here, last, path)] = _literal(text)
        return
    is_text = isinstance(here.get(last), str) and last not in PRESETS  # a room's name may give way to None or a dict
    here[last] = text if is_text else _literal(text)


def _key(here: dict[str, Any] | list, part: str, path: str) -> Any:
    if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
        return int(part)
    if not isinstance(here, dict) or part not in here:
        if here == []:
            example = EXAMPLES.get(path.rpartition(".")[2], "('...',)")
            raise UserError(f'{path}.{part}: there are none; add one in the config file, or by --{path}="{example}"')
        names = range(len(here)) if isinstance(here, list) else here
        raise UserError(f"{path}.{part}: there is no such setting; {_nearest(part, names)}")
    return part


def _literal(text: str) -> Any:
    """Python's reading of the text, or the text itself; 'true' and 'none' count, whatever their case."""
    lowered = {"true": True, "false": False, "none": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text

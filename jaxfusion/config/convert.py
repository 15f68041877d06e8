"""Between the typed dataclasses and what people write: config files, dicts, command-line values.

Everything a person can get wrong is caught here, by the full name of the key, in one line.
"""

import ast
import dataclasses
import difflib
import runpy
import traceback
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import ml_collections

from jaxfusion.config.presets import PRESETS
from jaxfusion.config.run import Config
from jaxfusion.errors import UserError

T = TypeVar("T")


def to_dict(value: Any) -> Any:
    """Dataclasses to plain nested dicts that JSON can hold; a room's dict carries its `kind`."""
    if dataclasses.is_dataclass(value):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return kind | {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """A dataclass from a mapping (dict or ConfigDict), checked key by key. Raises UserError."""
    hints = get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    given = {key: values[key] for key in values if key != "kind"}
    for key in given:
        if key not in fields:
            raise UserError(f"{path}.{key}: there is no such setting; {_nearest(key, fields)}")
    return cls(**{key: _value(fields[key], value, f"{path}.{key}") for key, value in given.items()})


def _value(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
        return _union_value(get_args(hint), value, path)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping | ml_collections.ConfigDict):
            room = path.rpartition(".")[2]
            if isinstance(value, str) and value in PRESETS.get(room, {}):
                return PRESETS[room][value]
            raise UserError(f"{path}: expected settings, got {value!r}; set its fields, as in {path}.{_first(hint)}")
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
        raise UserError(f"{path}: expected a tuple such as ({', '.join(_example(a) for a in args)},), got {value!r}")
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else args
    if len(hints) != len(value):
        raise UserError(f"{path}: expected {len(hints)} values, got {len(value)}: {value!r}")
    return tuple(_value(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _union_value(choices: tuple, value: Any, path: str) -> Any:
    """A room: None, a preset's name, one of the dataclasses, or a mapping with a kind (or a preset) and fields."""
    presets = PRESETS[path.rpartition(".")[2]]
    kinds = {cls.kind: cls for cls in choices if dataclasses.is_dataclass(cls)}
    if (value is None and type(None) in choices) or isinstance(value, tuple(kinds.values())):
        return value
    if isinstance(value, str):
        if value not in presets:
            raise UserError(f"{path}: {value!r} is not a choice; {_nearest(value, presets)}")
        return presets[value]
    if not isinstance(value, Mapping | ml_collections.ConfigDict):
        raise UserError(f"{path}: expected a name or settings with a kind, got {value!r}; {_nearest('', presets)}")
    if "kind" not in value:
        raise UserError(f"{path}: settings need a kind; {_nearest('', kinds)}")
    if value["kind"] not in kinds:
        raise UserError(f"{path}.kind: {value['kind']!r} is not a choice; {_nearest(value['kind'], kinds)}")
    return from_dict(kinds[value["kind"]], value, path)


def _nearest(name: Any, choices: typing.Iterable) -> str:
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"


def _example(hint: Any) -> str:
    return {int: "1", float: "0.5"}.get(hint, "..." if hint is Ellipsis else "'...'")


def _first(cls: Any) -> str:
    return dataclasses.fields(cls)[0].name if dataclasses.fields(cls) else "..."


def default_config() -> ml_collections.ConfigDict:
    """All defaults as a ConfigDict to be changed in a config file; unknown names raise at the line that sets them."""
    return ml_collections.ConfigDict(to_dict(Config()), type_safe=False).lock()


def read_config(path: str | Path, overrides: Mapping[str, str] | None = None) -> Config:
    """The config that a file's `get_config()` returns, with values from the command line put over it.

    overrides: dotted names without the leading "config." to values as typed, e.g. {"train.num_steps": "200"}.
    Raises UserError for a missing or broken file and for every wrong name or value.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a config file, as in configs/"
        raise UserError(f"{path}: no such config file; {hint}")
    try:
        config = runpy.run_path(str(path))["get_config"]()
    except KeyError:
        raise UserError(f"{path}: it has no get_config(); define one that returns a config") from None
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}:{error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else '?'}"
        message = " ".join(str(error).split())
        raise UserError(f"{where}: {type(error).__name__}: {message}; mend that line") from error
    values = to_dict(config) if isinstance(config, Config) else config.to_dict()
    for name, text in (overrides or {}).items():
        _override(values, name, text)
    return from_dict(Config, values)


def _override(values: dict[str, Any], name: str, text: str) -> None:
    """Puts one command-line value in place; a room written as a preset's name is opened up to set a field of it."""
    *parents, last = name.split(".")
    here, path = values, "config"
    for key in parents:
        if not isinstance(here, dict) or key not in here:
            raise UserError(f"{path}.{key}: there is no such setting; {_nearest(key, here)}")
        path += f".{key}"
        if isinstance(here[key], str) and here[key] in PRESETS.get(key, {}):
            here[key] = to_dict(PRESETS[key][here[key]])
        if not isinstance(here[key], dict):
            raise UserError(f"config.{name}: {path} is {here[key]!r} and has no settings; choose another value for it")
        here = here[key]
    here[last] = _literal(text, of=here.get(last))


def _literal(text: str, of: Any) -> Any:
    """Python's reading of the text, or the text itself; 'true' and 'none' count, whatever their case."""
    if isinstance(of, str):
        return text
    lowered = {"true": True, "false": False, "none": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

"""A record's fields, as tasks read them: by any of their names, in a language or without one, decoded and checked."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxfusion.config.run import DataConfig
from jaxfusion.data.turns import text_of
from jaxfusion.errors import RecordError, UserError

Record = Mapping[str, Any]

# What fields may be called, first to last, each with the language behind it (`caption_en`) before it counts without.
# XSum has a document and its summary, CNN/DailyMail an article and its highlights.
NAMES = {
    "caption": ("caption", "captions", "text"),
    "questions": ("questions", "question"),
    "answers": ("answers", "answer"),
    "choices": ("choices", "options"),
    "document": ("document", "article", "text"),
    "summary": ("summary", "summaries", "highlights"),
    "text": ("text",),
    "messages": ("messages",),
    "conversations": ("conversations",),
}


def name_of(record: Record, config: DataConfig) -> str:
    """By which people know the record: the file and line it is from, or its number."""
    return record["origin"] if "origin" in record else str(int(record["image_id"]))


def called(record: Record, field: str, language: str) -> str:
    """What the record calls a field; the first of its names, where there is none."""
    names = [known for name in NAMES[field] for known in (f"{name}_{language}", name)]
    return next((name for name in names if record.get(name) is not None), NAMES[field][0])


def field_of(record: Record, name: str, config: DataConfig) -> Any:
    if record.get(name) is None:
        raise bad(
            record,
            config,
            f"there is no field {name!r}, which the task {config.task!r} reads; its fields are "
            f"{', '.join(record)}, and config.data.fields may say which to take",
        )
    return record[name]


def one_text(record: Record, name: str, config: DataConfig) -> str:
    (text,) = texts_of([field_of(record, name, config)], record, name, config)
    return text


def several(record: Record, name: str, config: DataConfig) -> tuple[str, ...]:
    """A field's one text or several."""
    return texts_of(field_of(record, name, config), record, name, config)


def texts_of(value: Any, record: Record, name: str, config: DataConfig) -> tuple[str, ...]:
    """One text or several, of which there must be one, and none empty."""
    texts = (value,) if isinstance(value, bytes | str | int | float | np.generic) else value
    if not is_list(texts):
        raise bad(record, config, f"{name!r} is {value!r:.40} and should be a text; correct it")
    if not len(texts):
        raise bad(record, config, f"nothing is in {name!r}, which the task {config.task!r} reads; give it a text")
    return tuple(_decoded(text, record, name, config) for text in texts)


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _decoded(value: Any, record: Record, name: str, config: DataConfig) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise bad(record, config, f"{name!r} is not UTF-8 ({error}); correct it") from None
    if not isinstance(text, str | int | float | np.generic) or isinstance(text, bool):
        raise bad(record, config, f"{name!r} holds {value!r:.40} and should be a text; correct it")
    if not str(text).strip():
        raise bad(record, config, f"{name!r} is empty; correct it")
    try:
        return text_of(str(text), repr(name))
    except UserError as error:
        raise bad(record, config, str(error)) from None


def bad(record: Record, config: DataConfig, reason: str) -> RecordError:
    where = record["origin"] if "origin" in record else f"record {name_of(record, config)} of {config.name}"
    return RecordError(where, reason)

"""Tasks: what to make of a record. Each gives all the samples that a record holds in one language.

A task reads fields by name (`caption_en`, `questions_zh`, ...); `prepare_text` is applied to what people wrote. A
caption, and each of the answers, may be one text or several that are all right.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxfusion.config.run import DataConfig
from jaxfusion.data.messages import Image, Masked, Message, Sample, answer, ask
from jaxfusion.data.turns import (
    filled,
    named_no_more,
    parse_conversation,
    parse_messages,
    spread,
    text_of,
    with_pictures_placed,
    without_places,
)
from jaxfusion.errors import RecordError, UserError
from jaxfusion.text.segmentation import remove_stop_words, segment

Record = Mapping[str, Any]


def samples_of(
    record: Record, config: DataConfig, pictures: Sequence[np.ndarray | Image] | None, labels: list[str]
) -> list[Sample]:
    """The record's samples in every language of the config, in a fixed order.

    pictures: what the vision room takes, as many as the record has, then its video's frames, as Image where their times
              are told; None to leave them out.
    labels:   names of the classes, for the task "classify".
    Raises RecordError for a record without what the task reads, or with something else in its place.
    """
    images = pictures if pictures is None else tuple(p if isinstance(p, Image) else Image(p) for p in pictures)
    if config.task in OF_PICTURES and images == ():
        raise _bad(record, config, f"it has no picture, which the task {config.task!r} reads")
    if config.task != "dialogue":
        images = images or ()
    return [
        sample
        for language in config.languages
        for sample in TASKS[config.task](record, images, language, config, labels)
    ]


def _caption(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    captions = _several(record, _name(record, "caption", language, config), config)
    return [_answered(name_of(record, config), language, ask(*images), captions)]


def _question_answer(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    asked, given = (_name(record, name, language, config) for name in ("questions", "answers"))
    questions = _several(record, asked, config)
    answers = _field(record, given, config)
    if given == "answer" or not _is_list(answers) or (len(questions) == 1 and not any(map(_is_list, answers))):
        answers = [answers]  # to a question alone
    if len(answers) != len(questions):
        raise _bad(record, config, f"{len(questions)} questions and answers to {len(answers)}; give as many")
    return [
        _answered(
            f"{name_of(record, config)}-{i}",
            language,
            ask(*images, prepare_text(question, language, config)),
            _texts(replies, record, given, config),
        )
        for i, (question, replies) in enumerate(zip(questions, answers, strict=True))
    ]


def _fill(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    """The caption with every word hidden that only the picture can tell: digits, sizes, colours."""
    caption, *_ = _several(record, _name(record, "caption", language, config), config)
    parts = _hide(caption, VISIBLE_ONLY[language])
    return [Sample(name_of(record, config), language, (ask(*images, *parts), answer(caption)))]


def _classify(
    record: Record, images: tuple[Image, ...], language: str, config: DataConfig, labels: list[str]
) -> list[Sample]:
    label = class_of(record, config, labels)
    text = ""
    if "text" in record and "text" in config.modalities:  # a data set of pictures alone has none
        text = prepare_text(_text(record, "text", config), language, config)
    elif "text" not in record and not images and record.get("images") == []:
        raise _bad(record, config, f"it has neither picture nor text, of which the task {config.task!r} reads one")
    return [Sample(name_of(record, config), language, (ask(*images, text), answer(labels[label])), label)]


def class_of(record: Record, config: DataConfig, labels: Sequence[str]) -> int:
    """The number of the record's class. Raises RecordError where it has none of those that there are."""
    value = _field(record, config.label, config)
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < len(labels):
        named = f"; the classes are {', '.join(labels)}" if labels else "; name the classes in config.data.labels"
        raise _bad(record, config, f"{config.label!r} is {value!r:.40}, which is no class{named}")
    return number


def _dialogue(record: Record, images: tuple[Image, ...] | None, language: str, config: DataConfig, _) -> list[Sample]:
    """All turns, in the order in which they were said; turns behind the last answer are left out."""

    def prepare(text: str) -> str:
        return prepare_text(text, language, config)

    try:
        if record.get("messages") is not None:
            messages = parse_messages(record["messages"], prepare, ("user", "assistant", "system"))
        else:
            messages = parse_conversation(_field(record, "conversations", config), prepare)
        messages, own = named_no_more(messages), record.get("images") or images or ()
        if record.get("video") is not None:
            if record.get("images"):
                raise UserError("a dialogue has pictures or a video; leave one of them out")
            own = own or ("video",)  # one place, where frames are left out
            messages = spread(messages, len(own))
        placed, _ = with_pictures_placed(messages, own)
    except RecordError:
        raise
    except UserError as error:
        raise _bad(record, config, str(error)) from None
    while placed and placed[-1].role != "assistant":
        placed.pop()
    if not placed:
        raise _bad(record, config, "nobody answers, so there is nothing to learn; leave it out")
    if not any(message.role == "user" for message in placed):
        raise _bad(record, config, "nobody asks before the last answer; take texts by the task 'text'")
    messages = without_places(placed) if images is None else filled(placed, images)
    for number, message in enumerate(messages):
        if message.role == "assistant" and not message.text.strip():
            raise _bad(record, config, f"the answer in turn {number} is empty; correct it")
    return [Sample(name_of(record, config), language, messages)]


def _document(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    text = prepare_text(_text(record, "text", config), language, config)
    return [Sample(name_of(record, config), language, (answer(text),))]


TASKS: dict[str, Callable[..., list[Sample]]] = {
    "caption": _caption,
    "question_answer": _question_answer,
    "fill": _fill,
    "classify": _classify,
    "dialogue": _dialogue,
    "text": _document,
}

# Tasks that make no sense without a picture, unless pictures are left out on purpose.
OF_PICTURES = ("caption", "question_answer", "fill")

# What fields may be called, first to last.
NAMES = {
    "caption": ("caption_{language}", "caption", "captions", "text"),
    "questions": ("questions_{language}", "questions", "question"),
    "answers": ("answers_{language}", "answers", "answer"),
}

# What the task "fill" hides, in the words of the built-in digit scenes.
VISIBLE_ONLY = {
    "en": [*"0123456789", "small", "large", "red", "green", "blue", "yellow", "white"],
    "zh": [*"0123456789", "小", "大", "红色", "绿色", "蓝色", "黄色", "白色"],
}


def _hide(text: str, words: list[str]) -> list[str | Masked]:
    """Cuts a text around the given words, each of which is masked together with a space before it."""
    import re

    pattern = re.compile(rf"( ?(?:{'|'.join(words)})(?![a-z]))")
    return [Masked(piece) if i % 2 else piece for i, piece in enumerate(pattern.split(text)) if piece]


def prepare_text(text: str, language: str, config: DataConfig) -> str:
    """What people wrote, as the model is to read it: cut into words, or only those that say something, if so set."""
    if not (config.segment_words or config.remove_stop_words):
        return text
    words = segment(text)
    return " ".join(remove_stop_words(words, language) if config.remove_stop_words else words)


def _answered(name: str, group: str, message: Message, answers: tuple[str, ...]) -> Sample:
    ((most_given, _),) = Counter(answers).most_common(1)  # of those given as often, the first
    return Sample(name, group, (message, answer(most_given)), answers=answers if len(answers) > 1 else ())


def name_of(record: Record, config: DataConfig) -> str:
    """By which people know the record: the file and line it is from, or its number."""
    return record["origin"] if "origin" in record else str(int(record["image_id"]))


def _name(record: Record, field: str, language: str, config: DataConfig) -> str:
    """What the record calls a field."""
    names = [name.format(language=language) for name in NAMES[field]]
    return next((name for name in names if record.get(name) is not None), names[0])


def _field(record: Record, name: str, config: DataConfig) -> Any:
    if record.get(name) is None:
        raise _bad(
            record,
            config,
            f"there is no field {name!r}, which the task {config.task!r} reads; its fields are "
            f"{', '.join(record)}, and config.data.fields may say which to take",
        )
    return record[name]


def _text(record: Record, name: str, config: DataConfig) -> str:
    (text,) = _texts([_field(record, name, config)], record, name, config)
    return text


def _several(record: Record, name: str, config: DataConfig) -> tuple[str, ...]:
    """A field's one text or several."""
    return _texts(_field(record, name, config), record, name, config)


def _texts(value: Any, record: Record, name: str, config: DataConfig) -> tuple[str, ...]:
    """One text or several, of which there must be one, and none empty."""
    texts = (value,) if isinstance(value, bytes | str | int | float | np.generic) else value
    if not _is_list(texts):
        raise _bad(record, config, f"{name!r} is {value!r:.40} and should be a text; correct it")
    if not len(texts):
        raise _bad(record, config, f"nothing is in {name!r}, which the task {config.task!r} reads; give it a text")
    return tuple(_decoded(text, record, name, config) for text in texts)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _decoded(value: Any, record: Record, name: str, config: DataConfig) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise _bad(record, config, f"{name!r} is not UTF-8 ({error}); correct it") from None
    if not isinstance(text, str | int | float | np.generic) or isinstance(text, bool):
        raise _bad(record, config, f"{name!r} holds {value!r:.40} and should be a text; correct it")
    if not str(text).strip():
        raise _bad(record, config, f"{name!r} is empty; correct it")
    try:
        return text_of(str(text), repr(name))
    except UserError as error:
        raise _bad(record, config, str(error)) from None


def _bad(record: Record, config: DataConfig, reason: str) -> RecordError:
    where = record["origin"] if "origin" in record else f"record {name_of(record, config)} of {config.name}"
    return RecordError(where, reason)

"""Tasks: what to make of a record. Each gives all the samples that a record holds in one language.

A task reads fields by name (`caption_en`, `questions_zh`, ...); `prepare_text` is applied to what people wrote. A
caption, and each of the answers, may be one text or several that are all right.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxfusion.config.run import DataConfig
from jaxfusion.data.messages import Image, Masked, Message, Sample, answer, ask
from jaxfusion.errors import UserError
from jaxfusion.text.segmentation import remove_stop_words, segment

Record = Mapping[str, Any]


def samples_of(record: Record, config: DataConfig, image: np.ndarray | None, labels: list[str]) -> list[Sample]:
    """The record's samples in every language of the config, in a fixed order.

    image:  what the vision room takes, or None to leave the picture out.
    labels: names of the classes, for the task "classify".
    """
    images = () if image is None else (Image(image),)
    return [
        sample
        for language in config.languages
        for sample in TASKS[config.task](record, images, language, config, labels)
    ]


def _caption(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    field = f"caption_{language}"
    captions = _several(_field(record, field, config), record, field, config)
    return [_answered(_id(record, config), language, ask(*images), captions)]


def _question_answer(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    questions, field = _texts(record, f"questions_{language}", config), f"answers_{language}"
    return [
        _answered(
            f"{_id(record, config)}-{i}",
            language,
            ask(*images, prepare_text(question, language, config)),
            _several(replies, record, field, config),
        )
        for i, (question, replies) in enumerate(zip(questions, _field(record, field, config), strict=True))
    ]


def _fill(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    """The caption with every word hidden that only the picture can tell: digits, sizes, colours."""
    field = f"caption_{language}"
    caption, *_ = _several(_field(record, field, config), record, field, config)
    parts = _hide(caption, VISIBLE_ONLY[language])
    return [Sample(_id(record, config), language, (ask(*images, *parts), answer(caption)))]


def _classify(
    record: Record, images: tuple[Image, ...], language: str, config: DataConfig, labels: list[str]
) -> list[Sample]:
    label = int(_field(record, config.label, config))
    text = ""
    if "text" in record and "text" in config.modalities:  # a data set of pictures alone has none
        text = prepare_text(_text(record, "text", config), language, config)
    return [Sample(_id(record, config), language, (ask(*images, text), answer(labels[label])), label)]


TASKS: dict[str, Callable[..., list[Sample]]] = {
    "caption": _caption,
    "question_answer": _question_answer,
    "fill": _fill,
    "classify": _classify,
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


def _id(record: Record, config: DataConfig) -> str:
    return str(int(_field(record, "image_id", config)))


def _field(record: Record, name: str, config: DataConfig) -> Any:
    if name not in record:
        raise UserError(
            f"config.data.name: {config.name} has no field {name!r}, which the task {config.task!r} reads; "
            f"its fields are {', '.join(record)}"
        )
    return record[name]


def _text(record: Record, name: str, config: DataConfig) -> str:
    return _decoded(_field(record, name, config))


def _texts(record: Record, name: str, config: DataConfig) -> list[str]:
    return [_decoded(item) for item in _field(record, name, config)]


def _several(value: Any, record: Record, name: str, config: DataConfig) -> tuple[str, ...]:
    """A field's one text or several, of which there must be one."""
    texts = (value,) if isinstance(value, bytes | str) else tuple(value)
    if not texts:
        raise UserError(
            f"config.data.name: record {_id(record, config)} of {config.name} has nothing in {name!r}, which the task "
            f"{config.task!r} reads; give it a text, or leave the record out"
        )
    return tuple(map(_decoded, texts))


def _decoded(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

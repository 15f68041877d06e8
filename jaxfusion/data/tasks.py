"""Tasks: what to make of a record. Each gives all the samples that a record holds in one language.

A task reads fields by name (`caption_en`, `questions_zh`, ...; `jaxfusion.data.fields`); `prepare_text` is applied to
what people wrote. A caption, a summary, and each of the answers, may be one text or several that are all right.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxfusion.config.run import DataConfig
from jaxfusion.data.choices import lettered, right_letter
from jaxfusion.data.fields import Record, bad, called, field_of, is_list, name_of, one_text, several, texts_of
from jaxfusion.data.messages import Image, Masked, Message, Sample, answer, ask
from jaxfusion.data.request import request
from jaxfusion.data.turns import (
    filled,
    named_no_more,
    parse_conversation,
    parse_messages,
    rows_of,
    spread,
    with_pictures_placed,
    without_places,
)
from jaxfusion.errors import RecordError, UserError
from jaxfusion.text.segmentation import remove_stop_words, segment


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
        raise bad(record, config, f"it has no picture, which the task {config.task!r} reads")
    if config.task != "dialogue":
        images = images or ()
    return [
        sample
        for language in config.languages
        for sample in TASKS[config.task](record, images, language, config, labels)
    ]


def _caption(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    captions = several(record, called(record, "caption", language), config)
    return [_answered(name_of(record, config), language, ask(*images, *request("", config)), captions)]


def _question_answer(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    asked, given, offered = (called(record, name, language) for name in ("questions", "answers", "choices"))
    questions = several(record, asked, config)
    answers = field_of(record, given, config)
    one = given.removesuffix(f"_{language}") == "answer"
    if one or not is_list(answers) or (len(questions) == 1 and not any(map(is_list, answers))):
        answers = [answers]  # to a question alone
    if len(answers) != len(questions):
        raise bad(record, config, f"{len(questions)} questions and answers to {len(answers)}; give as many")
    choices = _choices(record, offered, len(questions), config)
    named = record.get("choice_labels")  # what the record calls its choices
    labels = list(named) if is_list(named) else []
    samples = []
    for i, (question, replies, among) in enumerate(zip(questions, answers, choices, strict=True)):
        text = prepare_text(question, language, config)
        if among:
            text = "\n".join([text, *lettered([prepare_text(choice, language, config) for choice in among])])
            try:
                alone = replies[0] if is_list(replies) and len(replies) == 1 else replies
                right = (right_letter(alone, among, labels),)
            except UserError as error:
                raise bad(record, config, f"{given!r}: {error}") from None
        else:
            right = texts_of(replies, record, given, config)
        message = ask(*images, *request(text, config))
        samples.append(_answered(f"{name_of(record, config)}-{i}", language, message, right, among))
    return samples


def _choices(record: Record, name: str, number: int, config: DataConfig) -> list[tuple[str, ...]]:
    """What each of so many questions has to choose from; nothing, where the record offers nothing. A list of texts is
    for each of them; among lists, an empty one or None is of an open question."""

    def is_open(choices: Any) -> bool:
        return choices is None or (is_list(choices) and not len(choices))

    value = record.get(name)
    if is_open(value):
        return [()] * number
    if not is_list(value):
        raise bad(record, config, f"{name!r} is {value!r:.40} and should be a list of choices; correct it")
    one_each = any(map(is_list, value)) or all(map(is_open, value))
    lists = value if one_each else [value] * number
    if len(lists) != number:
        raise bad(record, config, f"{number} questions and {name} to {len(lists)}; give as many")
    return [() if is_open(choices) else texts_of(choices, record, name, config) for choices in lists]


def _summarize(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    document = one_text(record, called(record, "document", language), config)
    summaries = several(record, called(record, "summary", language), config)
    message = ask(*images, *request(prepare_text(document, language, config), config))
    return [_answered(name_of(record, config), language, message, summaries)]


def _fill(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    """The caption with every word hidden that only the picture can tell: digits, sizes, colours."""
    caption, *_ = several(record, called(record, "caption", language), config)
    parts = _hide(caption, VISIBLE_ONLY[language])
    return [Sample(name_of(record, config), language, (ask(*images, *parts), answer(caption)))]


def _classify(
    record: Record, images: tuple[Image, ...], language: str, config: DataConfig, labels: list[str]
) -> list[Sample]:
    label = class_of(record, config, labels)
    text, name = "", called(record, "text", language)
    there = record.get(name) is not None  # a data set of pictures alone has none
    if there and "text" in config.modalities:
        text = prepare_text(one_text(record, name, config), language, config)
    elif not there and not images and record.get("images") == []:
        raise bad(record, config, f"it has neither picture nor text, of which the task {config.task!r} reads one")
    return [
        Sample(name_of(record, config), language, (ask(*images, *request(text, config)), answer(labels[label])), label)
    ]


def class_of(record: Record, config: DataConfig, labels: Sequence[str]) -> int:
    """The number of the record's class. Raises RecordError where it has none of those that there are."""
    value = field_of(record, config.label, config)
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < len(labels):
        named = f"; the classes are {', '.join(labels)}" if labels else "; name the classes in config.data.labels"
        raise bad(record, config, f"{config.label!r} is {value!r:.40}, which is no class{named}")
    return number


def _dialogue(record: Record, images: tuple[Image, ...] | None, language: str, config: DataConfig, _) -> list[Sample]:
    """All turns, in the order in which they were said; turns behind the last answer are left out."""

    def prepare(text: str) -> str:
        return prepare_text(text, language, config)

    try:
        turns, said = (called(record, name, language) for name in ("messages", "conversations"))
        if record.get(turns) is not None:
            messages = parse_messages(rows_of(record[turns]), prepare, ("user", "assistant", "system"))
        else:
            messages = parse_conversation(rows_of(field_of(record, said, config)), prepare)
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
        raise bad(record, config, str(error)) from None
    while placed and placed[-1].role != "assistant":
        placed.pop()
    if not placed:
        raise bad(record, config, "nobody answers, so there is nothing to learn; leave it out")
    if not any(message.role == "user" for message in placed):
        raise bad(record, config, "nobody asks before the last answer; take texts by the task 'text'")
    messages = without_places(placed) if images is None else filled(placed, images)
    for number, message in enumerate(messages):
        if message.role == "assistant" and not message.text.strip():
            raise bad(record, config, f"the answer in turn {number} is empty; correct it")
    return [Sample(name_of(record, config), language, messages)]


def _document(record: Record, images: tuple[Image, ...], language: str, config: DataConfig, _) -> list[Sample]:
    text = prepare_text(one_text(record, called(record, "text", language), config), language, config)
    return [Sample(name_of(record, config), language, (answer(text),))]


TASKS: dict[str, Callable[..., list[Sample]]] = {
    "caption": _caption,
    "question_answer": _question_answer,
    "summarize": _summarize,
    "fill": _fill,
    "classify": _classify,
    "dialogue": _dialogue,
    "text": _document,
}

# Tasks that make no sense without a picture, unless pictures are left out on purpose.
OF_PICTURES = ("caption", "question_answer", "fill")

# What the task "fill" hides, in the words of the built-in digit scenes.
VISIBLE_ONLY = {
    "en": [*"0123456789", "small", "large", "red", "green", "blue", "yellow", "white"],
    "zh": [*"0123456789", "小", "大", "红色", "绿色", "蓝色", "黄色", "白色"],
}


def _hide(text: str, words: list[str]) -> list[str | Masked]:
    """Cuts a text around the given words, each of which is masked together with a space before it."""
    pattern = re.compile(rf"( ?(?:{'|'.join(words)})(?![a-z]))")
    return [Masked(piece) if i % 2 else piece for i, piece in enumerate(pattern.split(text)) if piece]


def prepare_text(text: str, language: str, config: DataConfig) -> str:
    """What people wrote, as the model is to read it: cut into words, or only those that say something, if so set."""
    if not (config.segment_words or config.remove_stop_words):
        return text
    words = segment(text)
    return " ".join(remove_stop_words(words, language) if config.remove_stop_words else words)


def _answered(
    name: str, group: str, message: Message, answers: tuple[str, ...], choices: tuple[str, ...] = ()
) -> Sample:
    ((most_given, _),) = Counter(answers).most_common(1)  # of those given as often, the first
    several_answers = answers if len(answers) > 1 else ()
    return Sample(name, group, (message, answer(most_given)), answers=several_answers, choices=choices)

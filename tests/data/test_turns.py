"""Conversations in the forms that people write, as messages with pictures in their places."""

import numpy as np
import pytest

from jaxfusion.config.run import DataConfig
from jaxfusion.data.messages import Image
from jaxfusion.data.tasks import samples_of
from jaxfusion.errors import RecordError

DIALOGUE = DataConfig(task="dialogue", name="json")
ONE, TWO = np.full((1, 1, 3), 1, np.uint8), np.full((1, 1, 3), 2, np.uint8)


def told(record, pictures, config=DIALOGUE):
    """Who says what; a picture by its pixels' value."""
    number = 2 if pictures is None else len(pictures)
    record = {"origin": "x.json:1", "images": ["?"] * number} | record
    (sample,) = samples_of(record, config, pictures, [])
    return [
        (message.role, *(int(part.value.max()) if isinstance(part, Image) else part for part in message.parts))
        for message in sample.messages
    ]


def llava(*turns):
    names = ("human", "gpt") * len(turns)
    return {"conversations": [{"from": name, "value": value} for name, value in zip(names, turns, strict=False)]}


def test_pictures_stand_where_llava_says():
    record = llava("<image>\nWhat is this?", "A cat.", "And <image> this?", "A dog.")
    expected = [
        ("user", 1, "What is this?"),
        ("assistant", "A cat."),
        ("user", "And", 2, "this?"),
        ("assistant", "A dog."),
    ]
    assert told(record, [ONE, TWO]) == expected
    assert told(record, None)[0] == ("user", "What is this?")  # the same text where pictures are left out
    assert told(llava("What is this?\n<image>", "A cat."), [ONE])[0] == ("user", "What is this?", 1)
    assert told(llava("What is this?", "A cat."), [ONE])[0] == ("user", 1, "What is this?")
    assert told(llava("Hello", "Hello."), []) == [("user", "Hello"), ("assistant", "Hello.")]


def test_sharegpt_has_a_system_and_a_last_question_that_nobody_answers():
    turns = [("system", "Be kind."), ("human", "Hi"), ("chatgpt", "Hello."), ("user", "Bye")]
    record = {"conversations": [{"from": name, "value": value} for name, value in turns]}
    assert told(record, []) == [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello.")]
    assert told({"conversations": record["conversations"]}, [ONE])[1] == ("user", 1, "Hi")


def test_messages_of_openai_name_pictures_or_have_places_for_them():
    content = [{"type": "image"}, {"type": "text", "text": "this?"}, {"type": "image_url", "image_url": {"url": "b"}}]
    record = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "No."}]}
    assert told(record, [ONE, TWO]) == [("user", 1, "this?", 2), ("assistant", "No.")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (llava("<image><image> What?", "A cat."), "messages: they have places for 2 images and the record has 1"),
        (llava("What?"), "nobody answers"),
        (llava("What?", ""), "the answer in turn 1 is empty"),
        ({"conversations": []}, "conversations: a list is wanted"),
        (
            {"conversations": [{"from": "alien", "value": "x"}]},
            r"conversations\[0\]\.from: an object with one of human",
        ),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\]\.value: a text is wanted and it is None"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, r"messages\[0\]\.content: parts are"),
        ({"text": "x"}, "there is no field 'conversations', which the task 'dialogue' reads; its fields are"),
    ],
)
def test_what_is_no_conversation_is_named_by_its_line(record, message):
    with pytest.raises(RecordError, match=rf"^x\.json:1: {message}"):
        told(record, [ONE])

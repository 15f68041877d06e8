"""From fields to a conversation: where pictures stand, and what is refused by name."""

from pathlib import Path

import numpy as np
import pytest

from jaxfusion.bulk.record import conversation
from jaxfusion.data.messages import Image, Message
from jaxfusion.errors import UserError


def ask(fields):
    """Messages with the name of each picture in its place."""
    pictures = []

    def see(entries):
        pictures.extend(entries)
        return [np.array(place) for place in range(len(entries))]

    def watch(video, times):
        pictures.extend([(video, time) for time in times])
        return [Image(np.array(len(pictures) - len(times) + place)) for place in range(len(times))]

    messages = conversation(fields, Path("at"), "default", str.upper, see, watch)
    return [
        (message.role, [pictures[int(part.value)] if isinstance(part, Image) else part for part in message.parts])
        for message in messages
        if isinstance(message, Message)
    ]


def test_pictures_stand_before_the_prompt():
    assert ask({"image": "a.jpg"}) == [("user", [Path("at/a.jpg"), "DEFAULT"])]
    assert ask({"images": ["a.jpg", b"png"], "prompt": "x"}) == [("user", [Path("at/a.jpg"), b"png", "X"])]
    assert ask({"image": {"bytes": b"png", "path": "a.png"}, "prompt": ""}) == [("user", [b"png", ""])]
    assert ask({"image": {"bytes": None, "path": "/a.png"}, "prompt": None}) == [("user", [Path("/a.png"), "DEFAULT"])]


def test_a_prompt_is_put_in_words_and_messages_are_as_they_are():
    def said(fields):
        messages = conversation(fields, Path("at"), "default", str.upper, list, list, "<{}>".format)
        return [part for message in messages for part in message.parts]

    assert said({}) == ["<DEFAULT>"] and said({"prompt": "x"}) == ["<X>"]
    assert said({"messages": [{"role": "user", "content": "x"}]}) == ["X"]


def test_a_videos_frames_stand_before_the_prompt_or_in_its_place():
    video, text = Path("at/a.mp4"), {"type": "text", "text": "x"}
    fields = {"video": "a.mp4", "video_times": [0, 1]}
    assert ask(fields) == [("user", [(video, 0), (video, 1), "DEFAULT"])]
    messages = [{"role": "user", "content": [text, {"type": "video"}, text]}]
    assert ask(fields | {"messages": messages}) == [("user", ["X", (video, 0), (video, 1), "X"])]
    with pytest.raises(UserError, match="video: the record has images as well; leave one of them out"):
        ask(fields | {"image": "a.jpg"})
    with pytest.raises(UserError, match="video: a path is wanted and it is 5; correct it"):
        ask({"video": 5})


def test_pictures_stand_where_messages_have_places_for_them():
    text, place = {"type": "text", "text": "x"}, {"type": "image"}
    turns = [
        {"role": "user", "content": [text, place]},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": [{"type": "image", "image": "c.png"}, place, text]},
    ]
    assert ask({"messages": turns, "images": ["a.png", "b.png"]}) == [
        ("user", ["X", Path("at/a.png")]),
        ("assistant", ["Y"]),
        ("user", [Path("at/c.png"), Path("at/b.png"), "X"]),
    ]
    only_text = [{"role": "user", "content": "x"}, turns[1], {"role": "user", "content": "z"}]
    assert ask({"messages": only_text, "image": "a.png"}) == [
        ("user", [Path("at/a.png"), "X"]),
        ("assistant", ["Y"]),
        ("user", ["Z"]),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": 5}, "prompt: a text is wanted and it is 5"),
        ({"image": 5}, "image: a path is wanted and it is 5"),
        ({"prompt": "x", "messages": []}, "prompt: the record has messages as well"),
        ({"messages": "x"}, "messages: a list is wanted"),
        ({"messages": [{"role": "system", "content": "x"}]}, r"messages\[0\].role: "),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content: a text is wanted"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, r"messages\[0\].content: parts are"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: the last one is not the user's"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "images": ["a", "b"]},
            "messages: they have places for 1 images and the record has 2",
        ),
    ],
)
def test_what_is_of_another_form_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        ask(fields)

"""From a record's fields to the conversation that is asked.

{"image": "a.jpg", "prompt": "What is this?"}       image or images: paths, bytes, or Parquet's {"bytes", "path"}
{"video": "a.mp4", "prompt": "What happens?"}       or a list of its frames, with their "video_times" in seconds
{"images": ["a.jpg"], "messages": [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Which breed?"}]}
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfusion.bulk.inputs import Fields
from jaxfusion.data.messages import Image, Message
from jaxfusion.data.sources.pictures import picture_entries, picture_of, video_of
from jaxfusion.data.turns import filled, parse_messages, spread, text_of, with_pictures_placed
from jaxfusion.errors import UserError

ROLES = ("user", "assistant")


def conversation(
    fields: Fields,
    folder: Path,
    prompt: str,
    prepare: Callable[[str], str],
    see: Callable[[Sequence[str | Path | bytes]], Sequence[np.ndarray]],
    watch: Callable[[Any, Any], Sequence[Image]],
    asked: Callable[[str], str] = lambda text: text,
) -> tuple[Message, ...]:
    """The user's and the assistant's messages in turn, the last one the user's.

    The record's pictures, or its video's frames, stand where messages have places for them, or before all that is said.

    folder:  what paths are relative to.
    prompt:  where the record has none.
    prepare: what becomes of a text before a model reads it. see: what becomes of pictures.
    watch:   gives the frames of a video, which is a file or a list of pictures, with the times of these.
    asked:   what becomes of a prompt after that, which messages are not put through.
    Raises UserError, by the field's name, for what is not of this form.
    """
    if fields.get("messages") is None:
        text = fields.get("prompt")
        messages = [Message("user", (asked(prepare(prompt if text is None else text_of(text, "prompt"))),))]
    elif fields.get("prompt") is not None:
        raise UserError("prompt: the record has messages as well; leave one of them out")
    else:
        messages = parse_messages(fields["messages"], prepare, ROLES)
        if messages[-1].role != "user":
            raise UserError("messages: the last one is not the user's, so there is nothing to answer; leave it out")
    if fields.get("video") is not None:
        if picture_entries(fields):
            raise UserError("video: the record has images as well; leave one of them out")
        frames = watch(video_of(fields["video"], folder), fields.get("video_times"))
        placed, _ = with_pictures_placed(spread(messages, len(frames)), frames)
        return filled(placed, frames)
    messages, entries = with_pictures_placed(messages, picture_entries(fields))
    return filled(messages, [Image(picture) for picture in see([picture_of(entry, folder) for entry in entries])])

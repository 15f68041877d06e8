"""Conversations as a checkpoint's chat template lays them out."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxfusion.data.messages import Image, Masked, Message, Part
from jaxfusion.errors import UserError
from jaxfusion.text.template import Turn
from jaxfusion.text.tokenizer import Tokenizer

# Put into texts before the template sees them, and taken out of what it wrote, to learn where it put the texts.
HIDE, SHOW, REPLIED = (f"x{secrets.token_hex(8)}{letter}x" for letter in "hsr")
MARK = re.compile("|".join((HIDE, SHOW, REPLIED)))


class LaidOut(NamedTuple):
    """ids: with as many image ids for each image as it has visual tokens. learned: what an assistant says."""

    ids: Int[np.ndarray, " t"]
    learned: Bool[np.ndarray, " t"]


def lay_out(
    messages: Sequence[Message], tokenizer: Tokenizer, tokens_per_image: int, add_generation_prompt: bool
) -> LaidOut:
    """The conversation, ready for the assistant to answer if `add_generation_prompt`.

    tokens_per_image: 0 where images take no place among the tokens.

    A reply is learned from where the model would start to write it, which is where the conversation before it ends with
    a generation prompt, to the end of its turn. A template that ends turns with no token (LLaVA 1.5's) would teach the
    model never to stop: there each reply gets an eos, as it had in that model's training.
    Raises UserError for what the template refuses, or leaves out.
    """
    template = tokenizer.chat_template
    if tokens_per_image == 0:
        messages = [_without_images(message) for message in messages]
    turns = [_turn(message) for message in messages]
    text, marks = _render(turns, tokenizer, add_generation_prompt)
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    ends, spans = _places(marks, REPLIED), []
    if len(ends) != len(answers):
        raise UserError(
            f"the checkpoint's chat template writes {len(ends)} of {len(answers)} replies; change the turns"
        )
    for place, end in zip(answers, ends, strict=True):
        before = _render(turns[:place], tokenizer, True)[0] if place else ""
        if template.end_of_turn is not None:
            closing = template.specials.secret(template.end_of_turn)
            closed = re.match(rf"\s*{closing}", text[end:])
            end += closed.end() if closed else 0
        if messages[place].learned:
            spans.append((_common(before, text), end))
    ids, offsets = template.encode(text)
    learned = _within(offsets, spans)
    hidden = _within(offsets, list(zip(_places(marks, HIDE), _places(marks, SHOW), strict=True)))
    ids = hide(ids, hidden, tokenizer)
    is_image = np.array([index == tokenizer.image_id for index in ids], bool)
    if (images := sum(len(message.images) for message in messages)) != (shown := int(is_image.sum())):
        raise UserError(f"the checkpoint's chat template shows {shown} of {images} images; put them in the user's turn")
    repeats = np.where(is_image, tokens_per_image, 1)
    return LaidOut(np.repeat(ids, repeats), np.repeat(learned, repeats))


def hide(ids: Sequence[int], hidden: Sequence[bool], tokenizer: Tokenizer) -> Int[np.ndarray, " t"]:
    """The ids with the mask token in place of the hidden ones. Raises UserError where the tokenizer has none."""
    if np.any(hidden) and tokenizer.mask_id is None:
        raise UserError("the checkpoint's tokenizer has no mask token, so no text can be hidden; choose another task")
    return np.array([tokenizer.mask_id if h else i for i, h in zip(ids, hidden, strict=True)], np.int32)


def _turn(message: Message) -> Turn:
    """Texts that touch are one, so that no two of them make up a special token."""
    content: list[Turn] = []
    for part in message.told:
        if isinstance(part, Image):
            content.append({"type": "image"})
        elif content and content[-1]["type"] == "text":
            content[-1]["text"] += _marked(part)
        else:
            content.append({"type": "text", "text": _marked(part)})
    if message.role == "assistant":
        if not content or content[-1]["type"] == "image":
            content.append({"type": "text", "text": ""})
        # Inside the white space at the end, which a template may trim.
        said = content[-1]["text"]
        content[-1]["text"] = said.rstrip() + REPLIED + said[len(said.rstrip()) :]
    return {"role": message.role, "content": content}


def _marked(part: Part) -> str:
    return HIDE + part.text + SHOW if isinstance(part, Masked) else part


def _without_images(message: Message) -> Message:
    return replace(message, parts=tuple(part for part in message.parts if not isinstance(part, Image)))


def _render(
    turns: Sequence[Turn], tokenizer: Tokenizer, add_generation_prompt: bool
) -> tuple[str, list[tuple[str, int]]]:
    """What the template writes, and the marks that were in it, in order, with their places in the text without them."""
    template = tokenizer.chat_template
    rendered = template.render(turns, add_generation_prompt)
    if template.end_of_turn is None:
        rendered = re.sub(f"{REPLIED} *", template.specials.secret(tokenizer.eos_token) + REPLIED, rendered)
    texts, marks = MARK.split(rendered), MARK.findall(rendered)
    ends = np.cumsum([len(text) for text in texts]).tolist()
    return "".join(texts), list(zip(marks, ends, strict=False))


def _common(a: str, b: str) -> int:
    """How many characters two texts have in common before they differ."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _places(marks: list[tuple[str, int]], kind: str) -> list[int]:
    return [place for mark, place in marks if mark == kind]


def _within(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> Bool[np.ndarray, " t"]:
    """Which tokens have a character in one of the spans."""
    return np.array([any(start < end and begin < stop for begin, end in spans) for start, stop in offsets], bool)

"""A checkpoint's chat template: a Jinja program that lays a conversation out as text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxfusion.errors import UserError
from jaxfusion.text.specials import Specials

Turn = dict[str, Any]  # {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]}

PROBE = "probe7text"

# Put before a template of plain text, so that it takes messages as lists of parts, as transformers' processors give
# them. Its last newline is Jinja's to remove: the template begins as at the start of a file.
SPELL_OUT = """{%- set spelled = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- if message['content'] and message['content'] is not string -%}
        {%- set content = namespace(whole=EMPTY) -%}
        {%- for part in message['content'] -%}
            {%- set text = IMAGE if part['type'] == 'image' else part['text'] -%}
            {%- set content.whole = content.whole + ADDED -%}
        {%- endfor -%}
        {%- set message = dict(message, content=content.whole) -%}
    {%- endif -%}
    {%- set spelled.messages = spelled.messages + [message] -%}
{%- endfor -%}
{%- set messages = spelled.messages %}
"""


@dataclass(frozen=True)
class ImageTokens:
    """How a family writes an image in text: `before`, then its visual tokens, then `after`.

    token:       stands for each visual token.
    placeholder: what the chat template writes for an image; "": the token.
    Gemma 3's are ("<image_soft_token>", "<start_of_image>", "\\n\\n<start_of_image>", "<end_of_image>\\n\\n").
    """

    token: str
    placeholder: str = ""
    before: str = ""
    after: str = ""

    @property
    def text(self) -> str:
        """An image of one visual token."""
        return self.before + self.token + self.after


class ChatTemplate:
    """end_of_turn: the special token that ends an assistant's reply; None where the template writes none.
    specials:    the tokenizer's.
    """

    def __init__(self, source: str, tokenizer: Any, specials: Specials, image: ImageTokens | None) -> None:
        """tokenizer: transformers'. image: None for a model that sees none.

        Raises UserError for a template that does not compile, or that does not write what messages say.
        """
        self.source = source
        self.specials = specials
        self._tokenizer, self._image = tokenizer, image
        self._content = self._content_kind()
        self._before = added_before(tokenizer) if image else []
        self.end_of_turn = self._end_of_turn()

    @property
    def of_parts(self) -> str:
        """Its source, made to take messages as lists of parts, images among them, where by itself it takes but text.

        The layout is that of `render`.
        """
        if self._image is None or self._content == "parts":
            return self.source
        image = json.dumps(self._image.placeholder or self._image.token, ensure_ascii=False)
        empty, added = ("''", "text") if self._content == "text" else ("[]", "[dict(type='text', text=text)]")
        return SPELL_OUT.replace("EMPTY", empty).replace("ADDED", added).replace("IMAGE", image) + self.source

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        """The conversation as text for `encode`; an image has one visual token.

        Raises UserError for what the template refuses, such as two turns of the user in a row.
        """
        import jinja2

        turns = [turn | {"content": self._content_of(turn["content"])} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, chat_template=self.source, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateError as error:
            raise UserError(
                f"the checkpoint's chat template refuses the conversation ({' '.join(str(error).split())}); "
                "change its turns"
            ) from error
        if self._image and self._image.placeholder:
            text = text.replace(self._image.placeholder, self._image.text)
        return self.specials.disguise(text)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of what `render` gave, and the characters [start, end) that each stands for.

        A template that writes no bos gets what the tokenizer puts in front of texts if the model sees images, and
        nothing if not. That is how transformers' processors and its tokenizers alone go about it.
        """
        ids, offsets = self.specials.encode(text)
        bos = self._tokenizer.bos_token
        if bos is not None and self.specials.secret(bos) in text:
            return ids, offsets
        return self._before + ids, [(0, 0)] * len(self._before) + offsets

    def _content_of(self, parts: Sequence[Turn]) -> str | list[Turn]:
        """Texts escaped, and images in the way that the template takes them."""
        written = []
        for part in parts:
            if part["type"] == "text":
                written.append({"type": "text", "text": self.specials.escape(part["text"])})
            elif self._content == "parts":
                written.append(part)
            else:
                written.append({"type": "text", "text": self._image.placeholder or self._image.token})
        if self._content == "text":
            return "".join(part["text"] for part in written)
        return written

    def _content_kind(self) -> Literal["parts", "text", "text parts"]:
        """Whether messages are lists of parts, or text in which images are spelled out, or lists of such texts."""
        parts = [{"type": "text", "text": PROBE}]
        image = [{"type": "image"}] if self._image else []
        as_parts, as_text = (self._try(content) for content in ([*image, *parts], PROBE))
        if self._image and (self._image.placeholder or self._image.token) not in as_parts:
            as_parts, fallback = "", self._try(parts)
        else:
            fallback = ""
        for kind, text in (("parts", as_parts), ("text", as_text), ("text parts", fallback)):
            if PROBE in text and "'type'" not in text:  # or it printed the list
                return kind
        raise UserError("chat_template: it does not write what a message says; mend it, or remove it")

    def _try(self, content: str | list[Turn]) -> str:
        """What one message comes to, "" where the template does not take it so."""
        import jinja2

        try:
            return self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], chat_template=self.source, tokenize=False
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"chat_template: line {error.lineno}: {error.message}; mend it, or remove it") from error
        except (jinja2.TemplateError, TypeError, AttributeError, ValueError):
            return ""

    def _end_of_turn(self) -> str | None:
        said = [{"type": "text", "text": text} for text in ("question", PROBE)]
        turns = [{"role": role, "content": [text]} for role, text in zip(("user", "assistant"), said, strict=True)]
        return self.specials.first(self.render(turns, add_generation_prompt=False).rpartition(PROBE)[2])


def added_before(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts in front of a text."""
    with_added, plain = (tokenizer(PROBE, add_special_tokens=added)["input_ids"] for added in (True, False))
    return with_added[: next(place for place in range(len(with_added)) if with_added[place:][: len(plain)] == plain)]

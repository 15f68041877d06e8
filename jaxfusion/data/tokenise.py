"""From a sample to one segment of a row: ids, targets, and where its visual tokens stand.

language model      <bos> [image ...] question <sep> answer <eos>, or as the checkpoint's chat template has it; a prompt
                    to a checkpoint that has none, and that no run has trained, is the text alone
examples            the same for each, one after the other; loss is on answers that are to be learned
a video's frames    <bos> 0.0s [image] 0.5s [image] ...       where their times are known and told
a document of text  <bos> text <eos>, all of it learned, whatever the template
token classifier    <bos> text with <mask>s <eos>             targets: the text without masks
pooled classifier   <bos> [image ...] text <eos>              target: the class, at the last position
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxfusion.batch import TopK
from jaxfusion.config.model import (
    AddFusionConfig,
    ModelConfig,
    PlaceFusionConfig,
    PooledClassifierConfig,
    TransformerDecoderConfig,
)
from jaxfusion.data import chat
from jaxfusion.data.messages import Image, Masked, Message, Part, Sample
from jaxfusion.errors import UserError
from jaxfusion.text.tokenizer import Tokenizer


class Segment(NamedTuple):
    """One sample, ready to be put in a row; `visual_index` counts the segment's own visual tokens from 0.

    told: what a teacher says of the positions that carry loss, in order, where that was prepared.
    name: the sample's, where it is a visit of training's.
    """

    tokens: Int[np.ndarray, " t"]
    targets: Int[np.ndarray, " t"]
    loss_weights: Float[np.ndarray, " t"]
    prompt_mask: Bool[np.ndarray, " t"]
    visual_index: Int[np.ndarray, " t"]
    images: list[Shaped[np.ndarray, "..."]]
    told: TopK | None = None
    name: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Positions and images."""
        return len(self.tokens), len(self.images)


# A segment's columns: what it has of each of its positions.
PER_POSITION = tuple(name for name in Segment._fields if name not in ("images", "told", "name"))


@dataclass(frozen=True)
class Layout:
    """How a model wants its samples laid out: what an image takes, and what is predicted."""

    tokens_per_image: int
    fusion: Literal["place", "add", "cross-attention"]
    predict: Literal["next", "tokens", "class"]

    @property
    def positions_per_image(self) -> int:
        return self.tokens_per_image if self.fusion == PlaceFusionConfig.kind else 0

    @classmethod
    def of(cls, model: ModelConfig) -> "Layout":
        if model.vision is not None and isinstance(model.fusion, AddFusionConfig) and model.tokens_per_image != 1:
            raise UserError(
                f"config.model.fusion: add needs one visual token an image and there are {model.tokens_per_image}; "
                "set config.model.projector.pool to 'mean' or 'concatenate'"
            )
        predict = "tokens"
        if isinstance(model.decoder, TransformerDecoderConfig):
            predict = "next"
        elif isinstance(model.decoder, PooledClassifierConfig):
            predict = "class"
        return cls(model.tokens_per_image, model.fusion.kind, predict)


def tokenise(sample: Sample, tokenizer: Tokenizer, layout: Layout) -> Segment:
    """The whole sample, with what is to be learned from it."""
    if layout.predict == "next":
        return _conversation(sample.messages, tokenizer, layout)
    message = sample.messages[0]
    images = [image.value for image in message.images]
    ids, hidden = _parts(message.told, tokenizer, layout)
    tokens = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int32)
    weights = np.zeros(len(tokens), np.float32)
    if layout.predict == "class":
        targets = np.zeros_like(tokens)
        targets[-1], weights[-1] = sample.label, 1.0
    else:
        targets, tokens = tokens, chat.hide(tokens, [False, *hidden, False], tokenizer)
        weights[1:-1] = 1.0
    return _segment(tokens, targets, weights, np.ones(len(tokens), bool), images, tokenizer, layout)


def tokenise_prompt(messages: tuple[Message, ...], tokenizer: Tokenizer, layout: Layout) -> Segment:
    """The conversation up to the point where the model is to answer."""
    return _conversation((*messages, None), tokenizer, layout)


def _conversation(messages: tuple[Message | None, ...], tokenizer: Tokenizer, layout: Layout) -> Segment:
    """User and assistant in turn; None stands for the answer that is not there yet. Loss is on answers alone, and not
    on those of examples that are given."""
    said = [message for message in messages if message is not None]
    images = [image.value for message in said for image in message.images]
    if len(messages) == len(said) == 1:
        tokens, learned = _document(said[0], tokenizer)
    elif tokenizer.prefix is not None and messages[-1] is None and not any(_is_learned(m) for m in said):
        tokens, learned = _bare(said, tokenizer, layout)
    elif tokenizer.chat_template is None:
        tokens, learned = _fixed(said, tokenizer, layout)
    else:
        tokens, learned = chat.lay_out(said, tokenizer, layout.positions_per_image, messages[-1] is None)
    first_answer = int(np.argmax(learned)) if learned.any() else len(tokens)
    return _segment(
        tokens,
        np.append(tokens[1:], tokenizer.pad_id).astype(np.int32),
        np.append(learned[1:], False).astype(np.float32),
        np.arange(len(tokens)) < first_answer,
        images,
        tokenizer,
        layout,
    )


def _is_learned(message: Message) -> bool:
    return message.role == "assistant" and message.learned


def _bare(messages: Sequence[Message], tokenizer: Tokenizer, layout: Layout) -> chat.LaidOut:
    """For a model to go on with, as transformers would ask it: the text alone, behind examples that end with an empty
    line each, their answers a space after the questions."""
    parts: list[Part] = []
    for message in messages:
        new = [" ", *message.told, "\n\n"] if message.role == "assistant" else message.told
        for part in new:  # texts that touch are one: where they are cut tells nothing
            touch = len(messages) > 1 and parts and isinstance(part, str) and isinstance(parts[-1], str)
            parts[-1:] = [parts[-1] + part] if touch else [*parts[-1:], part]
    ids, hidden = _parts(tuple(parts), tokenizer, layout)
    tokens = [*tokenizer.prefix, *chat.hide(ids, hidden, tokenizer)] or [tokenizer.bos_id]
    return chat.LaidOut(np.array(tokens, np.int32), np.zeros(len(tokens), bool))


def _document(message: Message, tokenizer: Tokenizer) -> chat.LaidOut:
    tokens = [tokenizer.bos_id, *tokenizer.encode(message.text), tokenizer.eos_id]
    return chat.LaidOut(np.array(tokens, np.int32), np.arange(len(tokens)) > 0)


def _fixed(messages: Sequence[Message], tokenizer: Tokenizer, layout: Layout) -> chat.LaidOut:
    tokens, learned = [tokenizer.bos_id], [False]
    for message in messages:
        ids, hidden = _parts(message.told, tokenizer, layout)
        is_answer = message.role == "assistant"
        tokens += [*chat.hide(ids, hidden, tokenizer), tokenizer.eos_id if is_answer else tokenizer.sep_id]
        learned += [is_answer and message.learned] * (len(ids) + 1)
    return chat.LaidOut(np.array(tokens, np.int32), np.array(learned))


def pieces(segment: Segment, length: int) -> list[Segment]:
    """A document without pictures in as many parts as it takes to have no more than so many positions in each, which
    are learned as if nothing stood before them. A last part from which nothing is learned is left out."""
    fields = {name: getattr(segment, name) for name in PER_POSITION}
    parts = [
        Segment(**{name: value[start : start + length] for name, value in fields.items()}, images=[])
        for start in range(0, len(segment.tokens), length)
    ]
    return [part for part in parts if part.loss_weights.any()] or parts[:1]


def _parts(parts: tuple[Part, ...], tokenizer: Tokenizer, layout: Layout) -> tuple[list[int], list[bool]]:
    """Ids of a message's parts, and which of them are masked."""
    ids, hidden = [], []
    for part in parts:
        match part:
            case Image():
                taken = layout.positions_per_image
                new = tokenizer.image_ids(taken) if taken else []
            case Masked(text=text):
                new = tokenizer.encode(text)
            case str():
                new = tokenizer.encode(part)
        ids += new
        hidden += [isinstance(part, Masked)] * len(new)
    return ids, hidden


def _segment(tokens, targets, weights, prompt_mask, images, tokenizer: Tokenizer, layout: Layout) -> Segment:
    if layout.fusion == AddFusionConfig.kind and len(images) > 1:
        raise UserError(f"config.model.fusion: add takes one image a sample and this one has {len(images)}; use place")
    if layout.fusion == PlaceFusionConfig.kind:
        placed = np.isin(tokens, tokenizer.image_id) if images else np.zeros(len(tokens), bool)
        visual_index = np.where(placed, np.cumsum(placed) - 1, -1)
    else:
        visual_index = np.full(len(tokens), 0 if layout.fusion == AddFusionConfig.kind and images else -1)
    return Segment(tokens, targets, weights, prompt_mask, visual_index.astype(np.int32), images)

"""From a sample to one segment of a row: ids, targets, and where its visual tokens stand.

language model      <bos> [image ...] question <sep> answer <eos>
token classifier    <bos> text with <mask>s <eos>             targets: the text without masks
pooled classifier   <bos> [image ...] text <eos>              target: the class, at the last position
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxfusion.config.model import (
    AddFusionConfig,
    ModelConfig,
    PlaceFusionConfig,
    PooledClassifierConfig,
    TransformerDecoderConfig,
)
from jaxfusion.data.messages import Image, Masked, Message, Part, Sample
from jaxfusion.errors import UserError
from jaxfusion.text.tokenizer import Tokenizer


class Segment(NamedTuple):
    """One sample, ready to be put in a row; `visual_index` counts the segment's own visual tokens from 0."""

    tokens: Int[np.ndarray, " t"]
    targets: Int[np.ndarray, " t"]
    loss_weights: Float[np.ndarray, " t"]
    prompt_mask: Bool[np.ndarray, " t"]
    visual_index: Int[np.ndarray, " t"]
    images: list[Shaped[np.ndarray, "..."]]


@dataclass(frozen=True)
class Layout:
    """How a model wants its samples laid out: what an image takes, and what is predicted."""

    tokens_per_image: int
    fusion: Literal["place", "add", "cross-attention"]
    predict: Literal["next", "tokens", "class"]

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
    ids, hidden, images = _parts(sample.messages[0].parts, tokenizer, layout)
    tokens = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int32)
    weights = np.zeros(len(tokens), np.float32)
    if layout.predict == "class":
        targets = np.zeros_like(tokens)
        targets[-1], weights[-1] = sample.label, 1.0
    else:
        targets, tokens = tokens, np.where([False, *hidden, False], tokenizer.mask_id, tokens).astype(np.int32)
        weights[1:-1] = 1.0
    return _segment(tokens, targets, weights, np.ones(len(tokens), bool), images, tokenizer, layout)


def tokenise_prompt(messages: tuple[Message, ...], tokenizer: Tokenizer, layout: Layout) -> Segment:
    """The conversation up to the point where the model is to answer."""
    return _conversation((*messages, None), tokenizer, layout)


def _conversation(messages: tuple[Message | None, ...], tokenizer: Tokenizer, layout: Layout) -> Segment:
    """User and assistant in turn; None stands for the answer that is not there yet. Loss is on answers alone."""
    tokens, learned, images = [tokenizer.bos_id], [False], []
    for message in messages:
        if message is None:
            break
        ids, hidden, seen = _parts(message.parts, tokenizer, layout)
        ids = [tokenizer.mask_id if masked else token for token, masked in zip(ids, hidden, strict=True)]
        is_answer = message.role == "assistant"
        tokens += [*ids, tokenizer.eos_id if is_answer else tokenizer.sep_id]
        learned += [is_answer] * len(ids) + [is_answer]
        images += seen
    token_array, learned_array = np.array(tokens, np.int32), np.array(learned)
    first_answer = int(np.argmax(learned_array)) if learned_array.any() else len(tokens)
    return _segment(
        token_array,
        np.append(token_array[1:], tokenizer.pad_id).astype(np.int32),
        np.append(learned_array[1:], False).astype(np.float32),
        np.arange(len(tokens)) < first_answer,
        images,
        tokenizer,
        layout,
    )


def _parts(
    parts: tuple[Part, ...], tokenizer: Tokenizer, layout: Layout
) -> tuple[list[int], list[bool], list[np.ndarray]]:
    """Ids of a message's parts, which of them are masked, and the images among them."""
    ids, hidden, images = [], [], []
    for part in parts:
        match part:
            case Image(value=value):
                new = [tokenizer.image_id] * layout.tokens_per_image if layout.fusion == PlaceFusionConfig.kind else []
                images.append(value)
            case Masked(text=text):
                new = tokenizer.encode(text)
            case str():
                new = tokenizer.encode(part)
        ids += new
        hidden += [isinstance(part, Masked)] * len(new)
    return ids, hidden, images


def _segment(tokens, targets, weights, prompt_mask, images, tokenizer: Tokenizer, layout: Layout) -> Segment:
    if layout.fusion == AddFusionConfig.kind and len(images) > 1:
        raise UserError(f"config.model.fusion: add takes one image a sample and this one has {len(images)}; use place")
    if layout.fusion == PlaceFusionConfig.kind:
        placed = tokens == tokenizer.image_id
        visual_index = np.where(placed, np.cumsum(placed) - 1, -1)
    else:
        visual_index = np.full(len(tokens), 0 if layout.fusion == AddFusionConfig.kind and images else -1)
    return Segment(tokens, targets, weights, prompt_mask, visual_index.astype(np.int32), images)

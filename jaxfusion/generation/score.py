"""How likely a model finds given answers: for classification and multiple choice by a language model."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxfusion.batch import Batch
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Layout, Segment, tokenise_prompt
from jaxfusion.errors import UserError
from jaxfusion.generation.decode import cache_length, check_generates
from jaxfusion.generation.generate import check_prompts, check_vocabulary, user_messages
from jaxfusion.models.vlm import Model, Params, features, output_matrix
from jaxfusion.training.cross_entropy import CrossEntropy, linear_cross_entropy


def score(
    model: Model,
    params: Params,
    prompts: Sequence[str],
    images: Sequence[Any] | None = None,
    *,
    candidates: Sequence[Sequence[str]],
    ends: bool = True,
    batch_size: int = 32,
) -> list[Float[np.ndarray, " C"]]:
    """The log-probability (nats) of each candidate answer to each prompt, whose exponents are exact, not drawn.

    prompts, images: as `generate` takes them. candidates: of each prompt, as the model would write them: a language
    model without a chat template goes on with the text, so a new word begins with a space.
    ends: with the end of the answer after it, without which a beginning of an answer is as likely as all that follow.
    batch_size: candidates that are read at once, each with its prompt.
    Raises UserError as `generate` does, and for a candidate without any text.
    """
    check_prompts(model, prompts)
    if len(candidates) != len(prompts):
        raise UserError(
            f"candidates: {len(candidates)} entries for {len(prompts)} prompts; give a list for each prompt"
        )
    layout, tokenizer = Layout.of(model.config), model.tokenizer
    segments = []
    for message, answers in zip(user_messages(model, prompts, images), candidates, strict=True):
        prompt = tokenise_prompt((message,), tokenizer, layout)
        for text in answers:
            ids = tokenizer.encode(text)
            if not ids:
                raise UserError(f"candidates: {text!r} is no text; leave it out")
            segments.append(answered(prompt, [*ids, *tokenizer.stop_ids[:1]] if ends else ids, layout))
    if not segments:
        return [np.zeros(0, np.float32) for _ in candidates]
    longest = max(len(segment.tokens) for segment in segments)
    check_generates(model, longest, 0)
    check_vocabulary(model, segments)
    length = min(cache_length(longest), model.config.text_embedding.max_positions)
    slots = ImageSlots.of(model.config, max(len(segment.images) for segment in segments))
    scores = []
    for start in range(0, len(segments), batch_size):
        part = segments[start : start + batch_size]
        filled = part + part[:1] * (batch_size - len(part))  # all batches of one shape
        batch = pack([[segment] for segment in filled], length, layout.tokens_per_image, slots)
        scores.append(np.asarray(row_scores(model, params, jax.tree.map(jnp.asarray, batch)))[: len(part)])
    return np.split(np.concatenate(scores), np.cumsum([len(answers) for answers in candidates])[:-1])


def answered(prompt: Segment, ids: Sequence[int], layout: Layout) -> Segment:
    """The prompt with an answer after it, on which alone the loss is."""
    tokens = np.concatenate([prompt.tokens, np.array(ids, np.int32)])
    learned = np.arange(len(tokens)) >= len(prompt.tokens)
    seen = 0 if layout.fusion == "add" and prompt.images else -1  # an answer goes on seeing an added picture
    return Segment(
        tokens=tokens,
        targets=np.append(tokens[1:], 0).astype(np.int32),
        loss_weights=np.append(learned[1:], False).astype(np.float32),
        prompt_mask=~learned,
        visual_index=np.concatenate([prompt.visual_index, np.full(len(ids), seen, np.int32)]),
        images=prompt.images,
    )


@partial(jax.jit, static_argnums=0)
def row_scores(model: Model, params: Params, batch: Batch) -> Float[Array, " B"]:
    """Of each row the sum of its targets' log-probabilities, weighted by `loss_weights`."""
    options = CrossEntropy(softcap=getattr(model.config.decoder, "logit_softcap", 0.0))
    hidden, matrix = features(model, params, batch), output_matrix(model, params)

    def one(row: tuple[Array, Array, Array]) -> Array:
        hidden, targets, weights = (part[None] for part in row)
        return -linear_cross_entropy(hidden, matrix, targets, weights, options).loss

    return jax.lax.map(one, (hidden, batch.targets, batch.loss_weights))

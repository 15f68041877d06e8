"""Classes of texts and pictures, by a pooled classifier."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfusion.data.messages import Sample
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import Layout, tokenise
from jaxfusion.generation.generate import user_messages
from jaxfusion.models.vlm import Model, Params, forward


def classify(
    model: Model,
    params: Params,
    prompts: Sequence[str],
    images: Sequence[Any] | None = None,
    *,
    labels: Sequence[str],
) -> list[str]:
    """The most probable class of each prompt with its images; prompts and images as `generate` takes them.

    labels: names of the classes, in the order that the model was trained with.
    """
    if not prompts:
        return []
    layout = Layout.of(model.config)
    messages = user_messages(model, prompts, images)
    segments = [tokenise(Sample("", "", (message,), label=0), model.tokenizer, layout) for message in messages]
    longest = max(len(segment.tokens) for segment in segments)
    logits = forward(model, params, pack([[segment] for segment in segments], longest, layout.tokens_per_image))
    best = np.asarray(logits.argmax(axis=-1))
    return [labels[best[row, len(segment.tokens) - 1]] for row, segment in enumerate(segments)]

"""What a pretrained family tells of itself: how its config.json reads, and the table of its tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxfusion.config.model import ModelConfig, Vision
from jaxfusion.pretrained.table import Row
from jaxfusion.text.template import ImageTokens


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers.

    room:        what the checkpoint is: a language model, a vision tower, a text encoder, or a whole visual language
                 model.
    read_config: config.json, without the fields that hold their default, to ours: a Vision config for a tower, else a
                 ModelConfig. Raises UserError for what cannot be expressed.
    table:       of that config: one row a tensor, under names that transformers and servers read.
    ignored:     globs of their tensors that hold nothing to load: buffers, and heads of tasks that are not ours.
    aliases:     (prefix, canonical prefix) pairs, for files that name the same tensors otherwise, such as a base model
                 without its head. The first that gives a name of the table is applied, or else the first that fits.
    image:       how a whole model's processor writes an image in text; None: by the image token alone.
    chat_template: Jinja, of a model whose checkpoints have none.
    """

    model_type: str
    room: Literal["language", "vision", "encoder", "whole"]
    read_config: Callable[[dict[str, Any]], ModelConfig | Vision]
    table: Callable[[Any], Sequence[Row]]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    image: ImageTokens | None = None
    chat_template: str | None = None

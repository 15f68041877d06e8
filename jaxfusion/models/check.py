"""Whether a model's parts fit together: refused here by the name of the setting, before anything is traced."""

import math
from typing import Any, NoReturn

import numpy as np

from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    BiLSTMEncoderConfig,
    CrossAttentionFusionConfig,
    LinearProjectorConfig,
    MappingProjectorConfig,
    ModelConfig,
    PerceiverProjectorConfig,
    PixelShuffleProjectorConfig,
    PlaceFusionConfig,
    PooledClassifierConfig,
    PoolProjectorConfig,
    RopeConfig,
    TransformerConfig,
    VGGConfig,
    ViTConfig,
)
from jaxfusion.errors import UserError


def interleaved_stack(config: ModelConfig) -> TransformerConfig | None:
    """The Transformer that cross-attention layers go into: a causal decoder's, else the encoder's."""
    stacks = (config.decoder, config.encoder)
    return next((stack for stack in stacks if isinstance(stack, TransformerConfig)), None)


def check(config: ModelConfig) -> None:
    """Raises UserError for the first setting that cannot be, with what to change."""
    if config.text_embedding.vocab_size <= 0:
        _refuse(
            "text_embedding.vocab_size", "the vocabulary has no size yet; set it, or let training take it from the data"
        )
    if config.vision is not None and isinstance(config.projector, PixelShuffleProjectorConfig | PoolProjectorConfig):
        _positive("projector.factor", config.projector.factor)  # first: how many tokens an image takes depends on it
    _positive("width", config.width)
    for name in ("encoder", "decoder"):
        if isinstance(getattr(config, name), TransformerConfig):
            _check_transformer(name, getattr(config, name), config)
    if isinstance(config.encoder, BiLSTMEncoderConfig):
        _positive("encoder.num_layers", config.encoder.num_layers)
        _divides("width", 2, config.width, "the two directions of the LSTM")
    if isinstance(config.decoder, PooledClassifierConfig) and config.decoder.num_classes <= 0:
        _refuse(
            "decoder.num_classes", "the classifier has no classes yet; set it, or let training take it from the data"
        )
    for index, adapter in enumerate(config.lora):
        _positive(f"lora[{index}].rank", adapter.rank)
    if config.vision is not None:
        _check_vision(config)
        _check_projector(config)
        if isinstance(config.fusion, CrossAttentionFusionConfig):
            _check_cross_attention(config)


def check_batch(config: ModelConfig, batch: Batch) -> None:
    """Raises UserError for ids that the vocabulary lacks, and for visual tokens that are not those of the images.

    Looks at values, so it is for batches outside of jit.
    """
    tokens, index, segments = (np.asarray(x) for x in (batch.tokens, batch.visual_index, batch.segment_ids))
    text, vocab = (segments > 0) & (index < 0), config.text_embedding.vocab_size
    wrong = text & ((tokens < 0) | (tokens >= vocab))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        _refuse_batch(f"tokens[{row}, {column}] is {tokens[row, column]}, and the vocabulary has {vocab} ids")
    if config.vision is None:
        return
    each, placed = config.tokens_per_image, np.sum((index >= 0) & (segments > 0), axis=1)
    if batch.images is None:
        if placed.any():
            _refuse_batch(f"row {np.argmax(placed > 0)} has visual tokens, and there are no images; give them")
        return
    room = batch.images.shape[1] * each
    if (index >= room).any():
        _refuse_batch(f"visual_index goes to {index.max()}, and a row's images have {room} visual tokens, {each} each")
    if isinstance(config.fusion, PlaceFusionConfig):
        wanted = each * np.sum(np.asarray(batch.image_segment_ids) > 0, axis=1)
        if (placed != wanted).any():
            row = int(np.argmax(placed != wanted))
            _refuse_batch(
                f"row {row} has {placed[row]} image tokens, and its images become {wanted[row]}, {each} each; "
                "write one image token for each of them, and give their id as image_token_id"
            )


def _refuse_batch(message: str) -> NoReturn:
    raise UserError(f"batch: {message}")


def _check_transformer(name: str, stack: TransformerConfig, config: ModelConfig) -> None:
    _positive(f"{name}.num_layers", stack.num_layers)
    _positive(f"{name}.num_heads", stack.num_heads)
    if not 0 <= stack.dropout < 1:
        _refuse(f"{name}.dropout", f"{stack.dropout} is no share that can be dropped; use 0 or more, and less than 1")
    if not stack.head_dim:
        _divides(f"{name}.num_heads", stack.num_heads, config.width, "the model's width")
    if stack.num_kv_heads:
        _divides(f"{name}.num_kv_heads", stack.num_kv_heads, stack.num_heads, "num_heads")
    head_dim = stack.head_dim or config.width // stack.num_heads
    if config.text_embedding.positions == "rotary" and head_dim % 2:
        _refuse(f"{name}.head_dim", f"{head_dim} is odd, and rotary positions turn pairs; use an even one")
    if any(window < 0 for window in stack.windows) or not stack.windows:
        _refuse(f"{name}.windows", f"{stack.windows} is no pattern of windows; give each layer's, 0 where it has none")
    if not stack.ropes:
        _refuse(f"{name}.ropes", "there are none to repeat over the layers; give one, with theta 0 for no rotation")
    for index, rope in enumerate(stack.ropes):
        _check_rope(f"{name}.ropes[{index}]", rope)
    images_see = getattr(stack, "image_attention", "causal") == "bidirectional"
    if images_see and not isinstance(config.fusion, PlaceFusionConfig):
        _refuse(f"{name}.image_attention", "only placed visual tokens can see each other; use fusion 'place'")
    ranges = any(stack.windows) or getattr(stack, "prefix_lm", False) or images_see
    if config.attention == "cudnn" and (ranges or stack.attention_softcap):
        _refuse("attention", "cuDNN knows no prefix-LM or image attention, no window and no softcap; use 'auto'")


def _check_rope(key: str, rope: RopeConfig) -> None:
    if rope.scaling in ("llama3", "yarn"):
        _positive(f"{key}.original_positions", rope.original_positions)
    if rope.factor <= 0 or rope.theta < 0:
        _refuse(key, f"theta {rope.theta}, factor {rope.factor}: use a positive factor, and theta 0 for no rotation")


def _check_vision(config: ModelConfig) -> None:
    vision = config.vision
    if isinstance(vision, ViTConfig):
        _positive("vision.num_layers", vision.num_layers)
        _divides("vision.num_heads", vision.num_heads, vision.width, "the vision's width")
        _positive("vision.patch_size", vision.patch_size)
        if not -vision.num_layers <= vision.feature_layer <= 0:
            _refuse(
                "vision.feature_layer", f"{vision.feature_layer}: 0 is the end, -1 to {-vision.num_layers} the layers"
            )
    if isinstance(vision, VGGConfig) and len(vision.stage_depths) != len(vision.stage_widths):
        _refuse(
            "vision.stage_widths", f"{len(vision.stage_widths)} for {len(vision.stage_depths)} stages; give each one"
        )
    if vision.num_tokens < 1:
        _refuse("vision", "no visual token is left of an image; enlarge image_size or take fewer stages")


def _check_projector(config: ModelConfig) -> None:
    projector, tokens = config.projector, config.vision.num_tokens
    match projector:
        case PixelShuffleProjectorConfig(factor=factor) | PoolProjectorConfig(factor=factor):
            _positive("projector.factor", factor)
            side = math.isqrt(tokens)
            if side * side != tokens or side % factor:
                grid = f"{side} x {side}" if side * side == tokens else f"{tokens} tokens, no square"
                _refuse(
                    "projector.factor", f"{factor} does not divide the image's grid ({grid}); use another projector"
                )
        case LinearProjectorConfig(pool=pool, prefix_length=prefix):
            _positive("projector.prefix_length", prefix)
            if pool == "none" and prefix > 1:
                _refuse("projector.prefix_length", f"{prefix} tokens come of a pooled one; set pool to 'mean'")
        case PerceiverProjectorConfig() | MappingProjectorConfig():
            _positive("projector.num_layers", projector.num_layers)
            if config.attention == "cudnn" and isinstance(projector, PerceiverProjectorConfig):
                _refuse("attention", "the perceiver's queries are not its keys, as cuDNN's must be; use 'auto'")
            _divides("projector.num_heads", projector.num_heads, config.width, "the model's width")


def _check_cross_attention(config: ModelConfig) -> None:
    stack = interleaved_stack(config)
    if stack is None:
        _refuse("fusion", "cross-attention goes between Transformer layers and there are none; use place or add")
    if config.attention == "cudnn":
        _refuse("attention", "cuDNN knows no ranges of an image's keys, as cross-attention has; use 'auto'")
    _divides("fusion.every", config.fusion.every, stack.num_layers, "the Transformer's layers")
    _divides("fusion.num_heads", config.fusion.num_heads, config.width, "the model's width")


def _positive(key: str, value: int) -> None:
    if value < 1:
        _refuse(key, f"{value} is too few; use 1 or more")


def _divides(key: str, part: int, whole: int, what: str) -> None:
    _positive(key, part)
    if whole % part:
        _refuse(key, f"{part} does not divide {what}, {whole}; change one of them")


def _refuse(key: str, message: Any) -> NoReturn:
    raise UserError(f"config.model.{key}: {message}")

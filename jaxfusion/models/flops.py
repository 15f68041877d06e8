"""The arithmetic that a model needs, counted from its config and a batch: what a measured step is held against.

Conventions
- One multiply-add is two operations. Only matrix products, convolutions and attention count; norms, activations,
  softmax, look-ups and the optimizer do not.
- Padded positions and empty image slots count, since they are computed; a convolution's products with its own zero
  padding do not.
- Attention is two products of H multiply-adds for each query, head and key. With attention="needed" a query has the
  keys of its interval: about half of T where it is causal, fewer where rows are packed or padded. With "dense" it has
  all of them, which is what XLA computes under a mask.
- The backward pass takes twice the forward pass, one product for each input's gradient and one for each weight's; but
  nobody needs a gradient of pixels or given features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    BiLSTMEncoderConfig,
    CrossAttentionFusionConfig,
    FeaturesConfig,
    LinearProjectorConfig,
    MappingProjectorConfig,
    MLPProjectorConfig,
    ModelConfig,
    PerceiverProjectorConfig,
    PixelShuffleProjectorConfig,
    PoolProjectorConfig,
    Projector,
    ResNetConfig,
    TransformerConfig,
    TransformerDecoderConfig,
    VGGConfig,
    Vision,
    ViTConfig,
)
from jaxfusion.models.attention import Interval, bidirectional, sliding_window
from jaxfusion.models.fusion import visible_images
from jaxfusion.models.vlm import VisualLanguageModel


@dataclass(frozen=True)
class Flops:
    """Operations for one batch.

    rooms: of the forward pass, for each room that has any; a language model's output matrix is "output".
    input_layer: how many of them are in the layer that reads pixels or given features.
    """

    rooms: dict[str, int]
    input_layer: int

    @property
    def forward(self) -> int:
        return sum(self.rooms.values())

    @property
    def training(self) -> int:
        """Forward and backward pass of all parameters, with nothing computed twice."""
        return 3 * self.forward - self.input_layer


class _Part(NamedTuple):
    total: int = 0
    first: int = 0  # the first layer's share


def count_flops(config: ModelConfig, batch: Batch, attention: Literal["needed", "dense"] = "needed") -> Flops:
    """What the model needs for this batch, by the conventions above. "dense" looks at the arrays' shapes alone."""
    rows, length = batch.tokens.shape
    tokens, width = rows * length, config.width
    rooms, vision, projector = {}, _Part(), _Part()

    def pairs(interval: Interval | None, keys: int) -> int:
        """Queries with each key they see; None: they see all."""
        if interval is None:
            return tokens * keys
        return int(np.sum(np.maximum(np.asarray(interval.end) - np.asarray(interval.start), 0)))

    def layer_pairs(stack: TransformerConfig, interval: Interval | None) -> list[int]:
        if interval is None:
            return [tokens * length] * stack.num_layers
        return [pairs(sliding_window(interval, window), length) for window in stack.layer_windows]

    if config.vision is not None and batch.images is not None:
        images = rows * batch.images.shape[1]
        vision = _vision(config.vision, images)
        projector = _projector(config.projector, images, config.vision.num_tokens, config.vision.feature_width, width)
        rooms |= {"vision": vision.total, "projector": projector.total}
        if isinstance(config.fusion, CrossAttentionFusionConfig):
            stacks = (config.decoder, config.encoder)
            num_layers = next(stack.num_layers for stack in stacks if isinstance(stack, TransformerConfig))
            interval = None
            if attention == "needed":
                interval = visible_images(batch.segment_ids, batch.image_segment_ids, config.tokens_per_image)
            visual = images * config.tokens_per_image
            layer = _cross_attention(width, tokens, visual, pairs(interval, visual // rows)) + _mlp(tokens, width)
            rooms["fusion"] = num_layers // config.fusion.every * layer
    match config.encoder:
        case TransformerConfig():
            interval = _encoder_interval(config, batch) if attention == "needed" else None
            rooms["encoder"] = _transformer(config.encoder, width, tokens, layer_pairs(config.encoder, interval))
        case BiLSTMEncoderConfig(num_layers=num_layers):
            # Each of two directions has half the width, and four gates that read the input and the state.
            half = width // 2
            rooms["encoder"] = num_layers * 2 * _matrix(tokens, width + half, 4 * half)
    match config.decoder:
        case TransformerDecoderConfig():
            interval = VisualLanguageModel(config).decoder_interval(batch) if attention == "needed" else None
            rooms["decoder"] = _transformer(config.decoder, width, tokens, layer_pairs(config.decoder, interval))
            rooms["output"] = _matrix(tokens, width, config.text_embedding.vocab_size)
        case classifier:
            rooms["decoder"] = _matrix(tokens, width, classifier.num_classes or config.text_embedding.vocab_size)
    reader = projector if isinstance(config.vision, FeaturesConfig) else vision
    return Flops({room: count for room, count in rooms.items() if count}, reader.first)


def _encoder_interval(config: ModelConfig, batch: Batch) -> Interval:
    """As `VisualLanguageModel.encode` has it: in front of a causal decoder, the prompt alone."""
    causal = isinstance(config.decoder, TransformerDecoderConfig)
    ids = jnp.where(batch.prompt_mask, batch.segment_ids, 0) if causal else jnp.asarray(batch.segment_ids)
    return bidirectional(ids)


def _matrix(vectors: int, inputs: int, outputs: int) -> int:
    return 2 * vectors * inputs * outputs


def _mlp(tokens: int, width: int, hidden: int = 0, matrices: int = 2) -> int:
    return matrices * _matrix(tokens, width, hidden or 4 * width)


def _transformer(config: TransformerConfig, width: int, tokens: int, pairs: Sequence[int]) -> int:
    """pairs: of a query and a key, for each layer."""
    heads, head_dim = config.num_heads, config.head_dim or width // config.num_heads
    query_and_out, key_and_value = 2 * heads, 2 * (config.num_kv_heads or heads)
    layer = _matrix(tokens, width, (query_and_out + key_and_value) * head_dim)
    layer += _mlp(tokens, width, config.mlp_width, matrices=3 if config.gated_mlp else 2)
    return config.num_layers * layer + 2 * _matrix(sum(pairs), heads, head_dim)


def _cross_attention(width: int, queries: int, keys: int, pairs: int) -> int:
    return 2 * (_matrix(queries, width, width) + _matrix(keys, width, width) + _matrix(pairs, width, 1))


def _projector(config: Projector, images: int, num_tokens: int, features: int, width: int) -> _Part:
    tokens = images * num_tokens
    match config:
        case LinearProjectorConfig(pool="mean"):
            tokens = images
        case PerceiverProjectorConfig(num_queries=queries):
            first = _matrix(tokens, features, width)
            latents, context = images * queries, num_tokens + queries
            layer = _cross_attention(width, latents, images * context, latents * context) + _mlp(latents, width)
            return _Part(first + config.num_layers * layer, first)
        case MappingProjectorConfig(num_layers=num_layers, num_heads=num_heads):
            first = _matrix(tokens, features, width)
            joined = num_tokens + config.prefix_length
            stack = TransformerConfig(num_layers=num_layers, num_heads=num_heads)
            return _Part(first + _transformer(stack, width, images * joined, [images * joined**2] * num_layers), first)
        case MLPProjectorConfig(hidden_width=hidden):
            first = _matrix(tokens, features, hidden or width)
            return _Part(first + _matrix(tokens, hidden or width, width), first)
        case PixelShuffleProjectorConfig():
            pass  # fewer tokens, each as much wider: as many products
        case PoolProjectorConfig():
            tokens = images * config.num_tokens(num_tokens)
    first = _matrix(tokens, features, width)
    return _Part(first, first)


def _vision(config: Vision, images: int) -> _Part:
    match config:
        case ViTConfig(width=width, used_layers=layers):
            first = _matrix(images * config.num_patches, 3 * config.patch_size**2, width)
            tokens = config.num_patches + config.class_token
            stack = TransformerConfig(
                num_layers=layers, num_heads=config.num_heads, mlp_width=config.mlp_width, mlp=config.mlp
            )
            return _Part(first + _transformer(stack, width, images * tokens, [images * tokens**2] * layers), first)
        case VGGConfig():
            layers = _vgg(config)
        case ResNetConfig():
            layers = _resnet(config)
        case _:
            return _Part()
    return _Part(images * sum(layers), images * layers[0])


def _conv(side: int, kernel: int, stride: int, inputs: int, outputs: int) -> int:
    """Of one image; a kernel of odd size reads outputs at each stride-th position, with same padding."""
    reach = kernel // 2
    read = sum(min(centre + reach, side - 1) - max(centre - reach, 0) + 1 for centre in range(0, side, stride))
    return _matrix(read**2, inputs, outputs)


def _vgg(config: VGGConfig) -> list[int]:
    layers, side, channels = [], config.image_size, 3
    for depth, width in zip(config.stage_depths, config.stage_widths, strict=True):
        for _ in range(depth):
            layers.append(_conv(side, 3, 1, channels, width))
            channels = width
        side //= 2
    return layers


def _resnet(config: ResNetConfig) -> list[int]:
    imagenet, bottleneck = config.stem == "imagenet", config.block == "bottleneck"
    side, channels = config.image_size, config.width
    layers = [_conv(side, 7, 2, 3, channels) if imagenet else _conv(side, 3, 1, 3, channels)]
    if imagenet:
        side = -(-side // 4)
    for stage, depth in enumerate(config.stage_depths):
        inner = config.width * 2**stage
        features = inner * (4 if bottleneck else 1)
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            after = -(-side // stride)
            if bottleneck:
                layers += [_conv(side, 1, 1, channels, inner), _conv(side, 3, stride, inner, inner)]
                layers += [_conv(after, 1, 1, inner, features)]
            else:
                layers += [_conv(side, 3, stride, channels, features), _conv(after, 3, 1, features, features)]
            if channels != features or stride != 1:
                layers.append(_conv(side, 1, stride, channels, features))
            side, channels = after, features
    return layers

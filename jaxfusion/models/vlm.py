"""The whole model: five rooms in a row, and the pure functions that people import.

model = build(config)
params = init(model, jax.random.key(0))
logits = forward(model, params, batch)          # float32[B, T, V]; jit with model static
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Int, Shaped

from jaxfusion.batch import Batch, HostOrDevice
from jaxfusion.config import Config, from_dict
from jaxfusion.config.model import (
    AddFusionConfig,
    BiLSTMEncoderConfig,
    CrossAttentionFusionConfig,
    FeaturesConfig,
    LookupConfig,
    ModelConfig,
    PooledClassifierConfig,
    TransformerConfig,
    TransformerDecoderConfig,
)
from jaxfusion.models import alike, attention, fusion
from jaxfusion.models.attention import Interval
from jaxfusion.models.check import check, check_batch, interleaved_stack
from jaxfusion.models.decoder import Output, pool_segments
from jaxfusion.models.encoder import BiLSTM
from jaxfusion.models.int8 import int8_products
from jaxfusion.models.kv_cache import KVCache
from jaxfusion.models.lora import adapted, check_adapters, inside
from jaxfusion.models.projector import make_projector
from jaxfusion.models.stack import Unstacked
from jaxfusion.models.text_embedding import TextEmbedding
from jaxfusion.models.transformer import Interleaved, TransformerLayers
from jaxfusion.models.vision import look, make_vision

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxfusion.pretrained.origin import Origin
    from jaxfusion.text.tokenizer import Tokenizer

Params = Any


class VisualLanguageModel(nn.Module):
    """Text embedding, vision and projector, fusion, encoder, decoder, as the config says."""

    config: ModelConfig

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.text_embedding = TextEmbedding(config.text_embedding, config.width, dtype)
        if config.vision is not None:
            self.vision = make_vision(config.vision, dtype, config.attention)
            self.projector = make_projector(config.projector, config.width, dtype, config.attention)
            if isinstance(config.fusion, CrossAttentionFusionConfig):
                num_layers = interleaved_stack(config).num_layers
                self.fusion = fusion.CrossAttentionFusion(config.fusion, num_layers, dtype, config.attention)
        match config.encoder:
            case TransformerConfig():
                self.encoder = self._layers(config.encoder)
            case BiLSTMEncoderConfig(num_layers=num_layers, implementation=implementation):
                self.encoder = BiLSTM(num_layers, implementation, dtype)
        match config.decoder:
            case TransformerDecoderConfig(tie_embeddings=tied):
                self.decoder = self._layers(config.decoder)
                if not tied:
                    self.output = Output(config.text_embedding.vocab_size, dtype)
            case classifier:
                self.decoder = Output(classifier.num_classes or config.text_embedding.vocab_size, dtype)

    def _layers(self, config: TransformerConfig) -> TransformerLayers:
        rotary = self.config.text_embedding.positions == "rotary"
        return TransformerLayers(config, rotary, self.config.attention, jnp.dtype(self.config.dtype))

    def __call__(self, batch: Batch, deterministic: bool = True) -> Float[Array, "B T V"]:
        """Logits at every position."""
        return self.logits(self.features(batch, deterministic))

    def features(self, batch: Batch, deterministic: bool = True) -> Float[Array, "B T D"]:
        """What the output matrix reads at every position."""
        x, interleaved = self.encode(batch, self.see(batch), deterministic)
        match self.config.decoder:
            case TransformerDecoderConfig():
                interval = self.decoder_interval(batch)
                x, _ = self.decoder(x, interval, batch.positions, interleaved=interleaved, deterministic=deterministic)
            case PooledClassifierConfig(pool=pool):
                x = pool_segments(x, batch.segment_ids, pool)
        return x

    def see(self, batch: Batch) -> Float[Array, "B S D"] | None:
        """The row's visual tokens, all images in a line: S = M * K. None where there is nothing to see."""
        if self.config.vision is None or batch.images is None:
            return None
        tokens = self._see_one_by_one(batch.images) if alike.is_active() else self.projector(self.look(batch.images))
        return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])

    def _see_one_by_one(self, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M K D"]:
        """As a program for one image, which then does not depend on how many there are."""
        (vision, seen), (projector, projected) = self.vision.unbind(), self.projector.unbind()

        def see(image: Array) -> Array:
            with alike.rows_alike(0):  # all images are of one size
                with inside(self.vision.path):
                    tokens = vision.apply(seen, image, method=look)
                with inside(self.projector.path):
                    return projector.apply(projected, tokens)

        images = jnp.asarray(images)
        tokens = alike.one_by_one(see, images.reshape(-1, 1, *images.shape[2:]))
        return tokens.reshape(*images.shape[:2], *tokens.shape[2:])

    def look(self, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M K E"]:
        """The vision room's tokens, before the projector. Given as `images` again, they stand for the pictures."""
        return look(self.vision, images)

    def encode(
        self, batch: Batch, visual: Float[Array, "B S D"] | None, deterministic: bool = True
    ) -> tuple[Float[Array, "B T D"], Interleaved | None]:
        """Everything before the decoder: the decoder's input, and the cross-attention layers that go into it."""
        x = self.text_embedding(batch.tokens)
        interleaved = None
        if visual is not None:
            match self.config.fusion:
                case CrossAttentionFusionConfig():
                    interleaved = self.cross_attend(batch.segment_ids, batch.image_segment_ids, visual)
                case AddFusionConfig():
                    x = fusion.add(x, visual, batch.visual_index)
                case _:
                    x = fusion.place(x, visual, batch.visual_index)
        x = self.text_embedding.complete(x, batch.positions)
        if self.config.encoder is None:
            return x, interleaved
        ids = self.encoder_ids(batch)
        if isinstance(self.config.encoder, BiLSTMEncoderConfig):
            encoded = self.encoder(x, ids, batch.packed)
        else:
            between = None if isinstance(self.config.decoder, TransformerDecoderConfig) else interleaved
            interval = attention.bidirectional(ids, batch.packed)
            encoded, _ = self.encoder(x, interval, batch.positions, interleaved=between, deterministic=deterministic)
        return jnp.where((ids > 0)[..., None], encoded, x), interleaved

    def encoder_ids(self, batch: Batch) -> Int[Array, "B T"]:
        """The segment of each position that an encoder reads; 0 for what passes it by.

        In front of a causal decoder only the prompt may be read in both directions: an answer would see its future.
        """
        causal = isinstance(self.config.decoder, TransformerDecoderConfig)
        return jnp.where(batch.prompt_mask, batch.segment_ids, 0) if causal else batch.segment_ids

    def cross_attend(
        self, segment_ids: Int[Array, "B T"], image_segment_ids: Int[Array, "B M"], visual: Float[Array, "B S D"]
    ) -> Interleaved:
        interval = fusion.visible_images(segment_ids, image_segment_ids, self.config.tokens_per_image)
        return self.fusion(visual, interval)

    def decoder_interval(self, batch: Batch) -> Interval:
        """What a layer without a window sees."""
        config = self.config.decoder
        if config.prefix_lm:
            interval = attention.prefix_lm(batch.segment_ids, batch.prompt_mask)
        else:
            interval = attention.causal(batch.segment_ids, batch.packed)
        if config.image_attention == "bidirectional" and self.config.vision is not None:
            ids, index = batch.segment_ids, batch.visual_index
            interval = attention.bidirectional_images(interval, ids, index, self.config.tokens_per_image)
        return interval

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        if not isinstance(self.config.decoder, TransformerDecoderConfig):
            return self.decoder(x)
        logits = self.text_embedding.attend(x) if self.config.decoder.tie_embeddings else self.output(x)
        cap = self.config.decoder.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits

    def prefill(
        self, batch: Batch, cache: KVCache | Unstacked
    ) -> tuple[Float[Array, "B V"], KVCache | Unstacked, Float[Array, "B S D"] | None]:
        """Reads one prompt a row into the cache; gives the logits of each row's first new token, and what it saw."""
        visual = self.see(batch)
        x, interleaved = self.encode(batch, visual)
        interval = self.decoder_interval(batch)
        x, cache = self.decoder(x, interval, batch.positions, interleaved=interleaved, cache=cache)
        last = jnp.sum(batch.segment_ids > 0, axis=1) - 1
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)
        return self.logits(x)[:, 0], cache, visual

    def prefill_after(
        self, batch: Batch, starts: Int[Array, " B"], cache: KVCache | Unstacked
    ) -> tuple[Float[Array, "B V"], KVCache | Unstacked]:
        """Reads more of one prompt a row, of which the cache holds the first starts[b] positions; gives the logits of
        what comes next. Only of a model whose prompt is read from left to right, and whose images have positions."""
        x, _ = self.encode(batch, self.see(batch))
        end = self.decoder_interval(batch).end
        interval = Interval(jnp.zeros_like(end), jnp.where(end > 0, starts[:, None] + end, 0))
        x, cache = self.decoder(x, interval, batch.positions, cache=cache, cache_index=starts)
        last = jnp.sum(batch.segment_ids > 0, axis=1) - 1
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)
        return self.logits(x)[:, 0], cache

    def extend(
        self,
        tokens: Int[Array, " B"],
        lengths: Int[Array, " B"],
        cache: KVCache | Unstacked,
        visual: Float[Array, "B S D"] | None,
        image_segment_ids: Int[Array, "B M"] | None,
    ) -> tuple[Float[Array, "B V"], KVCache | Unstacked]:
        """One more token of each row, at position lengths[b] of its cache; gives the logits of the next one."""
        positions = lengths[:, None]
        x, interleaved = self.text_embedding(tokens[:, None]), None
        if visual is not None:
            match self.config.fusion:
                case CrossAttentionFusionConfig():
                    interleaved = self.cross_attend(jnp.ones_like(positions), image_segment_ids, visual)
                case AddFusionConfig():  # an answer goes on seeing the picture that its prompt saw
                    x = fusion.add(x, visual, jnp.where(image_segment_ids[:, :1] > 0, 0, -1))
        x = self.text_embedding.complete(x, positions)
        interval = Interval(jnp.zeros_like(positions), positions + 1)
        x, cache = self.decoder(x, interval, positions, interleaved=interleaved, cache=cache, cache_index=lengths)
        return self.logits(x)[:, 0], cache


@dataclass(frozen=True)
class Model:
    """What a config describes, without parameters. Hashable, so `jax.jit(forward, static_argnums=0)` works.

    tokenizer: turns text into ids and back; the functions that take or give text need it.
    pixels:    what the checkpoint wants done to a picture, uint8[h, w, 3] -> uint8[H, W, 3]; None: it is resized.
    origin:    the checkpoints' small files, which export writes again.
    """

    config: ModelConfig
    tokenizer: "Tokenizer | None" = field(default=None, compare=False, repr=False)
    pixels: Callable[[np.ndarray], np.ndarray] | None = field(default=None, compare=False, repr=False)
    origin: "Origin | None" = field(default=None, compare=False, repr=False)

    @property
    def module(self) -> VisualLanguageModel:
        return VisualLanguageModel(self.config)


def build(config: "ModelConfig | Config | ConfigDict", tokenizer: "Tokenizer | None" = None) -> Model:
    """The model that a config describes: a typed one, or what a config file returns.

    Raises UserError where its parts do not fit together.
    """
    if not isinstance(config, ModelConfig | Config):
        config = from_dict(Config, config)
    config = config.model if isinstance(config, Config) else config
    check(config)
    return Model(config, tokenizer)


def init(model: Model, rng: Array) -> Params:
    """Fresh float32 parameters: a nested dict whose first keys are the rooms' names.

    Raises UserError where a glob of the config's adapters fits no linear layer.
    """
    # No parameter depends on the attention kernel, and XLA's runs wherever this does.
    params = _init(replace(model.config, attention="xla"), rng)
    check_adapters(params, model.config.lora)
    return params


@partial(jax.jit, static_argnums=0)  # hundreds of small operations, which one by one take several times as long
def _init(config: ModelConfig, rng: Array) -> Params:
    with adapted(config.lora):
        return VisualLanguageModel(config).init(rng, _smallest_batch(config))["params"]


def complete(model: Model, params: Params, rng: Array) -> Params:
    """The parameters given, and fresh ones for all that the model has besides: a new projector, new adapters."""
    given = traverse_util.flatten_dict(params, sep="/")

    def fresh(rng: Array) -> dict[str, Array]:  # under jit XLA drops the initialisers of all that is not asked for
        leaves = traverse_util.flatten_dict(init(model, rng), sep="/")
        return {path: leaf for path, leaf in leaves.items() if path not in given}

    return traverse_util.unflatten_dict({**given, **jax.jit(fresh)(rng)}, sep="/")


def forward(model: Model, params: Params, batch: Batch, dropout_rng: Array | None = None) -> Float[Array, "B T V"]:
    """Logits in float32 at every position. Dropout, where the config has any, is on when a dropout_rng is given.

    Outside of jit it raises UserError for a batch whose image tokens do not match its images, see `check_batch`.
    """
    if not _is_traced(batch):
        check_batch(model.config, batch)
    return (_run if _is_traced((params, batch)) else _run_jitted)(model, params, batch, dropout_rng, "__call__")


def features(model: Model, params: Params, batch: Batch, dropout_rng: Array | None = None) -> Float[Array, "B T D"]:
    """What `output_matrix` reads at every position; their product, bent by the decoder's soft-cap, are the logits."""
    return _run(model, params, batch, dropout_rng, "features")


def output_matrix(model: Model, params: Params) -> Float[Array, "V D"]:
    """One row for each token or class."""
    decoder = model.config.decoder
    if not isinstance(decoder, TransformerDecoderConfig):
        return params["decoder"]["kernel"].T
    return params["text_embedding"]["embedding"] if decoder.tie_embeddings else params["output"]["kernel"].T


def _run(model: Model, params: Params, batch: Batch, dropout_rng: Array | None, method: str) -> Array:
    batch = jax.tree.map(jnp.asarray, batch)
    rngs = None if dropout_rng is None else {"dropout": dropout_rng}
    return apply(model, params, batch, deterministic=dropout_rng is None, rngs=rngs, method=method)


_run_jitted = jax.jit(_run, static_argnums=(0, 4))


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def apply(model: Model, params: Params, *args: Any, **settings: Any) -> Any:
    """`VisualLanguageModel.apply` of the model's module, with its adapters and its kernels in 8 bits."""
    # An adapter adds to whatever the layer multiplies, and that may be in 8 bits; a tile is of both.
    with alike.tiled_modules(), adapted(model.config.lora), int8_products():
        return model.module.apply({"params": params}, *args, **settings)


def _smallest_batch(config: ModelConfig) -> Batch:
    """One row that holds one image, enough to give every parameter its shape."""
    match config.vision:
        case None:
            images = None
        case LookupConfig():
            images = jnp.zeros((1, 1), jnp.int32)
        case FeaturesConfig(num_tokens=num_tokens, feature_width=width):
            images = jnp.zeros((1, 1, num_tokens, width), jnp.float32)
        case vision:
            images = jnp.zeros((1, 1, vision.image_size, vision.image_size, 3), jnp.uint8)
    return Batch.from_tokens(jnp.zeros((1, 2), jnp.int32), images)

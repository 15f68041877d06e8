"""The arithmetic that a model needs, counted from its config and a batch: what a measured step is held against.

Conventions
- One multiply-add is two operations. Only matrix products, convolutions and attention count; norms, activations,
  softmax, look-ups and the optimizer do not.
- What is needed: real positions and images, the output matrix where a position carries loss, and attention's pairs of a
  query and a key that it sees. "dense" has every position, every image slot and every pair, which is what XLA
  computes where it cannot leave any out; a convolution's products with its own zero padding count in neither.
- The backward pass has one product for each factor of each product that a gradient is needed of: for a weight, where it
  trains; for an activation, where something before it trains. So nothing is counted behind the first thing that trains,
  and no gradient of pixels or given features.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    BiLSTMEncoderConfig,
    CrossAttentionFusionConfig,
    FeaturesConfig,
    LinearProjectorConfig,
    LookupConfig,
    LoraConfig,
    MappingProjectorConfig,
    MLPProjectorConfig,
    ModelConfig,
    PerceiverProjectorConfig,
    PoolProjectorConfig,
    ResNetConfig,
    TransformerConfig,
    TransformerDecoderConfig,
    VGGConfig,
    ViTConfig,
)
from jaxfusion.models.lora import adapter_of
from jaxfusion.models.sizes import Sizes, batch_sizes, dense_sizes

SEEING = ("vision", "projector")


@dataclass(frozen=True)
class Flops:
    """Operations for one batch, for each room that has any; a language model's output matrix is "output".

    rooms: of the forward pass. backward: of the backward pass.
    """

    rooms: dict[str, float]
    backward: dict[str, float]

    @property
    def forward(self) -> float:
        return sum(self.rooms.values())

    @property
    def training(self) -> float:
        """Forward and backward pass, with nothing computed twice."""
        return self.forward + sum(self.backward.values())

    @property
    def vision(self) -> float:
        """The training's part that is done for each image, by vision and projector."""
        return sum(part.get(room, 0) for part in (self.rooms, self.backward) for room in SEEING)

    @property
    def language(self) -> float:
        return self.training - self.vision


def count_flops(
    config: ModelConfig,
    batch: Batch,
    counted: Literal["needed", "dense"] = "needed",
    *,
    trainable: Collection[str] | None = None,
) -> Flops:
    """What the model needs for this batch, by the conventions above. "dense" looks at the arrays' shapes alone.

    trainable: paths of the parameters that train, such as "projector/linear/kernel"; None: all.
    """
    sizes = dense_sizes(config, batch) if counted == "dense" else batch_sizes(config, batch)
    return flops_of_sizes(config, {name: float(size) for name, size in sizes.items()}, trainable)


def flops_of_sizes(config: ModelConfig, sizes: Sizes, trainable: Collection[str] | None = None) -> Flops:
    """As `count_flops`, of a batch's `batch_sizes`, or of their sums over many batches of a kind: they are linear."""
    count, width = _Count(trainable, config.lora), config.width
    visual = bool(sizes["images"]) and _visual(count, config, sizes["images"], sizes["pictures"])
    live = count.touches("text_embedding")
    between = None
    if isinstance(config.fusion, CrossAttentionFusionConfig):
        between = _Between(count, config, sizes, visual)
    else:
        live = live or visual
    match config.encoder:
        case TransformerConfig() as stack:
            own = None if isinstance(config.decoder, TransformerDecoderConfig) else between
            work = (sizes["encoder_tokens"], sizes["encoder_pairs"])
            live = _transformer(count, "encoder", stack, width, *work, live, own)
        case BiLSTMEncoderConfig(num_layers=num_layers):
            live = _bilstm(count, num_layers, width, sizes["encoder_tokens"], live)
    match config.decoder:
        case TransformerDecoderConfig() as stack:
            work = (sizes["tokens"], sizes["decoder_pairs"])
            live = _transformer(count, "decoder", stack, width, *work, live, between)
            path = "text_embedding/embedding" if stack.tie_embeddings else "output/kernel"
            room, classes = "output", config.text_embedding.vocab_size
        case classifier:
            path, room = "decoder/kernel", "decoder"
            classes = classifier.num_classes or config.text_embedding.vocab_size
    count.product(room, 2 * sizes["targets"] * width * classes, live, count.trains(path))
    rooms, backward = ({k: v for k, v in part.items() if v} for part in (count.forward, count.backward))
    return Flops(rooms, backward)


class _Count:
    """The sums so far. Functions below pass on whether a gradient is needed of what they compute (`live`)."""

    def __init__(self, trainable: Collection[str] | None, adapters: Sequence[LoraConfig]) -> None:
        self.trainable, self.adapters = trainable, adapters
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()

    def trains(self, path: str) -> bool:
        return self.trainable is None or path in self.trainable

    def touches(self, *modules: str) -> bool:
        """Whether any parameter of these modules, or that has one of these paths, trains."""
        paths = self.trainable
        return paths is None or any(path == m or path.startswith(f"{m}/") for path in paths for m in modules)

    def product(self, room: str, operations: float, *needed: bool) -> None:
        """needed: whether a gradient is, for each of the product's factors."""
        self.forward[room] += operations
        self.backward[room] += sum(needed) * operations

    def linear(self, path: str, vectors: float, inputs: int, outputs: int, live: bool) -> bool:
        room = path.partition("/")[0]
        self.product(room, 2 * vectors * inputs * outputs, live, self.trains(f"{path}/kernel"))
        if adapter := adapter_of(path, self.adapters):
            down, up = self.trains(f"{path}/lora_a"), self.trains(f"{path}/lora_b")
            self.product(room, 2 * vectors * inputs * adapter.rank, live, down)
            self.product(room, 2 * vectors * adapter.rank * outputs, live or down, up)
        return live or self.touches(path)

    def attend(self, room: str, pairs: float, width: int, query: bool, key: bool, value: bool) -> bool:
        """width: of all heads together."""
        self.product(room, 2 * pairs * width, query, key)
        self.product(room, 2 * pairs * width, query or key, value)
        return query or key or value

    def mlp(self, path: str, vectors: float, width: int, hidden: int, live: bool, gated: bool = False) -> bool:
        inner = [self.linear(f"{path}/{name}", vectors, width, hidden, live) for name in ("up", "gate")[: 1 + gated]]
        return self.linear(f"{path}/down", vectors, hidden, width, any(inner))


# --- Transformers -----------------------------------------------------------------------------------------------------


def _transformer(
    count: _Count,
    path: str,
    config: TransformerConfig,
    width: int,
    tokens: float,
    pairs: float,
    live: bool,
    between: "_Between | None" = None,
) -> bool:
    """pairs: of a query and a key, in one layer."""
    for layer in range(config.num_layers):
        if between is not None and layer % between.every == 0:
            live = between.layer(live)
        live = _block(count, f"{path}/layers", config, width, tokens, pairs, live)
    return live or count.touches(f"{path}/final_norm")


def _block(
    count: _Count, path: str, config: TransformerConfig, width: int, tokens: float, pairs: float, live: bool
) -> bool:
    heads, head_dim = config.num_heads, config.head_dim or width // config.num_heads
    inner, attention, post = heads * head_dim, f"{path}/attention", config.norm_position == "post"

    def read(live: bool, branch: str) -> bool:
        return live or (not post and count.touches(f"{path}/{branch}_norm"))

    def add(live: bool, branch: bool, name: str) -> bool:
        return live or branch or count.touches(*(f"{path}/{name}_{part}" for part in ("norm", "post_norm", "scale")))

    seen = read(live, "attention")
    query = count.linear(f"{attention}/query", tokens, width, inner, seen) or count.touches(f"{attention}/query_norm")
    groups = (config.num_kv_heads or heads) * head_dim
    key = count.linear(f"{attention}/key", tokens, width, groups, seen) or count.touches(f"{attention}/key_norm")
    value = count.linear(f"{attention}/value", tokens, width, groups, seen)
    mixed = count.attend(path.partition("/")[0], pairs, inner, query, key, value)
    live = add(live, count.linear(f"{attention}/out", tokens, inner, width, mixed), "attention")
    hidden = config.mlp_width or 4 * width
    return add(live, count.mlp(f"{path}/mlp", tokens, width, hidden, read(live, "mlp"), config.gated_mlp), "mlp")


def _cross_attention(
    count: _Count, path: str, width: int, queries: float, keys: float, pairs: float, live: bool, context: bool
) -> bool:
    query = count.linear(f"{path}/query", queries, width, width, live)
    key, value = (count.linear(f"{path}/{name}", keys, width, width, context) for name in ("key", "value"))
    mixed = count.attend(path.partition("/")[0], pairs, width, query, key, value)
    return count.linear(f"{path}/out", queries, width, width, mixed)


class _Between:
    """The gated cross-attention layers that stand between a Transformer's own."""

    def __init__(self, count: _Count, config: ModelConfig, sizes: Sizes, visual: bool) -> None:
        self.count, self.width, self.every, self.visual = count, config.width, config.fusion.every, visual
        self.tokens, self.pairs = sizes["tokens"], sizes.get("fusion_pairs", 0)
        self.keys = sizes["images"] * config.tokens_per_image

    def layer(self, live: bool) -> bool:
        if not self.keys:
            return live
        count, path, tokens = self.count, "fusion/layers", self.tokens
        seen = live or count.touches(f"{path}/attention_norm")
        work = (self.width, tokens, self.keys, self.pairs)
        branch = _cross_attention(count, f"{path}/attention", *work, seen, self.visual)
        live = live or branch or count.touches(f"{path}/attention_gate")
        seen = live or count.touches(f"{path}/mlp_norm")
        branch = count.mlp(f"{path}/mlp", tokens, self.width, 4 * self.width, seen)
        return live or branch or count.touches(f"{path}/mlp_gate")


def _bilstm(count: _Count, num_layers: int, width: int, tokens: float, live: bool) -> bool:
    half = width // 2  # of each of two directions, with four gates that read the input and the state
    for layer in range(num_layers):
        path = f"encoder/layer_{layer}"
        after = live or count.touches(*(f"{path}_{name}" for name in ("input_kernel", "hidden_kernel", "bias")))
        for inputs, name, needed in ((width, "input", live), (half, "hidden", after)):
            count.product("encoder", 2 * 2 * tokens * inputs * 4 * half, needed, count.trains(f"{path}_{name}_kernel"))
        live = after
    return live


# --- what is done for each image --------------------------------------------------------------------------------------


def _visual(count: _Count, config: ModelConfig, images: float, pictures: float) -> bool:
    """pictures: the images that a network looks at; 0 where its features are given, and no gradient goes further."""
    match config.vision:
        case ViTConfig() | VGGConfig() | ResNetConfig() if not pictures:
            live = False
        case ViTConfig() as vision:
            live = _vit(count, vision, pictures)
        case VGGConfig() as vision:
            live = _vgg(count, vision, pictures)
        case ResNetConfig() as vision:
            live = _resnet(count, vision, pictures)
        case LookupConfig():
            live = count.touches("vision")
        case FeaturesConfig():
            live = False
    return _projector(count, config, images, live)


def _projector(count: _Count, config: ModelConfig, images: float, live: bool) -> bool:
    num_tokens, features, width = config.vision.num_tokens, config.vision.feature_width, config.width
    tokens, path = images * num_tokens, "projector"
    match config.projector:
        case PerceiverProjectorConfig(num_queries=queries, num_layers=num_layers):
            live = count.linear(f"{path}/input", tokens, features, width, live)
            latents, vectors, context = count.touches(f"{path}/latents"), images * queries, num_tokens + queries
            work = (width, vectors, images * context, vectors * context)
            for layer in (f"{path}/layer{index}" for index in range(num_layers)):
                normed = latents or count.touches(f"{layer}/latent_norm")
                seen = normed or live or count.touches(f"{layer}/token_norm")
                latents |= _cross_attention(count, f"{layer}/attention", *work, normed, seen)
                normed = latents or count.touches(f"{layer}/mlp_norm")
                latents |= count.mlp(f"{layer}/mlp", vectors, width, 4 * width, normed)
            return latents or count.touches(f"{path}/final_norm")
        case MappingProjectorConfig(num_layers=num_layers, num_heads=num_heads, prefix_length=prefix):
            live = count.linear(f"{path}/input", tokens, features, width, live) or count.touches(f"{path}/prefix")
            joined, stack = num_tokens + prefix, TransformerConfig(num_layers=num_layers, num_heads=num_heads)
            work = (width, images * joined, images * joined**2)
            return _transformer(count, f"{path}/transformer", stack, *work, live)
        case MLPProjectorConfig(hidden_width=hidden):
            live = count.linear(f"{path}/up", tokens, features, hidden or width, live)
            return count.linear(f"{path}/down", tokens, hidden or width, width, live)
        case PoolProjectorConfig() as pool:
            live = live or count.touches(f"{path}/norm")
            tokens = images * pool.num_tokens(num_tokens)
        case LinearProjectorConfig(pool=pool, prefix_length=prefix):
            tokens, width = images if pool == "mean" else tokens, prefix * width
    # Tokens that are laid side by side are fewer and as much wider: as many products.
    return count.linear(f"{path}/linear", tokens, features, width, live)


def _vit(count: _Count, config: ViTConfig, images: float) -> bool:
    live = count.linear("vision/patches", images * config.num_patches, 3 * config.patch_size**2, config.width, False)
    live = live or count.touches(*(f"vision/{name}" for name in ("class_token", "positions", "pre_norm")))
    tokens = config.num_patches + config.class_token
    stack = TransformerConfig(
        num_layers=config.used_layers, num_heads=config.num_heads, mlp_width=config.mlp_width, mlp=config.mlp
    )
    return _transformer(count, "vision", stack, config.width, images * tokens, images * tokens**2, live)


def _conv_norm(
    count: _Count,
    path: str,
    images: float,
    live: bool,
    side: int,
    kernel: int,
    inputs: int,
    outputs: int,
    stride: int = 1,
) -> bool:
    """A kernel of odd size reads outputs at each stride-th position, with same padding."""
    reach = kernel // 2
    read = sum(min(centre + reach, side - 1) - max(centre - reach, 0) + 1 for centre in range(0, side, stride))
    count.product("vision", 2 * images * read**2 * inputs * outputs, live, count.trains(f"{path}/conv/kernel"))
    return live or count.touches(path)


def _vgg(count: _Count, config: VGGConfig, images: float) -> bool:
    live, side, channels = False, config.image_size, 3
    for stage, (depth, width) in enumerate(zip(config.stage_depths, config.stage_widths, strict=True)):
        for layer in range(depth):
            live = _conv_norm(count, f"vision/stage{stage}_layer{layer}", images, live, side, 3, channels, width)
            channels = width
        side //= 2
    return live


def _resnet(count: _Count, config: ResNetConfig, images: float) -> bool:
    imagenet, bottleneck = config.stem == "imagenet", config.block == "bottleneck"

    def conv(path: str, live: bool, *shape: int) -> bool:
        return _conv_norm(count, f"vision/{path}", images, live, *shape)

    side, channels = config.image_size, config.width
    live = conv("stem", False, side, 7 if imagenet else 3, 3, channels, 2 if imagenet else 1)
    if imagenet:
        side = -(-side // 4)
    for stage, depth in enumerate(config.stage_depths):
        inner = config.width * 2**stage
        features = inner * (4 if bottleneck else 1)
        for block in range(depth):
            path, stride = f"stage{stage}_block{block}", 2 if stage > 0 and block == 0 else 1
            after = -(-side // stride)
            if bottleneck:
                branch = conv(f"{path}/layer0", live, side, 1, channels, inner)
                branch = conv(f"{path}/layer1", branch, side, 3, inner, inner, stride)
                branch = conv(f"{path}/layer2", branch, after, 1, inner, features)
            else:
                branch = conv(f"{path}/layer0", live, side, 3, channels, features, stride)
                branch = conv(f"{path}/layer1", branch, after, 3, features, features)
            if channels != features or stride != 1:
                live = conv(f"{path}/shortcut", live, side, 1, channels, features, stride)
            live, side, channels = live or branch, after, features
    return live

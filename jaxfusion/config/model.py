"""What a model is made of: one frozen dataclass for each choice in each of the five rooms.

A room's value is one of its dataclasses; config files may also write a preset's name ("resnet-18") or a dict with a
`kind`. Dimensions that follow from others (visual tokens per image, head size) are properties here, because the data
side must know how many positions an image takes without importing any model code.
"""

from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import ClassVar, Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

AttentionKernel = Literal["auto", "xla", "cudnn", "pallas"]


# --- text embedding ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TextEmbeddingConfig:
    vocab_size: int = 0  # 0: as many as the tokenizer has
    positions: Literal["rotary", "learned", "none"] = "rotary"
    max_positions: int = 1024  # the context length: the longest segment, prompt and answer together
    scale: float = 1.0  # of the tokens' vectors, visual tokens excluded; Gemma has the square root of the width
    token_types: int = 0  # rows of BERT's table of token types, the first of which is added at every position
    norm: bool = False  # layer norm over the sum of all that (BERT)
    norm_eps: float = 1e-12


# --- vision -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """He et al. 2016. With norm="batch" the stored statistics are used and never updated (as in frozen pretrained
    towers); norm="group" (Wu & He 2018) is the one to train from scratch."""

    kind: ClassVar[str] = "resnet"
    image_size: int = 224
    block: Literal["basic", "bottleneck"] = "basic"
    stage_depths: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64  # channels of the first stage; each further stage doubles them
    stem: Literal["imagenet", "small"] = "imagenet"  # 7x7/2 and a 3x3/2 max pool, or one 3x3/1 for small pictures
    norm: Literal["batch", "group"] = "batch"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def feature_width(self) -> int:
        expansion = 4 if self.block == "bottleneck" else 1
        return self.width * 2 ** (len(self.stage_depths) - 1) * expansion

    @property
    def num_tokens(self) -> int:
        side = self.image_size
        halvings = len(self.stage_depths) - 1 + (2 if self.stem == "imagenet" else 0)
        for _ in range(halvings):
            side = -(-side // 2)
        return side * side


@dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """Simonyan & Zisserman 2015, the convolutional part; each stage ends in a 2x2 max pool."""

    kind: ClassVar[str] = "vgg"
    image_size: int = 224
    stage_depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    stage_widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: Literal["none", "group"] = "none"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def feature_width(self) -> int:
        return self.stage_widths[-1]

    @property
    def num_tokens(self) -> int:
        return (self.image_size // 2 ** len(self.stage_depths)) ** 2


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Dosovitskiy et al. 2021, with the variations of CLIP, SigLIP and DINOv2. A class token, where there is one and it
    is kept, is the image's first visual token."""

    kind: ClassVar[str] = "vit"
    image_size: int = 224
    position_size: int = 0  # image_size of the table of positions, which is resized to ours (bicubic); 0: the same
    patch_size: int = 16
    patch_bias: bool = True
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    qkv_bias: bool = True
    mlp_width: int = 3072
    mlp: Literal["gelu", "gelu-exact", "quick-gelu", "relu", "swiglu", "geglu"] = "gelu-exact"  # gelu, geglu: by tanh
    class_token: bool = True
    keep_class_token: bool = True  # among the visual tokens
    pre_norm: bool = False  # a layer norm before the first layer (CLIP)
    layer_scale: bool = False  # a learned factor for each channel of every branch (CaiT, DINOv2)
    norm_eps: float = 1e-6
    # 0: the tokens are what comes after the last layer and its norm; -1: after the last layer, without the norm; -2:
    # after the layer before it, and so on. What comes later has parameters, but is not computed.
    feature_layer: int = 0
    scan_layers: bool | None = None  # as in TransformerConfig
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    @property
    def feature_width(self) -> int:
        return self.width

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        return self.num_patches + (self.class_token and self.keep_class_token)

    @property
    def used_layers(self) -> int:
        return self.num_layers + (self.feature_layer + 1 if self.feature_layer else 0)


@dataclass(frozen=True, kw_only=True)
class LookupConfig:
    """An embedding table over image ids, as in the classic Keras model: `batch.images` holds ids int32[B, M]."""

    kind: ClassVar[str] = "lookup"
    num_images: int = 1000
    width: int = 128
    num_tokens: ClassVar[int] = 1

    @property
    def feature_width(self) -> int:
        return self.width


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Features computed beforehand: `batch.images` holds them as float[B, M, num_tokens, feature_width]."""

    kind: ClassVar[str] = "features"
    num_tokens: int = 1
    feature_width: int = 512


Network = ResNetConfig | VGGConfig | ViTConfig  # read pixels
Vision = Network | LookupConfig | FeaturesConfig


# --- projector --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LinearProjectorConfig:
    """One matrix. `pool` first makes one token of an image: the tokens' mean, or all of them side by side."""

    kind: ClassVar[str] = "linear"
    pool: Literal["none", "mean", "concatenate"] = "none"
    prefix_length: int = 1  # tokens that are made of the pooled one (Frozen, Tsimpoukelli et al. 2021: 2)

    def num_tokens(self, vision_tokens: int) -> int:
        return vision_tokens if self.pool == "none" else self.prefix_length


@dataclass(frozen=True, kw_only=True)
class MLPProjectorConfig:
    """Two layers with an activation between them (LLaVA 1.5, Liu et al. 2024)."""

    kind: ClassVar[str] = "mlp"
    hidden_width: int = 0  # 0: the text model's width
    activation: Literal["gelu", "gelu-exact", "quick-gelu", "relu"] = "gelu-exact"  # gelu: by tanh
    bias: bool = True

    def num_tokens(self, vision_tokens: int) -> int:
        return vision_tokens


@dataclass(frozen=True, kw_only=True)
class PixelShuffleProjectorConfig:
    """Folds factor x factor neighbouring tokens into one wider token, then one matrix (InternVL, SmolVLM)."""

    kind: ClassVar[str] = "pixel-shuffle"
    factor: int = 2
    bias: bool = True

    def num_tokens(self, vision_tokens: int) -> int:
        return vision_tokens // self.factor**2


@dataclass(frozen=True, kw_only=True)
class PoolProjectorConfig:
    """The mean of factor x factor neighbouring tokens, its RMS norm, and one matrix (Gemma 3, Kamath et al. 2025)."""

    kind: ClassVar[str] = "pool"
    factor: int = 2
    norm_eps: float = 1e-6

    def num_tokens(self, vision_tokens: int) -> int:
        return vision_tokens // self.factor**2


@dataclass(frozen=True, kw_only=True)
class PerceiverProjectorConfig:
    """Learned queries attend to the image's tokens (Flamingo's resampler, Alayrac et al. 2022)."""

    kind: ClassVar[str] = "perceiver"
    num_queries: int = 16
    num_layers: int = 2
    num_heads: int = 8

    def num_tokens(self, vision_tokens: int) -> int:
        return self.num_queries


@dataclass(frozen=True, kw_only=True)
class MappingProjectorConfig:
    """A Transformer over the image's tokens and learned constants, whose outputs are the prefix (ClipCap, Mokady et
    al. 2021)."""

    kind: ClassVar[str] = "mapping"
    prefix_length: int = 10
    num_layers: int = 2
    num_heads: int = 8

    def num_tokens(self, vision_tokens: int) -> int:
        return self.prefix_length


Projector = (
    LinearProjectorConfig
    | MLPProjectorConfig
    | PixelShuffleProjectorConfig
    | PoolProjectorConfig
    | PerceiverProjectorConfig
    | MappingProjectorConfig
)


# --- fusion -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlaceFusionConfig:
    """Visual tokens take positions of their own in the sequence: the prefix, or anywhere."""

    kind: ClassVar[str] = "place"


@dataclass(frozen=True, kw_only=True)
class AddFusionConfig:
    """The visual token is added to the text embeddings of its segment (H + V)."""

    kind: ClassVar[str] = "add"


@dataclass(frozen=True, kw_only=True)
class CrossAttentionFusionConfig:
    """Gated cross-attention before every `every`-th Transformer layer (Flamingo, Alayrac et al. 2022)."""

    kind: ClassVar[str] = "cross-attention"
    every: int = 1
    num_heads: int = 4


Fusion = PlaceFusionConfig | AddFusionConfig | CrossAttentionFusionConfig


# --- encoder and decoder ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021), and how a longer context than the first training's is come by."""

    theta: float = 10_000.0  # wavelengths go from 2 pi to 2 pi theta; 0: no rotation (NoPE, Kazemnejad et al. 2023)
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0  # of the context, by which frequencies are divided: all, or the low ones
    original_positions: int = 0  # llama3, yarn: the context before scaling
    low_frequency: float = 1.0  # llama3: fewer turns in the original context are divided by the factor
    high_frequency: float = 4.0  # llama3: more turns are left alone
    slow_turns: float = 1.0  # yarn (Peng et al. 2024, beta): as low_frequency
    fast_turns: float = 32.0  # yarn: as high_frequency
    round_bounds: bool = True  # yarn: the two bounds are whole dimensions
    magnitude: float = 0.0  # yarn: of the rotated vectors; 0: 0.1 ln(factor) + 1


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The fields that a Transformer encoder and decoder share."""

    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 0  # 0: as many as num_heads; fewer is grouped-query attention
    head_dim: int = 0  # 0: width / num_heads
    qkv_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False  # each head's queries and keys are normed before they are rotated
    query_scale: float = 0.0  # of the attention logits; 0: 1/sqrt(head_dim)
    attention_softcap: float = 0.0  # attention logits are bent by cap tanh(x/cap); 0: they are not
    mlp_width: int = 0  # 0: four times the width
    mlp: Literal["gelu", "gelu-exact", "quick-gelu", "relu", "swiglu", "geglu"] = "gelu"  # gelu, geglu: by tanh
    mlp_bias: bool = True
    norm: Literal["layer", "rms", "rms-offset"] = "layer"  # rms-offset: the scale is stored minus one (Gemma)
    norm_eps: float = 1e-6
    # pre: x + f(norm(x)); post: norm(x + f(x)), and no norm after the last layer (BERT); sandwich: x + norm(f(norm(x)))
    norm_position: Literal["pre", "post", "sandwich"] = "pre"
    layer_scale: bool = False  # each branch is multiplied by a learned vector (CaiT, DINOv2)
    # positions that each layer reaches back, repeated over the layers; 0: all, as a prefix-LM's prompt always does
    windows: tuple[int, ...] = (0,)
    ropes: tuple[RopeConfig, ...] = (RopeConfig(),)  # of each layer, repeated over the layers, where text is "rotary"
    dropout: float = 0.0
    # True: a loop over one compiled layer; False: all layers laid out, on the same parameters, which compiles longer;
    # None: laid out on a GPU, where it trains faster, and a loop elsewhere
    scan_layers: bool | None = None

    @property
    def gated_mlp(self) -> bool:
        return self.mlp in ("swiglu", "geglu")

    @property
    def layer_windows(self) -> tuple[int, ...]:
        return tuple(islice(cycle(self.windows), self.num_layers))

    @property
    def layer_ropes(self) -> tuple[RopeConfig, ...]:
        return tuple(islice(cycle(self.ropes), self.num_layers))


@dataclass(frozen=True, kw_only=True)
class TransformerEncoderConfig(TransformerConfig):
    """Bidirectional within a segment; in front of a causal decoder, within the segment's prompt."""

    kind: ClassVar[str] = "transformer"


@dataclass(frozen=True, kw_only=True)
class BiLSTMEncoderConfig:
    """Bidirectional LSTM; the two directions are joined, so the width of each is half the model's."""

    kind: ClassVar[str] = "bilstm"
    num_layers: int = 1
    implementation: Literal["auto", "scan", "cudnn"] = "auto"


Encoder = TransformerEncoderConfig | BiLSTMEncoderConfig


@dataclass(frozen=True, kw_only=True)
class TransformerDecoderConfig(TransformerConfig):
    """Causal language model; with prefix_lm the prompt (images included) sees itself in both directions."""

    kind: ClassVar[str] = "transformer"
    prefix_lm: bool = False
    image_attention: Literal["causal", "bidirectional"] = "causal"  # bidirectional: an image sees the whole of itself
    tie_embeddings: bool = True
    logit_softcap: float = 0.0  # logits are bent by cap tanh(x/cap); 0: they are not


@dataclass(frozen=True, kw_only=True)
class TokenClassifierConfig:
    """A softmax at every step."""

    kind: ClassVar[str] = "token-classifier"
    num_classes: int = 0  # 0: the vocabulary


@dataclass(frozen=True, kw_only=True)
class PooledClassifierConfig:
    """One class per segment; its logits stand at each of the segment's positions."""

    kind: ClassVar[str] = "pooled-classifier"
    num_classes: int = 0  # 0: as many as the data set has
    pool: Literal["mean", "last"] = "mean"


Decoder = TransformerDecoderConfig | TokenClassifierConfig | PooledClassifierConfig


# --- adapters ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on linear layers (Hu et al. 2021), of which alpha / rank times the branch is added."""

    layers: str = "decoder/layers/*"  # a glob over paths such as "decoder/layers/attention/query"; "*" takes "/" in too
    rank: int = 8
    alpha: float = 16.0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


# --- the whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    width: int = 128
    text_embedding: TextEmbeddingConfig = field(default_factory=TextEmbeddingConfig)
    vision: Vision | None = None
    projector: Projector = field(default_factory=LinearProjectorConfig)
    fusion: Fusion = field(default_factory=PlaceFusionConfig)
    encoder: Encoder | None = None
    decoder: Decoder = field(default_factory=TransformerDecoderConfig)
    lora: tuple[LoraConfig, ...] = ()  # a linear layer has the adapter of the first glob that fits it
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    attention: AttentionKernel = "auto"  # "auto": the fastest that is right, see models/attention.py; or force one

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens that one image becomes after the projector; 0 without vision."""
        return 0 if self.vision is None else self.projector.num_tokens(self.vision.num_tokens)

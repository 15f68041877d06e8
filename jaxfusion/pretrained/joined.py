"""A model of a vision tower and a language model from two checkpoints, as `LlavaForConditionalGeneration`."""

import json
from collections.abc import Mapping
from typing import Any

from jaxfusion.config.model import (
    MLPProjectorConfig,
    ModelConfig,
    PlaceFusionConfig,
    TransformerDecoderConfig,
    ViTConfig,
)
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import Model
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.processor import alone, as_loaded, processor_files
from jaxfusion.pretrained.written import check_same, tower_alone, with_vocabulary, without_pooling_head


def llava(model: Model, rooms: Mapping[str, Mapping[str, bytes]]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Its config.json, and the files beside it but for the tokenizer's. rooms: files of the two checkpoints.

    Raises UserError for what the architecture cannot express.
    """
    config = model.config
    _check_llava(config)
    text, vision = (json.loads(rooms[room]["config.json"]) for room in ("decoder", "vision"))
    text = with_vocabulary(text, config.text_embedding.vocab_size)
    theirs = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text,
        "vision_config": without_pooling_head(tower_alone(vision)),
        "image_token_index": model.tokenizer.image_id,
        "image_seq_length": config.tokens_per_image,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": config.decoder.tie_embeddings,
        "vision_feature_layer": config.vision.feature_layer,
        "vision_feature_select_strategy": "default" if config.vision.class_token else "full",
    }
    family = FAMILIES["llava"]
    files = alone(processor_files(rooms["vision"], config.vision, theirs["vision_config"]["model_type"]))
    # Of the towers' classes in transformers, DINOv2's alone resizes its table of positions without being asked.
    resizes = config.vision.layer_scale
    check_same(as_loaded(family.read_config(theirs), theirs, files, resizes), config, "llava")
    files |= {n: c for n, c in rooms["decoder"].items() if n == "generation_config.json"}
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": model.tokenizer.image_token,
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": theirs["vision_feature_select_strategy"],
        "num_additional_image_tokens": int(config.vision.class_token),
    }
    files["processor_config.json"] = json.dumps(processor, indent=2).encode()
    return theirs, files


def _check_llava(config: ModelConfig) -> None:
    """Raises UserError for what `LlavaForConditionalGeneration` has no word for."""

    def refuse(field: str, why: str) -> None:
        raise UserError(f"export: config.model.{field}: LLaVA's architecture {why}; keep the workdir, or train anew so")

    if not isinstance(config.vision, ViTConfig):
        refuse("vision", "takes a Vision Transformer")
    if config.vision.feature_layer >= 0:
        refuse("vision.feature_layer", "reads hidden states before the final norm: -1, or -2 for the last but one")
    if not isinstance(config.projector, MLPProjectorConfig) or config.projector.hidden_width not in (0, config.width):
        refuse("projector", "has an MLP of the text model's width")
    if not isinstance(config.fusion, PlaceFusionConfig):
        refuse("fusion", "places visual tokens in the sequence")
    if config.encoder is not None:
        refuse("encoder", "has none")
    if not isinstance(config.decoder, TransformerDecoderConfig) or config.decoder.prefix_lm:
        refuse("decoder", "is causal")

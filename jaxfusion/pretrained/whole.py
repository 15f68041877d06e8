"""What whole visual language models' families have in common: the parts of their config.json and of their tables."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from jaxfusion.config.model import ModelConfig
from jaxfusion.errors import UserError
from jaxfusion.pretrained import fields, gemma, llama
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row

# Those whose embedding transformers finds under the name that whole models tie their output matrix to.
LANGUAGES = {family.model_type: family for family in [*llama.FAMILIES, *gemma.FAMILIES]}

# Every whole model but Idefics3 has its tensors under LLaVA's names. Some files have them under the modules' own names,
# which begin with "model."; those of transformers 5 have no "vision_model." in a CLIP's or SigLIP's, which is written
# because vLLM looks for it, and transformers reads both.
TOWER, CLIP_TOWER = "vision_tower.", "vision_tower.vision_model."
ALIASES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", TOWER),
    ("model.vision_tower.", CLIP_TOWER),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    (TOWER, CLIP_TOWER),
    ("lm_head.", "language_model.lm_head."),
)

# Where transformers' modules stand that have other names in these files.
MODULES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)

Part = TypeVar("Part")


def read_part(config: Json, field: str, readers: Mapping[str, Callable[[Json], Part]]) -> Part:
    """What a field of config.json describes, read by its model_type: the first of the readers where it names none.

    Raises UserError for another model_type, the reader's with the field before its own, and where there is nothing:
    then transformers makes up a part of the whole model's own, which is not what its model_type alone would be.
    """
    part = config.get(field)
    if not part:
        fields.refuse(field, "it is missing; copy the config.json that belongs to these weights")
    model_type = part.get("model_type") or next(iter(readers))
    if model_type not in readers:
        fields.refuse(f"{field}.model_type", f"{model_type!r} cannot stand here; known are {', '.join(readers)}")
    try:
        return readers[model_type](part)
    except UserError as error:
        raise UserError(str(error).replace("config.json: ", f"config.json: {field}.", 1)) from None


def read_text(config: Json, *model_types: str) -> ModelConfig:
    """The language model in `text_config`. model_types: those that may stand there, the usual one first."""
    return read_part(config, "text_config", {name: LANGUAGES[name].read_config for name in model_types})


def with_head(text: ModelConfig, tie_embeddings: bool, logit_softcap: float = 0.0) -> ModelConfig:
    """With the whole model's output matrix instead of the text model's own.

    Whole models take only the text's layers and, but for PaliGemma, leave its logits as they are.
    """
    decoder = replace(text.decoder, tie_embeddings=tie_embeddings, logit_softcap=logit_softcap)
    return replace(text, decoder=decoder)


def text_table(config: ModelConfig, body: str = "language_model.model.", head: str = "language_model.") -> list[Row]:
    """The language model's tensors. body, head: what stands before the names of its layers and of its output matrix."""

    def renamed(name: str) -> str:
        return head + name if name.startswith("lm_head.") else body + name.removeprefix("model.")

    return [replace(row, name=renamed(row.name)) for row in llama.decoder_table(config)]

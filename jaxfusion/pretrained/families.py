"""Every family that loads and exports, by the `model_type` of its config.json."""

from jaxfusion.pretrained import (
    bert,
    clip,
    dinov2,
    gemma,
    gemma3,
    gpt2,
    idefics3,
    llama,
    llava,
    paligemma,
    resnet,
    siglip,
    vgg,
    vit,
)
from jaxfusion.pretrained.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in [
        *gpt2.FAMILIES,
        *llama.FAMILIES,
        *gemma.FAMILIES,
        *bert.FAMILIES,
        *clip.FAMILIES,
        *siglip.FAMILIES,
        *dinov2.FAMILIES,
        *vit.FAMILIES,
        *resnet.FAMILIES,
        *vgg.FAMILIES,
        *llava.FAMILIES,
        *paligemma.FAMILIES,
        *gemma3.FAMILIES,
        *idefics3.FAMILIES,
    ]
}

"""Directories as transformers writes them: tiny random models, with a tokenizer and an image processor beside them."""

from dataclasses import replace
from pathlib import Path

import jax
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from jaxfusion.config import from_dict
from jaxfusion.config.run import Config
from jaxfusion.models.vlm import Model, Params, build
from jaxfusion.pretrained.join import expand
from jaxfusion.pretrained.load import load, read_rooms, with_room_for
from jaxfusion.pretrained.origin import Origin
from jaxfusion.text.pretrained import load_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def randomise(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Norms and biases too, which are ones and zeros at first and would hide what happens to them."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def save_tokenizer(directory: Path, *more: str, chat_template: str | None = CHATML) -> None:
    """Bytes and three special tokens or more, with a chat template in the manner of Qwen."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *more],
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(directory)


def save_qwen3(directory: Path, vocab_size: int = 264) -> None:
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    randomise(Qwen3ForCausalLM(config)).save_pretrained(directory)
    save_tokenizer(directory)


def join(tower: Path, language: Path) -> tuple[Model, Params]:
    """A model of two checkpoints, as a run of `configs/join.py` begins with."""
    named = {"vision": str(tower), "decoder": str(language)}
    config = from_dict(Config, expand({"model": named | {"projector": "mlp"}})).model
    tokenizer = load_tokenizer(language, config)
    model = build(with_room_for(tokenizer, config), tokenizer)
    model = replace(model, origin=Origin.read(named), pixels=load(tower)[0].pixels)
    return model, read_rooms(model, named, jax.random.key(0))


def save_siglip(directory: Path) -> None:
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=12
    )
    randomise(SiglipVisionModel(config), seed=1).save_pretrained(directory)
    SiglipImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(directory)

"""Out again and back into transformers, every family: what it wrote and what we write of that answer the same."""

import json
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import jaxfusion
from jaxfusion.data.images import resize_image
from jaxfusion.pretrained.families import FAMILIES
from tests.pretrained import test_load_parity as published
from tests.pretrained import test_whole_parity as whole
from tests.pretrained.tiny_checkpoints import join, randomise, save_qwen3, save_siglip

VOCAB = 97
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=36,
    intermediate_size=50,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
GEMMA = TEXT | dict(head_dim=14, sliding_window=5)
VISION = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, image_size=12, patch_size=4)
MLP = VISION | dict(intermediate_size=44)
SMALL_TEXT = dict(TEXT, bos_token_id=1, eos_token_id=2, pad_token_id=0)
RESNET = dict(embedding_size=4, hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 1, 1])


class Case(NamedTuple):
    """before: the class that is saved; after: that of what comes out, where it is another.
    unread: globs of tensors that we neither read nor write. No state that we compute depends on them."""

    before: str
    settings: dict
    after: str = ""
    unread: tuple[str, ...] = ()


CASES = {
    "gpt2": Case("GPT2LMHeadModel", dict(vocab_size=VOCAB, n_embd=36, n_layer=3, n_head=6, n_positions=64)),
    "gpt2, untied": Case(
        "GPT2LMHeadModel",
        dict(vocab_size=VOCAB, n_embd=36, n_layer=3, n_head=6, n_positions=64, tie_word_embeddings=False),
    ),
    "llama": Case("LlamaForCausalLM", TEXT | dict(attention_bias=True)),
    "mistral": Case("MistralForCausalLM", TEXT | dict(sliding_window=5)),
    "smollm3": Case("SmolLM3ForCausalLM", TEXT | dict(no_rope_layer_interval=2, pad_token_id=0)),
    "qwen2": Case("Qwen2ForCausalLM", TEXT),
    "qwen2, tied, windows": Case(
        "Qwen2ForCausalLM",
        TEXT | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True),
    ),
    "qwen3": Case("Qwen3ForCausalLM", TEXT | dict(head_dim=10)),
    "gemma": Case("GemmaForCausalLM", TEXT | dict(head_dim=14)),
    "gemma2": Case("Gemma2ForCausalLM", GEMMA),
    "gemma3_text": Case("Gemma3ForCausalLM", GEMMA),
    "bert": Case("BertModel", TEXT, unread=("pooler.*",)),
    "bert, with a head": Case("BertForMaskedLM", TEXT, "BertModel", ("pooler.*",)),
    "clip_vision_model": Case("CLIPVisionModel", MLP),
    "clip": Case("CLIPModel", dict(vision_config=MLP, text_config=SMALL_TEXT), "CLIPVisionModel"),
    "siglip_vision_model": Case("SiglipVisionModel", MLP),
    "siglip": Case("SiglipModel", dict(vision_config=MLP, text_config=SMALL_TEXT), "SiglipVisionModel"),
    "dinov2": Case("Dinov2Model", VISION, unread=("embeddings.mask_token",)),
    "dinov2, with a head": Case("Dinov2ForImageClassification", VISION, "Dinov2Model", ("embeddings.mask_token",)),
    "vit": Case("ViTModel", MLP, unread=("pooler.*",)),
    "vit, with a head": Case("ViTForImageClassification", MLP, "ViTModel", ("pooler.*",)),
    "resnet": Case("ResNetModel", RESNET, unread=("*.num_batches_tracked",)),
    "resnet, with a head": Case("ResNetForImageClassification", RESNET, "ResNetModel", ("*.num_batches_tracked",)),
}
WHOLE = {"llava": "llava, dinov2, smollm3", "llava, clip": "llava"} | {
    case: case for case in ("paligemma", "gemma3", "idefics3", "smolvlm, tied")
}


def save(case: Case, directory: Path) -> torch.nn.Module:
    """A random model; running statistics of batch norms as well, which are no parameters."""
    kind = getattr(transformers, case.before)
    model = randomise(kind(kind.config_class(**case.settings)))
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
    model.save_pretrained(directory)
    return model


@torch.no_grad()
def output(model: torch.nn.Module) -> torch.Tensor:
    """Logits, or the states that a tower or an encoder ends in."""
    rng = torch.Generator().manual_seed(0)
    model = getattr(model, "vision_model", getattr(model, model.base_model_prefix, model) if headless(model) else model)
    if model.main_input_name == "pixel_values":
        size = getattr(model.config, "image_size", 45)
        return model(torch.randn((2, 3, size, size), generator=rng)).last_hidden_state
    answer = model(torch.randint(1, VOCAB, (2, 17), generator=rng))
    return answer.logits if hasattr(answer, "logits") else answer.last_hidden_state


def headless(model: torch.nn.Module) -> bool:
    """Whether we read the model without its head."""
    return FAMILIES[model.config.model_type].room != "language"


def read_back(kind: type, directory: Path, unread: tuple[str, ...] = ()) -> torch.nn.Module:
    """What transformers reads, and that it finds all that it looks for."""
    model, said = kind.from_pretrained(directory, output_loading_info=True)
    assert all(any(fnmatch(name, glob) for glob in unread) for name in said["missing_keys"]), said["missing_keys"]
    assert not said["unexpected_keys"] and not said["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_transformers_reads_back_what_it_wrote(name, tmp_path):
    case = CASES[name]
    before = save(case, tmp_path / "before")
    jaxfusion.save_pretrained(*jaxfusion.load(tmp_path / "before"), tmp_path / "after")
    auto = transformers.AutoModel if headless(before) else transformers.AutoModelForCausalLM
    after = read_back(auto, tmp_path / "after", case.unread)
    assert [type(after).__name__] == after.config.architectures == [case.after or case.before]
    assert torch.equal(output(after), output(before))


@pytest.mark.parametrize("name", ["clip_vision_model", "clip", "siglip_vision_model", "siglip"])
def test_towers_go_out_under_the_names_of_published_files(name, tmp_path):
    """Transformers 4 finds no others, and makes up the whole tower."""
    save(CASES[name], tmp_path / "before")
    jaxfusion.save_pretrained(*jaxfusion.load(tmp_path / "before"), tmp_path / "after")
    parts = ("embeddings.", "encoder.layers.", "post_layernorm.", *(["pre_layrnorm."] if "clip" in name else []))
    names = load_file(tmp_path / "after" / "model.safetensors").keys()
    assert {part for part in parts if any(name.startswith(f"vision_model.{part}") for name in names)} == set(parts)
    assert all(name.startswith(tuple(f"vision_model.{part}" for part in parts)) for name in names)
    tower, params = jaxfusion.load(tmp_path / "before")
    again, again_params = jaxfusion.load(tmp_path / "after")
    assert again.config == tower.config
    jax.tree.map(np.testing.assert_array_equal, again_params, params)


@pytest.mark.parametrize("name", WHOLE)
def test_transformers_reads_back_the_whole_models_that_it_wrote(name, tmp_path):
    pair = whole.make_pair(WHOLE[name], tmp_path / "before")
    jaxfusion.save_pretrained(*jaxfusion.load(tmp_path / "before"), tmp_path / "after")
    unread = ("model.vision_tower.embeddings.mask_token",)
    names = load_file(tmp_path / "after" / "model.safetensors").keys()
    towers = {name for name in names if name.startswith("vision_tower.")}
    assert all(name.startswith("vision_tower.vision_model.") for name in towers) or name == "llava"
    after, before = (read_back(type(pair.theirs), tmp_path / part, unread) for part in ("after", "before"))
    for sample in whole.samples(pair.model):
        answers = [whole.their_logits(pair, sample, model) for model in (after, before)]
        np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("name", ["dinov2", "vit", "resnet"])
def test_towers_whose_pictures_are_of_another_size_than_config_json_says(name, tmp_path):
    """As those of most DINOv2 checkpoints are."""
    before = save(CASES[name], tmp_path / "before")
    sides = {"height": 20, "width": 20}
    CLIPImageProcessorPil(size={"shortest_edge": 22}, crop_size=sides).save_pretrained(tmp_path / "before")
    tower, params = jaxfusion.load(tmp_path / "before")
    assert tower.config.image_size == 20
    jaxfusion.save_pretrained(tower, params, tmp_path / "after")
    assert jaxfusion.load(tmp_path / "after")[0].config == tower.config
    after = read_back(transformers.AutoModel, tmp_path / "after", CASES[name].unread)
    assert torch.equal(output(after), output(before))


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_towers_join_and_go_out_as_llava(name, tmp_path):
    """The towers of whole CLIP and SigLIP, and one for pictures of another size than config.json says."""
    save(CASES[name], tmp_path / "tower")
    save_qwen3(tmp_path / "qwen3")
    size = 20 if name == "dinov2" else 12
    sides = {"height": size, "width": size}
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=sides).save_pretrained(tmp_path / "tower")
    model, params = join(tmp_path / "tower", tmp_path / "qwen3")
    jaxfusion.save_pretrained(model, params, tmp_path / "llava")
    read_back(transformers.LlavaForConditionalGeneration, tmp_path / "llava", ("*.mask_token",))
    again, again_params = jaxfusion.load(tmp_path / "llava")
    assert again.config.vision == model.config.vision and model.config.vision.image_size == size
    jax.tree.map(np.testing.assert_array_equal, again_params, params)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("name", ["idefics3", "smolvlm, tied"])
def test_a_picture_is_one_tile_in_what_goes_out(name, within, tmp_path):
    """As the model was run, although the checkpoint's own settings cut it into several."""
    published.save_whole(name, tmp_path / "before")
    file = tmp_path / "before" / "preprocessor_config.json"
    assert json.loads(file.read_text())["do_image_splitting"]
    if within:
        settings = json.loads(file.read_text())
        del settings["do_image_splitting"]  # which is their default
        file.unlink()
        processor = {"processor_class": "Idefics3Processor", "image_processor": settings}
        (tmp_path / "before" / "processor_config.json").write_text(json.dumps(processor))
    model, params = jaxfusion.load(tmp_path / "before")
    jaxfusion.save_pretrained(model, params, tmp_path / "after")
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    before, after = (
        transformers.AutoImageProcessor.from_pretrained(tmp_path / part, backend="pil") for part in ("before", "after")
    )
    assert before([[Image.fromarray(picture)]], return_tensors="np")["pixel_values"].shape[1] > 1
    tiles = after([[Image.fromarray(picture)]], return_tensors="np")["pixel_values"]
    assert tiles.shape[:2] == (1, 1)
    ours = (model.pixels(picture) / 255 - model.config.vision.mean) / model.config.vision.std
    np.testing.assert_allclose(tiles[0, 0].transpose(1, 2, 0), ours, atol=2e-6)


def test_an_image_processor_within_another_processors_file_joins_as_well(tmp_path):
    save(CASES["clip"], tmp_path / "tower")
    save_qwen3(tmp_path / "qwen3")
    settings = CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}).to_dict()
    processor = {"processor_class": "CLIPProcessor", "image_processor": settings}
    (tmp_path / "tower" / "processor_config.json").write_text(json.dumps(processor))
    model, params = join(tmp_path / "tower", tmp_path / "qwen3")
    jaxfusion.save_pretrained(model, params, tmp_path / "llava")
    assert_same_pixels(model, tmp_path / "llava")
    assert isinstance(transformers.AutoProcessor.from_pretrained(tmp_path / "llava"), transformers.LlavaProcessor)


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_an_image_processor_without_a_name_is_the_towers_in_a_joined_model_too(kind, tmp_path):
    """As in the files of the first Vision Transformers."""
    save(CASES[kind], tmp_path / "tower")
    save_qwen3(tmp_path / "qwen3")
    settings = {"size": {"height": 12, "width": 12}, "resample": 2, "image_mean": [0.1] * 3, "image_std": [0.4] * 3}
    (tmp_path / "tower" / "preprocessor_config.json").write_text(json.dumps(settings))
    model, params = join(tmp_path / "tower", tmp_path / "qwen3")
    jaxfusion.save_pretrained(model, params, tmp_path / "llava")
    assert_same_pixels(model, tmp_path / "llava")


def assert_same_pixels(model: jaxfusion.Model, directory: Path) -> None:
    """What transformers' image processor makes of a picture, and what we do."""
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    vision = model.config.vision if isinstance(model, jaxfusion.Model) else model.config
    bytes_ = model.pixels(picture) if model.pixels else resize_image(picture, vision.image_size)
    np.testing.assert_allclose(theirs.transpose(1, 2, 0), (bytes_ / 255 - vision.mean) / vision.std, atol=2e-6)


@pytest.mark.parametrize("name", ["clip", "siglip_vision_model", "dinov2", "vit", "resnet"])
def test_towers_without_an_image_processor_get_one_of_their_mean_and_deviation(name, tmp_path):
    save(CASES[name], tmp_path / "before")
    tower, params = jaxfusion.load(tmp_path / "before")
    tower = replace(tower, config=replace(tower.config, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    jaxfusion.save_pretrained(tower, params, tmp_path / "after")
    assert_same_pixels(tower, tmp_path / "after")
    assert jaxfusion.load(tmp_path / "after")[0].config == tower.config


@pytest.mark.parametrize("joined", [False, True])
def test_a_mean_that_the_image_processor_does_not_have_is_refused(joined, tmp_path):
    save_siglip(tmp_path / "siglip")
    save_qwen3(tmp_path / "qwen3")
    model, params = join(tmp_path / "siglip", tmp_path / "qwen3") if joined else jaxfusion.load(tmp_path / "siglip")
    changed = dict(mean=(0.1, 0.2, 0.3))
    if joined:
        config = replace(model.config, vision=replace(model.config.vision, **changed))
    else:
        config = replace(model.config, **changed)
    with pytest.raises(jaxfusion.UserError, match=r"mean is .*0\.1, .*says .*0\.5, 0\.5"):
        jaxfusion.save_pretrained(replace(model, config=config), params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_family_is_left_out():
    covered = {name.partition(",")[0] for name in (CASES | WHOLE)}
    assert covered | {"torchvision_resnet", "torchvision_vgg"} == FAMILIES.keys()

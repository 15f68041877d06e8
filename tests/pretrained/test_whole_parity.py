"""Tiny random models of every whole family: transformers' own logits, greedy answers and tensors against ours."""

import re
import zlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxfusion.batch import Batch
from jaxfusion.generation.beams import Beams, beam_search
from jaxfusion.generation.decode import generate_tokens
from jaxfusion.models.vlm import Model, Params, build, forward, init
from jaxfusion.pretrained.checkpoint import family_of, open_checkpoint
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.stream import read_params
from jaxfusion.pretrained.table import flatten, tensors, to_theirs

VOCAB, IMAGE = 97, 96  # IMAGE stands under an image's tokens
ANSWER = 4  # tokens at the end of a sample
VISION = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, image_size=12, patch_size=4)
SIGLIP = VISION | dict(model_type="siglip_vision_model", intermediate_size=44)
CLIP = VISION | dict(model_type="clip_vision_model", intermediate_size=44)
IDEFICS3 = VISION | dict(intermediate_size=44, image_size=16)
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=36,
    intermediate_size=50,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
LLAMA = TEXT | dict(model_type="llama")
GEMMA = TEXT | dict(model_type="gemma", head_dim=14, num_key_value_heads=1)
GEMMA2 = TEXT | dict(
    model_type="gemma2",
    head_dim=14,
    sliding_window=7,
    attn_logit_softcapping=1.5,
    final_logit_softcapping=4.0,
    query_pre_attn_scalar=5,
)
GEMMA3 = TEXT | dict(
    head_dim=10,
    sliding_window=7,
    query_pre_attn_scalar=21,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)
CASES = {
    "llava": dict(vision_config=CLIP, text_config=LLAMA),
    "llava, siglip to the end, no bias, qwen3": dict(
        vision_config=SIGLIP,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        projector_hidden_act="gelu_pytorch_tanh",
        multimodal_projector_bias=False,
        text_config=TEXT | dict(model_type="qwen3", head_dim=10, tie_word_embeddings=True),
    ),
    "llava, class token, a layer from the front, gemma2": dict(
        vision_config=CLIP | dict(hidden_act="gelu", layer_norm_eps=1e-3),
        vision_feature_select_strategy="full",
        vision_feature_layer=[1],
        text_config=GEMMA2,
    ),
    "llava, dinov2, smollm3": dict(
        vision_config=VISION | dict(model_type="dinov2", layerscale_value=0.3),
        projector_hidden_act="relu",
        text_config=TEXT | dict(model_type="smollm3", no_rope_layer_interval=2, pad_token_id=0),
    ),
    "llava, vit, mistral": dict(
        vision_config=VISION | dict(model_type="vit", intermediate_size=44),
        text_config=TEXT | dict(model_type="mistral", sliding_window=7),
        tie_word_embeddings=True,
    ),
    "paligemma": dict(vision_config=SIGLIP | dict(vision_use_head=False), text_config=GEMMA, projection_dim=36),
    "paligemma, gemma2, untied": dict(
        vision_config=SIGLIP | dict(hidden_act="gelu", layer_norm_eps=1e-3),
        text_config=GEMMA2,
        projection_dim=36,
        tie_word_embeddings=False,
    ),
    "gemma3": dict(vision_config=SIGLIP | dict(image_size=16), text_config=GEMMA3, mm_tokens_per_image=4),
    "gemma3, larger squares, untied": dict(
        vision_config=SIGLIP | dict(patch_size=2, layer_norm_eps=1e-3, vision_use_head=False),
        text_config=GEMMA3
        | dict(
            num_key_value_heads=6,
            attention_bias=True,
            num_hidden_layers=2,
            layer_types=None,
            final_logit_softcapping=3.0,
        ),
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
    ),
    "idefics3": dict(vision_config=IDEFICS3, text_config=LLAMA | dict(pad_token_id=0)),
    "idefics3, larger squares, qwen2": dict(
        vision_config=IDEFICS3 | dict(image_size=12, patch_size=2, hidden_act="gelu"),
        scale_factor=3,
        text_config=TEXT | dict(model_type="qwen2", pad_token_id=0),
    ),
    "smolvlm, tied": dict(
        vision_config=IDEFICS3,
        scale_factor=4,
        text_config=LLAMA | dict(pad_token_id=0, num_key_value_heads=3),
        tie_word_embeddings=True,
    ),
}
SOME = [  # of each family, for what takes longest
    "llava",
    "llava, class token, a layer from the front, gemma2",
    "paligemma",
    "paligemma, gemma2, untied",
    "gemma3",
    "idefics3",
    "smolvlm, tied",
]
GENERATED = ["llava", "paligemma, gemma2, untied", "gemma3", "idefics3", "smolvlm, tied"]  # of each family one
NEW = 64  # tokens of a greedy answer
CLASSES = {
    "llava": transformers.LlavaForConditionalGeneration,
    "paligemma": transformers.PaliGemmaForConditionalGeneration,
    "gemma3": transformers.Gemma3ForConditionalGeneration,
    "idefics3": transformers.Idefics3ForConditionalGeneration,
    "smolvlm": transformers.SmolVLMForConditionalGeneration,
}
ADDS = ("o_proj", "out_proj", "down_proj", "fc2")
NOT_READ = ["vision_tower.head.*", "vision_tower.pooler.*", "vision_tower.embeddings.mask_token"]


@dataclass
class Pair:
    """A model of transformers' and ours with the same weights, and where its file is."""

    theirs: transformers.PreTrainedModel
    model: Model
    params: Params
    directory: Path

    @property
    def model_type(self) -> str:
        return self.theirs.config.model_type


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return cache(lambda case, **how: make_pair(case, tmp_path_factory.mktemp("whole"), **how))


def make_pair(case: str, directory: Path, lively: bool = False) -> Pair:
    """lively: two layers of text, which speak up against the embeddings, so that an answer does not just repeat its
    last token."""
    kind = CLASSES[case.partition(",")[0]]
    image = "image_token_index" if "image_token_id" in kind.config_class.attribute_map else "image_token_id"
    settings = deepcopy(CASES[case])
    if lively:
        text = settings["text_config"]
        text |= {"num_hidden_layers": 2} | ({"layer_types": text["layer_types"][:2]} if "layer_types" in text else {})
    config = kind.config_class(**settings, **{image: IMAGE})
    theirs = kind._from_config(config, attn_implementation="eager").eval()
    theirs.generation_config.eos_token_id = None
    randomise(theirs, torch.Generator().manual_seed(zlib.crc32(case.encode())))
    if lively:
        enliven(theirs)
    theirs.save_pretrained(directory)
    return Pair(theirs, *load(directory), directory)


def randomise(model: torch.nn.Module, rng: torch.Generator) -> None:
    """All weights, biases and norms too, so that activations stay near one.

    What a layer adds is small, as in trained models: else bfloat16's rounding alone takes the logits 1e-2 away, theirs
    from float32's as well.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=rng)
            if weight.ndim == 1:
                less = 0.7 if "post_feedforward" in name else 0.0  # of Gemma's norms of what a layer adds
                weight.copy_(0.3 * noise + weight.mean() - less)  # around a norm's one
            elif "embed_tokens" in name or "position" in name:
                weight.copy_(noise)
            else:
                inputs = len(weight) if "mm_input" in name else weight[0].numel()
                size = 0.3 if any(part in name for part in ADDS) else 1.0
                weight.copy_(size * noise / inputs**0.5)


def enliven(model: torch.nn.Module) -> None:
    text = model.config.text_config
    size = 0.2 / (text.hidden_size**0.5 if text.model_type.startswith("gemma") else 1.0)  # by which Gemma multiplies
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_tokens" in name:
                weight.mul_(size)
            elif "post_feedforward" in name:
                weight.add_(0.7)
            elif ".layers." in name and "vision" not in name and weight.ndim > 1:
                weight.mul_(10.0 if any(part in name for part in ADDS) else 3.0)


def load(directory: Path) -> tuple[Model, Params]:
    checkpoint = open_checkpoint(directory)
    family = family_of(checkpoint, FAMILIES)
    model = build(family.read_config(checkpoint.config))
    shapes = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    params, report = read_params(
        checkpoint, family.table(model.config), shapes, ignored=family.ignored, aliases=family.aliases
    )
    assert report.surplus == []
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    return model, params


@dataclass
class Sample:
    """tokens: int32[T], of which all but the last few are the prompt. images: float32[M, H, W, 3]."""

    tokens: np.ndarray
    images: np.ndarray

    @property
    def prompt(self) -> np.ndarray:
        return np.arange(len(self.tokens)) < len(self.tokens) - ANSWER


def samples(model: Model) -> list[Sample]:
    """Two images, none, and one, with text before, between and behind them."""
    rng, size = np.random.default_rng(0), model.config.vision.image_size
    made = []
    for texts in ([2, 3, 7], [9], [1, 8]):
        pieces = [rng.integers(1, IMAGE, texts[0])]
        for length in texts[1:]:
            pieces += [np.full(model.config.tokens_per_image, IMAGE), rng.integers(1, IMAGE, length)]
        images = rng.standard_normal((len(texts) - 1, size, size, 3))
        made.append(Sample(np.concatenate(pieces).astype(np.int32), images.astype(np.float32)))
    return made


def padded(samples: Sequence[Sample]) -> Batch:
    return make_batch([[sample] for sample in samples], gap=0).replace(packed=False)


def make_batch(rows: Sequence[Sequence[Sample]], gap: int) -> Batch:
    """Each row's samples one after the other, `gap` positions of padding behind each."""
    length = max(sum(len(sample.tokens) + gap for sample in row) for row in rows) + 1
    num_images = max(sum(len(sample.images) for sample in row) for row in rows)
    tokens, positions, segment_ids = np.zeros((3, len(rows), length), np.int32)
    prompt_mask, visual_index = np.zeros(tokens.shape, bool), np.full(tokens.shape, -1, np.int32)
    images = np.zeros((len(rows), num_images, *rows[0][0].images.shape[1:]), np.float32)
    image_segment_ids = np.zeros((len(rows), num_images), np.int32)
    for b, row in enumerate(rows):
        at, image = 0, 0
        for segment, sample in enumerate(row, 1):
            place = slice(at, at + len(sample.tokens))
            tokens[b, place], positions[b, place] = sample.tokens, np.arange(len(sample.tokens))
            segment_ids[b, place], prompt_mask[b, place] = segment, sample.prompt
            images[b, image : image + len(sample.images)] = sample.images
            image_segment_ids[b, image : image + len(sample.images)] = segment
            at, image = at + len(sample.tokens) + gap, image + len(sample.images)
        stands = (tokens[b] == IMAGE) & (segment_ids[b] > 0)
        visual_index[b, stands] = np.arange(stands.sum())
    return Batch(
        tokens=tokens,
        positions=positions,
        segment_ids=segment_ids,
        targets=np.zeros_like(tokens),
        loss_weights=np.zeros(tokens.shape, np.float32),
        prompt_mask=prompt_mask,
        visual_index=visual_index,
        images=images,
        image_segment_ids=image_segment_ids,
    )


def their_inputs(one: Pair, sample: Sample, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Of one sample alone, as the family's processor gives them."""
    tokens = torch.tensor(sample.tokens[None], dtype=torch.long)
    inputs = dict(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    if len(sample.images):
        pixels = torch.tensor(sample.images).permute(0, 3, 1, 2).to(dtype)
        inputs["pixel_values"] = pixels[None] if one.model_type in ("idefics3", "smolvlm") else pixels
    if one.model_type == "paligemma":
        inputs["token_type_ids"] = torch.tensor(~sample.prompt[None], dtype=torch.long)
    if one.model_type == "gemma3":
        inputs["token_type_ids"] = (tokens == IMAGE).long()
    return inputs


@torch.no_grad()
def their_logits(one: Pair, sample: Sample, model: torch.nn.Module) -> np.ndarray:
    return model(**their_inputs(one, sample, model.dtype)).logits[0].float().numpy()


def our_logits(model: Model, params: Params, batch: Batch) -> np.ndarray:
    """Of all that is no padding."""
    return np.asarray(jax.jit(forward, static_argnums=0)(model, params, batch))[batch.segment_ids > 0]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("case", CASES)
def test_logits_in_float32(case, pair):
    one = pair(case)
    first, second, third = given = samples(one.model)
    theirs = [their_logits(one, sample, one.theirs) for sample in given]
    for batch, order in [
        (padded(given), [0, 1, 2]),
        (make_batch([[first, second, third], [third, first]], gap=2), [0, 1, 2, 2, 0]),
    ]:
        ours = our_logits(one.model, one.params, batch)
        assert relative_error(ours, np.concatenate([theirs[i] for i in order])) <= 1e-5


@pytest.mark.parametrize("case", SOME)
def test_logits_in_bfloat16(case, pair):
    one = pair(case)
    model = build(replace(one.model.config, dtype="bfloat16"))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), one.params)
    reference = deepcopy(one.theirs).to(torch.bfloat16)
    first, second, third = given = samples(one.model)
    theirs = [their_logits(one, sample, reference) for sample in given]
    batch = make_batch([[first, second, third], [third, first]], gap=2)  # padding is in it as well
    ours = our_logits(model, rounded, batch)
    assert relative_error(ours, np.concatenate([theirs[i] for i in (0, 1, 2, 2, 0)])) <= 1e-2


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_comes_back_bit_by_bit(case, pair):
    one = pair(case)
    leaves = flatten(one.params)
    exported = {}
    for name, row, layer, _ in tensors(FAMILIES[one.model_type].table(one.model.config), leaves):
        parts = [np.asarray(leaves[path] if layer is None else leaves[path][layer]) for path in row.paths]
        exported[name] = np.ascontiguousarray(to_theirs(row, parts))
    stored = load_file(one.directory / "model.safetensors")
    stored = {classic(name): value for name, value in stored.items() if not any(fnmatch(name, g) for g in NOT_READ)}
    assert exported.keys() == stored.keys()
    for name, value in stored.items():
        assert value.tobytes() == exported[name].tobytes(), name


def classic(name: str) -> str:
    """As the first LLaVA's files have it, and servers look for it: a CLIP's or SigLIP's tower within its model."""
    part = "|".join(("embeddings.class_embedding", "embeddings.patch_embedding", "embeddings.position_embedding"))
    clip = rf"vision_tower\.(?=({part})\b|encoder\.layers|pre_layrnorm|post_layernorm)"
    return re.sub(clip, "vision_tower.vision_model.", name)


def their_answer(one: Pair, sample: Sample, settings: transformers.GenerationConfig) -> list[int]:
    inputs = their_inputs(one, sample)
    if one.model_type == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])  # all of it is the prompt
    return one.theirs.generate(**inputs, generation_config=settings)[0, len(sample.tokens) :].tolist()


@pytest.fixture(scope="module")
def greedy(pair):
    """A case's answers to samples with two images and with one: int32[2, NEW]."""

    def answers(case: str) -> np.ndarray:
        one = pair(case, lively=True)
        first, _, third = samples(one.model)
        return generate_tokens(one.model, one.params, padded([first, third]), max_new_tokens=NEW)

    return cache(answers)


@pytest.mark.parametrize("case", GENERATED)
def test_greedy_answers(case, pair, greedy):
    one = pair(case, lively=True)
    first, _, third = samples(one.model)
    settings = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert min(len(set(row)) for row in greedy(case).tolist()) >= 6  # an answer that repeats itself would tell little
    for row, sample in zip(greedy(case), (first, third), strict=True):
        assert row.tolist() == their_answer(one, sample, settings)


@pytest.mark.parametrize("case", GENERATED)
def test_beam_search_answers(case, pair, greedy):
    """With an end of sequence that comes up, so that beams end at different lengths. Without and with an image: of
    several, transformers gives some families' beams each other's."""
    one, new, eos = pair(case, lively=True), 8, int(greedy(case)[1, 4])
    _, second, third = samples(one.model)
    ours = beam_search(
        one.model,
        one.params,
        padded([second, third]),
        beams=Beams(num_beams=3, length_penalty=0.7),
        max_new_tokens=new,
        eos_token_id=eos,
    )
    assert (ours[1] != greedy(case)[1, :new]).any()
    settings = transformers.GenerationConfig(
        max_new_tokens=new, do_sample=False, num_beams=3, length_penalty=0.7, eos_token_id=eos, pad_token_id=eos
    )
    for row, sample in zip(ours, (second, third), strict=True):
        theirs = their_answer(one, sample, settings)
        assert row.tolist() == theirs + [eos] * (new - len(theirs))


@pytest.mark.parametrize("within", [False, True], ids=["", "model."])
@pytest.mark.parametrize("tower", ["vision_tower.", "vision_tower.vision_model."])
@pytest.mark.parametrize("case", ["llava", "paligemma, gemma2, untied", "gemma3", "llava, dinov2, smollm3"])
def test_files_under_other_names_hold_the_same(case, tower, within, pair, tmp_path):
    """within: as the modules themselves are named."""
    one = pair(case)
    stored = load_file(one.directory / "model.safetensors")

    def renamed(name: str) -> str:
        if "dinov2" not in case:
            name = name.replace("vision_tower.", tower)
        if not within:
            return name
        short = name.replace("language_model.model.", "language_model.")
        return "lm_head.weight" if name.endswith("lm_head.weight") else f"model.{short}"

    save_file({renamed(name): value for name, value in stored.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((one.directory / "config.json").read_bytes())
    _, params = load(tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, one.params))

"""Tiny random models of every language family: transformers' own outputs, greedy answers and tensors against ours."""

import json
import zlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxfusion.batch import Batch
from jaxfusion.generation.beams import Beams, beam_search
from jaxfusion.generation.decode import generate_tokens
from jaxfusion.models.vlm import Model, Params, build, forward, init
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.table import flatten, tensors, to_ours, to_theirs, unflatten

LENGTHS = (23, 9, 16)  # of the samples
VOCAB = 97
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=36,
    intermediate_size=50,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
ONE_FOR_ALL, ONE_EACH = dict(num_key_value_heads=1), dict(num_key_value_heads=6)
SHORT_ROPE = dict(rope_theta=50.0, original_max_position_embeddings=16)
GPT2 = dict(vocab_size=VOCAB, n_embd=36, n_layer=3, n_head=6, n_inner=50, n_positions=128)
BERT = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
GEMMA2 = COMMON | dict(
    head_dim=14, sliding_window=5, attn_logit_softcapping=1.5, final_logit_softcapping=4.0, query_pre_attn_scalar=5
)
GEMMA3 = COMMON | dict(
    num_hidden_layers=5,
    head_dim=10,
    sliding_window=5,
    query_pre_attn_scalar=21,
    layer_types=[f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding", "full")],
)

CASES = {
    "gpt2": GPT2,
    "gpt2, untied, exact gelu": GPT2 | dict(n_inner=None, activation_function="gelu", tie_word_embeddings=False),
    "gpt2, wide heads, relu": GPT2 | dict(n_head=2, activation_function="relu", layer_norm_epsilon=1e-3),
    "llama, one head each": COMMON | ONE_EACH | dict(rms_norm_eps=1e-4),
    "llama, tied, biases, llama3 rope": COMMON
    | dict(
        head_dim=10,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters=SHORT_ROPE | dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "llama, linear rope": COMMON | dict(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=300.0)),
    "llama, yarn rope": COMMON | dict(rope_parameters=SHORT_ROPE | dict(rope_type="yarn", factor=8.0)),
    "llama, yarn rope in all its fields": COMMON
    | ONE_FOR_ALL
    | dict(
        head_dim=16,
        mlp_bias=True,
        rope_parameters=SHORT_ROPE
        | dict(
            rope_type="yarn", factor=8.0, beta_fast=4.0, beta_slow=0.5, truncate=False, mscale=1.5, mscale_all_dim=0.5
        ),
    ),
    "llama, geglu": COMMON | dict(hidden_act="gelu_pytorch_tanh"),
    "mistral": COMMON | dict(sliding_window=5),
    "mistral, no window, wide heads": COMMON | ONE_FOR_ALL | dict(sliding_window=None, head_dim=18),
    "smollm3": COMMON | dict(num_hidden_layers=5, no_rope_layer_interval=2, pad_token_id=0),
    "smollm3, window, untied": COMMON
    | dict(
        no_rope_layers=[0, 1, 1],
        use_sliding_window=True,
        sliding_window=4,
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
    ),
    "qwen2": COMMON,
    "qwen2, tied, windows": COMMON
    | ONE_EACH
    | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True),
    "qwen3": COMMON | dict(head_dim=10),
    "qwen3, biases, windows": COMMON
    | dict(
        head_dim=14,
        attention_bias=True,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters=SHORT_ROPE | dict(rope_type="yarn", factor=4.0),
    ),
    "gemma": COMMON | ONE_FOR_ALL | dict(head_dim=14),
    "gemma, biases": COMMON | ONE_EACH | dict(head_dim=8, attention_bias=True, tie_word_embeddings=False),
    "gemma2": GEMMA2,
    "gemma2, biases, no caps": GEMMA2
    | ONE_EACH
    | dict(attention_bias=True, attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=False),
    "gemma3_text": GEMMA3
    | dict(
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", factor=3.0, rope_theta=1000.0),
            sliding_attention=dict(rope_type="default", rope_theta=30.0),
        )
    ),
    "gemma3_text, biases, capped": GEMMA3 | ONE_FOR_ALL | dict(attention_bias=True, final_logit_softcapping=3.0),
    "bert": BERT,
    "bert, one type, relu": BERT | dict(type_vocab_size=1, hidden_act="relu", layer_norm_eps=1e-3, hidden_size=42),
    "bert, gelu by tanh": BERT | dict(num_attention_heads=2, hidden_act="gelu_new", num_hidden_layers=1),
}
NEW = 64  # tokens of a greedy answer
GENERATED = [  # of each family one; what else its variants have is in the outputs
    "gpt2, wide heads, relu",
    "llama, tied, biases, llama3 rope",
    "mistral",
    "smollm3",
    "qwen2, tied, windows",
    "qwen3, biases, windows",
    "gemma",
    "gemma2",
    "gemma3_text",
]


@dataclass
class Pair:
    """A model of transformers' and ours with the same weights, and the tensors of its file."""

    family: Family
    theirs: transformers.PreTrainedModel
    model: Model
    stored: Mapping[str, np.ndarray]
    params: Params


@cache
def pair(case: str, lively: bool = False) -> Pair:
    family = FAMILIES[case.partition(",")[0]]
    auto = transformers.AutoModel if family.room == "encoder" else transformers.AutoModelForCausalLM
    settings = two_layers(CASES[case]) if lively else CASES[case]
    config = transformers.AutoConfig.for_model(family.model_type, **settings)
    theirs = auto.from_config(config, attn_implementation="eager").eval()
    randomise(theirs, torch.Generator().manual_seed(zlib.crc32(case.encode())), lively)
    with TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        stored = load_file(Path(directory) / "model.safetensors")
        config_json = json.loads((Path(directory) / "config.json").read_text())
    stored = {name: value for name, value in stored.items() if not name.startswith("pooler.")}
    model = build(family.read_config(config_json))
    return Pair(family, theirs, model, stored, load(family, model, stored))


def two_layers(settings: dict) -> dict:
    """The same model with two layers, of both kinds where there are two; programs that generate grow with them."""
    settings = settings | {"n_layer" if "n_layer" in settings else "num_hidden_layers": 2}
    return settings | ({"layer_types": settings["layer_types"][1:3]} if "layer_types" in settings else {})


def randomise(model: torch.nn.Module, rng: torch.Generator, lively: bool) -> None:
    """All weights, biases and norms too, so that activations stay near one.

    lively: layers speak up against the embeddings, so that a greedy answer does not just repeat its last token.
    """
    embedding, matrix = (0.2, 3.0) if lively else (1.0, 0.7)
    if lively and model.config.model_type.startswith("gemma"):  # which multiplies by the root of the width
        embedding /= model.config.hidden_size**0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=rng)
            if weight.ndim > 1 and any(part in name for part in ("embed", "wte", "wpe")):
                weight.copy_(embedding * noise)
            elif weight.ndim > 1:
                weight.copy_(matrix * noise / weight.shape[-1] ** 0.5)
            else:
                weight.copy_(0.3 * noise + weight.mean())  # around a norm's one


def load(family: Family, model: Model, stored: Mapping[str, np.ndarray]) -> Params:
    """What the table says of each tensor, and of none twice."""
    shapes = flatten(jax.eval_shape(lambda: init(model, jax.random.key(0))))
    leaves: dict[str, np.ndarray] = {}
    for name, row, layer, shape in tensors(family.table(model.config), shapes):
        assert stored[name].shape == shape, name
        stacked = shapes[row.paths[0]].shape
        parts = to_ours(row, stored[name], stacked if layer is None else stacked[1:])
        for path, part in zip(row.paths, parts, strict=True):
            leaf = leaves.setdefault(path, np.full(stacked, np.nan, part.dtype))
            leaf[... if layer is None else layer] = part
    return unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})


def samples() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, VOCAB, length).astype(np.int32) for length in LENGTHS]


def padded() -> Batch:
    tokens = np.zeros((len(LENGTHS), max(LENGTHS) + 2), np.int32)
    for row, sample in zip(tokens, samples(), strict=True):
        row[: len(sample)] = sample
    return Batch.from_tokens(tokens, lengths=np.array(LENGTHS))


def packed() -> Batch:
    """All samples in one row, and the last one once more behind a gap in another."""
    one, two, three = samples()
    gap = np.zeros(sum(LENGTHS) + 3, np.int32)
    tokens, ids, positions = np.stack([gap, gap]), np.stack([gap, gap]), np.stack([gap, gap])
    for row, start, segment, sample in [
        (0, 0, 1, one),
        (0, len(one), 2, two),
        (0, len(one) + len(two), 3, three),
        (1, 0, 1, two),
        (1, len(two) + 4, 2, three),
    ]:
        place = slice(start, start + len(sample))
        tokens[row, place], ids[row, place], positions[row, place] = sample, segment, np.arange(len(sample))
    batch = Batch.from_tokens(tokens)
    return batch.replace(segment_ids=jnp.asarray(ids), positions=jnp.asarray(positions), packed=True)


@torch.no_grad()
def their_outputs(model: torch.nn.Module) -> list[np.ndarray]:
    """Of each sample by itself: logits, or an encoder's hidden states."""
    outputs = [model(torch.tensor(sample[None], dtype=torch.long)) for sample in samples()]
    return [getattr(output, "logits", output.get("last_hidden_state"))[0].float().numpy() for output in outputs]


def our_outputs(model: Model, params: Params, batch: Batch) -> np.ndarray:
    if model.config.encoder is None:
        return np.asarray(forward(model, params, batch))
    hidden, _ = model.module.apply({"params": params}, batch, None, method="encode")
    return np.asarray(hidden, np.float32)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("case", CASES)
def test_outputs_in_float32(case):
    one = pair(case)
    first, second, third = their_outputs(one.theirs)
    ours = our_outputs(one.model, one.params, padded())
    real = np.concatenate([row[:length] for row, length in zip(ours, LENGTHS, strict=True)])
    assert relative_error(real, np.concatenate([first, second, third])) <= 1e-5
    batch = packed()
    real = our_outputs(one.model, one.params, batch)[np.asarray(batch.segment_ids) > 0]
    assert relative_error(real, np.concatenate([first, second, third, second, third])) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_outputs_in_bfloat16(case):
    one = pair(case)
    model = build(replace(one.model.config, dtype="bfloat16"))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), one.params)
    first, second, third = their_outputs(deepcopy(one.theirs).to(torch.bfloat16))
    batch = packed()  # padding is in it as well
    real = our_outputs(model, rounded, batch)[np.asarray(batch.segment_ids) > 0]
    assert relative_error(real, np.concatenate([first, second, third, second, third])) <= 1e-2


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_comes_back_bit_by_bit(case):
    one = pair(case)
    leaves = flatten(one.params)
    exported = {}
    for name, row, layer, _ in tensors(one.family.table(one.model.config), leaves):
        parts = [np.asarray(leaves[path] if layer is None else leaves[path][layer]) for path in row.paths]
        exported[name] = to_theirs(row, parts)
    assert exported.keys() == one.stored.keys()
    for name, value in one.stored.items():
        assert value.tobytes() == np.ascontiguousarray(exported[name]).tobytes(), name


def prompts() -> tuple[list[np.ndarray], Batch]:
    """Two of the samples, and the batch of them."""
    given, tokens = samples()[:2], np.zeros((2, LENGTHS[0]), np.int32)
    for row, prompt in zip(tokens, given, strict=True):
        row[: len(prompt)] = prompt
    return given, Batch.from_tokens(tokens, lengths=np.array(LENGTHS[:2]))


@cache
def greedy(case: str) -> np.ndarray:
    """int32[2, NEW]"""
    one = pair(case, lively=True)
    return generate_tokens(one.model, one.params, prompts()[1], max_new_tokens=NEW)


def their_answer(one: Pair, prompt: np.ndarray, **settings) -> list[int]:
    # The model's own, for what is None in one that is handed to `generate` comes from there: its end of sequence.
    one.theirs.generation_config = transformers.GenerationConfig(do_sample=False, **settings)
    given = torch.tensor(prompt[None], dtype=torch.long)
    return one.theirs.generate(given, attention_mask=torch.ones_like(given))[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", GENERATED)
def test_greedy_answers(case):
    one = pair(case, lively=True)
    assert min(len(set(row)) for row in greedy(case).tolist()) >= 6  # an answer that repeats itself would tell little
    for row, prompt in zip(greedy(case), prompts()[0], strict=True):
        assert row.tolist() == their_answer(one, prompt, max_new_tokens=NEW, pad_token_id=0)


@pytest.mark.parametrize("case", GENERATED)
def test_beam_search_answers(case):
    """With an end of sequence that comes up, so that beams end at different lengths."""
    one, (given, batch), new, eos = pair(case, lively=True), prompts(), 8, int(greedy(case)[0, 4])
    beams = Beams(num_beams=3, length_penalty=0.7)
    ours = beam_search(one.model, one.params, batch, beams=beams, max_new_tokens=new, eos_token_id=eos)
    ended = np.where(np.cumsum(greedy(case) == eos, axis=1) > 0, eos, greedy(case))
    assert (ours != ended[:, :new]).any()
    settings = {"num_beams": 3, "length_penalty": 0.7, "eos_token_id": eos, "pad_token_id": eos}
    for row, prompt in zip(ours, given, strict=True):
        theirs = their_answer(one, prompt, max_new_tokens=new, **settings)
        assert row.tolist() == theirs + [eos] * (new - len(theirs))

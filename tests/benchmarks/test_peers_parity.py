"""Peers have our loss, train what we do and say what we say: small models of each architecture that a preset has."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from benchmarks import decode_worker, peer_torch, peer_transformers
from benchmarks.presets import PRESETS
from benchmarks.synthetic import synthetic_batch
from benchmarks.weights import random_params
from jaxfusion.config.model import LoraConfig
from jaxfusion.models.vlm import build
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.training.losses import loss
from jaxfusion.training.trainable import split

SMALL_TEXT = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
SMALL_VISION = dict(
    image_size=16, patch_size=4, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
)


def small(name: str):
    """The preset with a model of the same kind that is small, on rows of 70 positions."""
    preset = PRESETS[name]
    checkpoint = {key: value for key, value in preset.checkpoint.items() if not key.startswith("image_token")}
    checkpoint["image_token_id" if "image_token_id" in preset.checkpoint else "image_token_index"] = 49
    checkpoint["text_config"] = checkpoint["text_config"] | SMALL_TEXT
    checkpoint["vision_config"] = checkpoint["vision_config"] | SMALL_VISION
    if "projection_dim" in checkpoint:
        checkpoint["projection_dim"] = checkpoint["vision_config"]["projection_dim"] = 32
    config = FAMILIES[checkpoint["model_type"]].read_config(checkpoint)
    adapters = (LoraConfig(rank=2),) if preset.model.lora else ()
    model = replace(config, lora=adapters)
    return replace(preset, checkpoint=checkpoint, model=model, batch_size=2, row_length=70)


@pytest.mark.parametrize("name", ["nanovlm_222m_packed", "llava_7b_lora_packed", "paligemma_3b"])
def test_transformers_models_have_our_loss_and_train_what_ours_do(name):
    preset = small(name)
    if preset.packed:
        preset = replace(preset, segments_per_row=2, images_per_row=2)
    model = build(preset.model)
    params, batch = random_params(model), synthetic_batch(preset)
    peer = peer_transformers.make_peer(preset, compiled=False)
    peer.warm_up()
    ours = jax.jit(partial(loss, model))(params, batch)
    np.testing.assert_allclose(peer.loss, ours, rtol=1e-5)
    assert peer.shape[0] == 2 * preset.segments_per_row
    trained, _ = split(params, preset.trainable)
    assert sum(map(np.size, jax.tree.leaves(trained))) == sum(parameter.numel() for parameter in peer.trained)


def test_the_plain_tagger_has_our_loss():
    preset = replace(PRESETS["tiny_bilstm"], batch_size=4, row_length=9)
    model = build(replace(preset.model, encoder=replace(preset.model.encoder, implementation="scan")))
    peer = peer_torch.make_peer(preset)
    peer.warm_up()
    params = random_params(model)
    ours = jax.jit(partial(loss, model))(params, synthetic_batch(preset))
    np.testing.assert_allclose(peer.loss, ours, rtol=1e-5)
    assert sum(map(np.size, jax.tree.leaves(params))) == sum(parameter.numel() for parameter in peer.trained)


def test_transformers_generate_says_the_same(monkeypatch):
    monkeypatch.setitem(PRESETS, "small", small("paligemma_3b"))  # whose prompts see all of themselves
    settings, found = {"preset": "small", "text_tokens": 5, "new_tokens": 8}, {}
    for side in ("ours", "transformers"):
        ask, facts = decode_worker.prepare(side, settings)()
        found[side] = ask([2, 1])
        assert facts["parameters"] > 0 and min(found[side]["prefill_seconds"] + found[side]["decode_seconds"]) > 0
    ours, theirs = found.values()
    np.testing.assert_array_equal(ours["tokens"], theirs["tokens"])
    np.testing.assert_allclose(ours["first_logprobs"], theirs["first_logprobs"], rtol=1e-5)
    assert np.shape(ours["tokens"]) == (2, 8) and np.ptp(ours["first_logprobs"]) > 1e-4  # which depend on the prompt

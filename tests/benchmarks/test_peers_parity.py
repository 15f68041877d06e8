"""Peers have our loss and train what we do: small models of each architecture that a preset has."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from benchmarks import peer_torch, peer_transformers
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

"""A tower and a language model joined from the command line, and out again: transformers must answer the same."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

import jaxfusion
from jaxfusion import main
from jaxfusion.config.model import LinearProjectorConfig
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import Layout, tokenise_prompt
from jaxfusion.generation.generate import user_messages
from jaxfusion.pretrained.table import flatten
from tests.pretrained.tiny_checkpoints import save_qwen3, save_siglip

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("checkpoints")
    save_siglip(directory / "siglip")
    save_qwen3(directory / "qwen3")
    return directory / "siglip", directory / "qwen3"


@pytest.fixture(scope="module")
def run(checkpoints, small_data, tmp_path_factory) -> Path:
    """A few steps of `configs/join.py` on these checkpoints."""
    siglip, qwen3 = checkpoints
    workdir = tmp_path_factory.mktemp("runs") / "joined"
    settings = {
        "model.vision": siglip,
        "model.decoder": qwen3,
        "data.data_dir": small_data,
        "data.task": "caption",
        "data.row_length": 384,
        "train.num_steps": 3,
        "train.batch_size": 8,
        "evaluate.num_examples": 4,
        "evaluate.batch_size": 8,
    }
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    assert main.main(["--config", "configs/join.py", "--workdir", str(workdir), *arguments]) == 0
    return workdir


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("exported") / "llava"
    assert main.main(["--mode", "export", "--workdir", str(run), "--output", str(directory)]) == 0
    return directory


def test_only_the_projector_trains(run, checkpoints):
    _, trained = jaxfusion.load(run)
    _, language = jaxfusion.load(checkpoints[1])
    _, vision = jaxfusion.load(checkpoints[0])
    trained, theirs = flatten(trained), flatten(language | vision)
    for path, leaf in theirs.items():
        ours = np.asarray(trained[path])[: leaf.shape[0]] if path.endswith("embedding") else np.asarray(trained[path])
        np.testing.assert_array_equal(ours, np.asarray(leaf), err_msg=path)
    assert {path.split("/")[0] for path in trained.keys() - theirs.keys()} == {"projector"}


def test_what_follows_from_the_checkpoints(run, checkpoints):
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["width"] == 48 and config["model"]["decoder"]["qk_norm"]
    assert config["model"]["vision"]["feature_layer"] == -1 and config["model"]["vision"]["image_size"] == 48
    assert config["pretrained"] == {
        "model": "",
        "decoder": str(checkpoints[1]),
        "encoder": "",
        "vision": str(checkpoints[0]),
    }


def test_transformers_gives_the_same_answer(run, exported):
    theirs = LlavaForConditionalGeneration.from_pretrained(exported).eval()
    processor = LlavaProcessor.from_pretrained(exported)
    model, params = jaxfusion.load(run)
    rng, answers = np.random.default_rng(0), set()
    for size in [(60, 70, 3), (48, 48, 3), (31, 90, 3)]:
        picture = rng.integers(0, 256, size, dtype=np.uint8)
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What image is it?"}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(images=[Image.fromarray(picture)], text=[text], return_tensors="pt")
        with torch.no_grad():
            expected = theirs.generate(
                **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
            )
        batch = _prompt(model, "What image is it?", picture)
        np.testing.assert_array_equal(np.asarray(batch.tokens), inputs["input_ids"].numpy())
        with torch.no_grad():
            logits = theirs(**inputs).logits.numpy()
        difference = np.linalg.norm(np.asarray(jaxfusion.forward(model, params, batch)) - logits)
        assert difference <= 1e-5 * np.linalg.norm(logits)
        tokens = jaxfusion.generate_tokens(model, params, batch, max_new_tokens=NEW_TOKENS)
        answers.add(logits[0, -1].tobytes())
        np.testing.assert_array_equal(np.asarray(tokens), expected[:, inputs["input_ids"].shape[1] :].numpy())

    assert len(answers) == 3  # it does look at the pictures


def test_the_export_loads_here_as_well(run, exported):
    model, params = jaxfusion.load(exported)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    trained, trained_params = jaxfusion.load(run, shardings=lambda path, shape: here)
    with pytest.raises(jaxfusion.UserError, match="shardings: decoder/.*: there is none for it"):
        jaxfusion.load(run, shardings={"decoder": {}})
    jax.tree.map(np.testing.assert_array_equal, params, trained_params)
    picture = np.full((48, 48, 3), 90, np.uint8)
    answers = [
        jaxfusion.generate(*pair, ["?"], [picture], max_new_tokens=4)
        for pair in ((model, params), (trained, trained_params))
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("which", [0, 1])
def test_a_checkpoint_comes_out_as_it_went_in(checkpoints, which, tmp_path):
    model, params = jaxfusion.load(checkpoints[which])
    jaxfusion.save_pretrained(model, params, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (checkpoints[which], tmp_path / "out"))
    prefix = "" if which else "vision_model."  # which published towers have, and transformers 5 does not write
    assert after.keys() == {prefix + name for name in before if not name.startswith("head.")}
    for name, tensor in after.items():
        np.testing.assert_array_equal(tensor, before[name.removeprefix(prefix)], err_msg=name)
    if which == 1:
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_what_llava_cannot_say_is_refused_by_name(run, tmp_path):
    model, params = jaxfusion.load(run)
    other = replace(model, config=replace(model.config, projector=LinearProjectorConfig()))
    with pytest.raises(jaxfusion.UserError, match=r"config.model.projector: LLaVA's architecture has an MLP"):
        jaxfusion.save_pretrained(other, params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _prompt(model, text, picture):
    layout = Layout.of(model.config)
    segment = tokenise_prompt(tuple(user_messages(model, [text], [picture])), model.tokenizer, layout)
    return pack([[segment]], len(segment.tokens), layout.tokens_per_image)

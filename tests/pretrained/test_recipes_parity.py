"""The transfer recipes in configs/ on tiny random checkpoints: what trains, what stays, and runs that begin so."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import CLIPVisionConfig, CLIPVisionModel, GPT2Config, GPT2LMHeadModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import jaxfusion
from jaxfusion import main
from jaxfusion.config import override, read_config
from jaxfusion.data.loader import train_iterator
from jaxfusion.errors import UserError
from jaxfusion.experiment import named_checkpoints, open_experiment
from jaxfusion.pretrained.join import expand
from jaxfusion.pretrained.load import fresh_and_frozen, read_rooms
from jaxfusion.pretrained.table import flatten
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import train_step
from jaxfusion.workdir import load_run, open_tokenizer, read_workdir_config
from tests.pretrained.tiny_checkpoints import randomise, save_qwen3, save_siglip, save_tokenizer

SMALL_RESNET = "{'kind': 'resnet', 'image_size': 32, 'width': 4, 'stage_depths': (1, 1), 'norm': 'group'}"
SHORT = {"train.num_steps": 1, "train.warmup_steps": 0, "train.batch_size": 2, "data.row_length": 640}
SHORT |= {"evaluate.num_examples": 2, "evaluate.batch_size": 2, "generate.max_new_tokens": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    save_siglip(directory / "siglip")
    save_qwen3(directory / "qwen3")
    clip = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=12
    )
    randomise(CLIPVisionModel(clip), seed=2).save_pretrained(directory / "clip")
    CLIPImageProcessorPil(size={"height": 48, "width": 48}, crop_size=48).save_pretrained(directory / "clip")
    gpt2 = GPT2Config(vocab_size=260, n_embd=48, n_layer=2, n_head=4, n_positions=1024, eos_token_id=2, bos_token_id=2)
    randomise(GPT2LMHeadModel(gpt2), seed=3).save_pretrained(directory / "gpt2")
    save_tokenizer(directory / "gpt2", chat_template=None)
    return directory


def of_recipe(name, small_data, **settings):
    named = SHORT | {"data.data_dir": small_data} | settings
    return read_config(f"configs/{name}.py", {key: str(value) for key, value in named.items()}, expand)


def step(config, workdir):
    """The parameters that a run begins with and those after its first step, and the model."""
    experiment = open_experiment(config, workdir)
    config, model = experiment.config, experiment.model
    named = named_checkpoints(config)
    assert not fresh_and_frozen(model, named, config.train.trainable)
    params = read_rooms(model, named, jax.random.key(0))
    optimizer = make_optimizer(config.train)
    new_state = partial(create_state, model, optimizer, jax.random.key(0), config.train.trainable)
    state = jax.jit(new_state)(params=params)
    batch = next(train_iterator(experiment.source, experiment.reader, model.tokenizer, config.train.batch_size, 0))
    before = flatten(jax.device_get(state.params))
    state, _ = jax.jit(partial(train_step, model, optimizer))(state, batch)
    return before, flatten(jax.device_get(state.params)), model


def changed(before, after):
    """The rooms that have other parameters now."""
    return {path.split("/")[0] for path in before if not np.array_equal(before[path], after[path])}


RECIPES = {
    "frozen": ({"model.decoder": "gpt2", "model.vision": SMALL_RESNET}, {"vision", "projector"}, 2),
    "clipcap": (
        {"model.decoder": "gpt2", "model.vision": "clip", "model.projector.num_layers": 1}
        | {"model.projector.num_heads": 4, "generate.num_beams": 1},
        {"projector"},
        10,
    ),
    "paligemma": (
        {"model.decoder": "qwen3", "model.vision": "siglip", "model.decoder.prefix_lm": True}
        | {"train.rules.0.warmup_steps": 0},
        {"vision", "projector", "text_embedding", "decoder"},
        16,
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_what_it_says_and_nothing_else(name, tiny, small_data, tmp_path):
    settings, trains, visual_tokens = RECIPES[name]
    settings = {key: tiny / value if (tiny / str(value)).exists() else value for key, value in settings.items()}
    before, after, model = step(of_recipe(name, small_data, **settings), tmp_path)
    assert changed(before, after) == trains
    assert model.config.tokens_per_image == visual_tokens
    assert model.config.decoder.prefix_lm == (name == "paligemma")


def test_a_config_file_may_put_settings_over_a_rooms_checkpoint(tiny):
    decoder = {"checkpoint": str(tiny / "qwen3"), "prefix_lm": True}
    values = expand({"model": {"decoder": decoder, "vision": str(tiny / "siglip")}})
    assert values["model"]["decoder"]["prefix_lm"] and values["model"]["width"] == 48
    assert values["pretrained"] == {"decoder": str(tiny / "qwen3"), "vision": str(tiny / "siglip")}


@pytest.fixture(scope="module")
def first_stage(tiny, small_data, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "llava_pretrain"
    named = SHORT | {"data.data_dir": small_data, "model.vision": tiny / "siglip", "model.decoder": tiny / "qwen3"}
    arguments = [f"--config.{key}={value}" for key, value in named.items()]
    assert main.main(["--config", "configs/llava_pretrain.py", "--workdir", str(workdir), *arguments]) == 0
    return workdir


def test_the_second_stage_goes_on_from_the_first_and_goes_out_as_it_would(
    first_stage, small_data, tmp_path, capsys, monkeypatch
):
    """The first one's run in the place of a checkpoint: what does not train is its, to the bit."""
    workdir, exported = tmp_path / "run", tmp_path / "exported"
    named = SHORT | {"data.data_dir": small_data, "model": first_stage, "train.remat": "none"}
    arguments = [f"--config.{key}={value}" for key, value in named.items()]
    assert main.main(["--config", "configs/llava_finetune.py", "--workdir", str(workdir), *arguments]) == 0
    (_, before), (model, after) = (load_run(directory) for directory in (first_stage, workdir))
    before, after = flatten(jax.device_get(before)), flatten(jax.device_get(after))
    assert before.keys() == after.keys()
    before = {path: leaf.astype(after[path].dtype) for path, leaf in before.items()}
    assert changed(before, after) == {"projector", "text_embedding", "decoder"}
    moved = max(np.abs(leaf - before[path]).max() for path, leaf in after.items())
    assert moved < 1e-4  # a step of AdamW is at most of the learning rate, 2e-5
    assert model.pixels is not None and set(model.origin.rooms) == {"vision", "decoder"}
    assert model.origin.runs == {"model"} and load_run(first_stage)[0].origin.runs == set()

    assert main.main(["--mode", "export", "--workdir", str(workdir), "--output", str(exported)]) == 0
    theirs = flatten(jax.device_get(jaxfusion.load(exported)[1]))
    assert theirs.keys() == after.keys()
    for path, leaf in after.items():  # an export is in the run's dtype, bfloat16
        np.testing.assert_array_equal(theirs[path], leaf.astype(jnp.bfloat16).astype(np.float32), path)
    # Whether it began with a run is known without that run, which may be gone.
    monkeypatch.setattr("jaxfusion.workdir.is_run", lambda _: False)
    monkeypatch.setattr("jaxfusion.pretrained.load.is_run", lambda _: False)
    main.main(["--mode", "export", "--workdir", str(workdir), "--output", str(tmp_path / "x"), "--adapters"])
    assert "--adapters: they belong to the weights of the run" in capsys.readouterr().err


def test_rooms_of_a_run_that_began_with_nothing(small_data, tmp_path):
    """A language model of captions alone, then a new vision network that speaks to it: Frozen without any download."""
    words, decoder = tmp_path / "words", {"kind": "transformer", "num_layers": 1, "num_heads": 2}
    text = {"train.num_steps": 1, "train.batch_size": 2, "model.vision": "none", "model.width": 16}
    text |= {"model.text_embedding": "{'max_positions': 1024}", "evaluate.num_examples": 2, "model.decoder": decoder}
    arguments = [f"--config.{key}={value}" for key, value in (text | {"data.data_dir": small_data}).items()]
    arguments += ["--config.data.modalities=('text',)", "--config.generate.max_new_tokens=2"]
    assert main.main(["--config", "configs/quickstart.py", "--workdir", str(words), *arguments]) == 0

    named = {"model.decoder": words, "model.vision": SMALL_RESNET}
    before, after, model = step(of_recipe("frozen", small_data, **named), tmp_path / "frozen")
    assert changed(before, after) == {"vision", "projector"} and model.config.width == 16
    learned = flatten(jax.device_get(load_run(words)[1]))
    assert all(np.array_equal(before[path], leaf) for path, leaf in learned.items())
    ours, theirs = (tokenizer.encode("a 3 and a 4") for tokenizer in (model.tokenizer, open_tokenizer(words)))
    assert ours == theirs

    with pytest.raises(UserError, match=r"^config\.model\.vision: the run .*words has no such room"):
        of_recipe("frozen", small_data, **named | {"model.vision": words})
    wider = {"checkpoint": str(words), "width": 32}
    settings = {"data": {"data_dir": str(small_data), "row_length": 640}, "model": wider}
    config = override(settings, {}, expand)
    assert read_workdir_config(words).model.width == 16 and config.model.width == 32
    with pytest.raises(UserError, match=r"^config\.model: .* of the run .*words has the shape .*16"):
        step(config, tmp_path / "wider")

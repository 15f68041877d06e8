"""A bare file of torchvision's: alone, joined to a language model as it is trained, and out again."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_sample_images

import jaxfusion
from jaxfusion import main
from jaxfusion.config import from_dict
from jaxfusion.config.run import Config
from jaxfusion.pretrained.join import expand
from jaxfusion.pretrained.load import read_rooms
from tests.pretrained.tiny_checkpoints import save_qwen3

WIDTH = 4


def resnet() -> dict[str, np.ndarray]:
    """The state dict of a narrow torchvision ResNet of four basic blocks, its classifier included."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def conv_norm(conv: str, norm: str, outputs: int, inputs: int, side: int) -> None:
        kernel = rng.standard_normal((outputs, inputs, side, side)) / (inputs * side**2) ** 0.5
        tensors[f"{conv}.weight"] = kernel.astype(np.float32)
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{name}"] = rng.uniform(0.5, 1.5, outputs).astype(np.float32)
        tensors[f"{norm}.num_batches_tracked"] = np.array(7)

    conv_norm("conv1", "bn1", WIDTH, 3, 7)
    for stage in range(4):
        outputs, inputs, block = WIDTH * 2**stage, max(WIDTH, WIDTH * 2**stage // 2), f"layer{stage + 1}.0"
        conv_norm(f"{block}.conv1", f"{block}.bn1", outputs, inputs, 3)
        conv_norm(f"{block}.conv2", f"{block}.bn2", outputs, outputs, 3)
        if stage:
            conv_norm(f"{block}.downsample.0", f"{block}.downsample.1", outputs, inputs, 1)
    return tensors | {"fc.weight": np.ones((5, outputs), np.float32), "fc.bias": np.ones(5, np.float32)}


def vgg() -> dict[str, np.ndarray]:
    rng, tensors, inputs = np.random.default_rng(0), {}, 3
    for index, outputs in {0: 4, 3: 8, 5: 8}.items():  # a stage of one convolution and one of two
        kernel = rng.standard_normal((outputs, inputs, 3, 3)) / (inputs * 9) ** 0.5
        tensors[f"features.{index}.weight"] = kernel.astype(np.float32)
        tensors[f"features.{index}.bias"] = rng.standard_normal(outputs).astype(np.float32)
        inputs = outputs
    return tensors | {"classifier.0.weight": np.ones((5, 8), np.float32)}


NETS = {"resnet": resnet, "vgg": vgg}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    for name, make in NETS.items():
        save_file(make(), directory / f"{name}.safetensors")
    save_qwen3(directory / "qwen3")
    return directory


@pytest.mark.parametrize("name", NETS)
def test_a_bare_file_comes_out_as_it_went_in(files, name, tmp_path):
    tower, params = jaxfusion.load(files / f"{name}.safetensors")
    jaxfusion.save_pretrained(tower, params, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    before, after = load_file(files / f"{name}.safetensors"), load_file(tmp_path / "model.safetensors")
    unread = ("fc.", "classifier.")
    assert after.keys() == {key for key in before if not key.startswith(unread) and "num_batches" not in key}
    for key, value in after.items():
        assert value.tobytes() == before[key].tobytes(), key
    again, again_params = jaxfusion.load(tmp_path / "model.safetensors")
    picture = np.stack([tower.pixels(load_sample_images().images[0])])[None]
    seen = jaxfusion.see(tower, params, picture)
    np.testing.assert_array_equal(jaxfusion.see(again, again_params, picture), seen)


@pytest.mark.parametrize("name", NETS)
def test_a_bare_file_in_a_join(files, name):
    """Named in a config, and read as a training run reads it."""
    named = {"vision": str(files / f"{name}.safetensors"), "decoder": str(files / "qwen3"), "projector": "mlp"}
    config = from_dict(Config, expand({"model": named}))
    tower, params = jaxfusion.load(files / f"{name}.safetensors")
    assert config.model.vision == tower.config and tower.config.image_size == 224
    model = jaxfusion.build(config)
    joined = read_rooms(model, {"vision": named["vision"], "decoder": named["decoder"]}, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, joined["vision"], params["vision"])
    assert joined["projector"]["up"]["kernel"].shape[0] == tower.config.feature_width


def test_a_bare_file_trains_in_a_join(files, small_data, tmp_path, capsys):
    settings = {
        "model.vision": files / "resnet.safetensors",
        "model.decoder": files / "qwen3",
        "data.data_dir": small_data,
        "data.task": "caption",
        "train.num_steps": 2,
        "train.batch_size": 8,
        "evaluate.num_examples": 2,
        "evaluate.batch_size": 8,
        "generate.max_new_tokens": 2,
    }
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    run = tmp_path / "run"
    assert main.main(["--config", "configs/join.py", "--workdir", str(run), *arguments]) == 0
    model, params = jaxfusion.load(run)
    tower, tower_params = jaxfusion.load(files / "resnet.safetensors")
    jax.tree.map(np.testing.assert_array_equal, params["vision"], tower_params["vision"])
    picture = load_sample_images().images[1]
    np.testing.assert_array_equal(model.pixels(picture), tower.pixels(picture))  # the workdir knows them, too
    assert main.main(["--mode", "export", "--workdir", str(run), "--output", str(tmp_path / "out")]) == 2
    assert "config.model.vision: LLaVA's architecture takes a Vision Transformer" in capsys.readouterr().err


def test_a_file_of_nothing_known_is_refused_in_a_line(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file({"blocks.0.weight": np.ones((2, 2), np.float32)}, file)
    for read in (jaxfusion.load, lambda path: expand({"model": {"vision": str(path)}})):
        with pytest.raises(jaxfusion.UserError, match="no config.json beside it.*ResNet or VGG") as error:
            read(file)
        assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_tower_where_a_decoder_belongs_is_refused(files):
    with pytest.raises(jaxfusion.UserError, match="config.model.decoder: .*resnet.safetensors.*name it as"):
        expand({"model": {"decoder": str(files / "resnet.safetensors")}})


def test_what_lies_beside_a_file_with_its_config_belongs_to_it(files):
    """A file of a directory is that directory's checkpoint, tokenizer and all."""
    model, params = jaxfusion.load(files / "qwen3" / "model.safetensors")
    assert model.tokenizer is not None
    assert json.loads(model.origin.rooms["model"]["config.json"])["model_type"] == "qwen3"
    jax.tree.map(np.testing.assert_array_equal, params, jaxfusion.load(files / "qwen3")[1])

"""Adapters on tiny random checkpoints: PEFT reads them as we compute them, and merged weights say the same."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util
from peft import PeftModel

import jaxfusion
from jaxfusion import main
from jaxfusion.batch import Batch
from jaxfusion.config.model import LoraConfig
from jaxfusion.errors import UserError
from jaxfusion.models.lora import is_adapter
from tests.pretrained import test_whole_parity as whole
from tests.pretrained.test_load_parity import VOCAB, save_whole
from tests.pretrained.tiny_checkpoints import randomise

LANGUAGES = {
    "gpt2": transformers.GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=VOCAB, n_positions=128),
    "llama": transformers.LlamaConfig(**whole.TEXT | dict(vocab_size=VOCAB), tie_word_embeddings=True),
    "gemma2": transformers.Gemma2Config(**whole.TEXT | dict(vocab_size=VOCAB, head_dim=14)),
}
ALL = (
    LoraConfig(layers="decoder/layers/attention/[qv]*", rank=2, alpha=3.0),
    LoraConfig(layers="decoder/layers/*", rank=5, alpha=4.0),
)
LORA = {"gpt2": (LoraConfig(layers="decoder/layers/mlp/*", rank=3), LoraConfig(layers="*/out"))} | dict.fromkeys(
    ("llama", "gemma2"), ALL
)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 9))


def with_adapters(directory, lora):
    """The checkpoint with random adapters, the second matrix of each included."""
    model, params = jaxfusion.load(directory)
    model = replace(model, config=replace(model.config, lora=lora))
    leaves = traverse_util.flatten_dict(jaxfusion.complete(model, params, jax.random.key(0)), sep="/")
    rng = np.random.default_rng(0)
    noisy = {
        path: jnp.float32(0.3 * rng.standard_normal(leaf.shape)) if is_adapter(path) else leaf
        for path, leaf in leaves.items()
    }
    return model, traverse_util.unflatten_dict(noisy, sep="/")


def error(ours, theirs) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("name", LANGUAGES)
def test_peft_and_the_merged_weights_say_the_same(name, tmp_path):
    base = tmp_path / "base"
    randomise(transformers.AutoModelForCausalLM.from_config(LANGUAGES[name])).save_pretrained(base)
    model, params = with_adapters(base, LORA[name])
    ours = jaxfusion.forward(model, params, Batch.from_tokens(TOKENS))
    untouched = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert error(ours, logits(untouched)) > 1e-2

    jaxfusion.save_adapters(model, params, tmp_path / "adapters", base="org/name")
    assert (
        json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/name"
    )
    assert error(ours, logits(PeftModel.from_pretrained(untouched, tmp_path / "adapters"))) < 1e-5

    jaxfusion.save_pretrained(model, params, tmp_path / "merged")
    assert error(ours, logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))) < 1e-5


def test_adapters_of_a_bfloat16_base_are_merged_in_the_dtype_that_is_asked_for(tmp_path):
    randomise(transformers.AutoModelForCausalLM.from_config(LANGUAGES["llama"])).save_pretrained(tmp_path / "base")
    model, params = with_adapters(tmp_path / "base", LORA["llama"])
    leaves = traverse_util.flatten_dict(params, sep="/")
    stored = {path: leaf if is_adapter(path) else leaf.astype(jnp.bfloat16) for path, leaf in leaves.items()}
    stored = traverse_util.unflatten_dict(stored, sep="/")
    jaxfusion.save_pretrained(model, stored, tmp_path / "merged", dtype="float32")
    ours = jaxfusion.forward(model, jax.tree.map(jnp.float32, stored), Batch.from_tokens(TOKENS))
    assert error(ours, logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))) < 1e-5


@pytest.mark.parametrize("glob", ["decoder/*", "projector/*", "vision/layers/*"])
def test_adapters_of_a_whole_model(glob, tmp_path):
    save_whole("llava", tmp_path / "base")
    model, params = with_adapters(tmp_path / "base", (LoraConfig(layers=glob),))
    jaxfusion.save_adapters(model, params, tmp_path / "adapters")
    jaxfusion.save_pretrained(model, params, tmp_path / "merged")
    kind = transformers.LlavaForConditionalGeneration
    theirs = PeftModel.from_pretrained(
        kind.from_pretrained(tmp_path / "base"), tmp_path / "adapters"
    ).merge_and_unload()
    merged = kind.from_pretrained(tmp_path / "merged").state_dict()
    before = kind.from_pretrained(tmp_path / "base").state_dict()
    changed = {name for name, tensor in theirs.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(changed) == {"decoder/*": 21, "projector/*": 2, "vision/layers/*": 18}[glob]
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-6)


def test_what_peft_has_no_name_for_is_refused(tmp_path):
    base = tmp_path / "base"
    transformers.AutoModelForCausalLM.from_config(LANGUAGES["gpt2"]).save_pretrained(base)
    with pytest.raises(UserError, match=r"c_attn\.weight is one matrix, and has an adapter for each part; .*merged"):
        jaxfusion.save_adapters(*with_adapters(base, ALL), tmp_path / "out")
    with pytest.raises(UserError, match=r"no adapters \(config\.model\.lora\)"):
        jaxfusion.save_adapters(*jaxfusion.load(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_train_and_go_out_from_the_command_line(small_data, tmp_path, capsys):
    save_whole("llava", tmp_path / "llava")
    settings = {
        "model.checkpoint": tmp_path / "llava",
        "data.data_dir": small_data,
        "data.task": "caption",
        "data.row_length": 256,
        "train.num_steps": 2,
        "train.learning_rate": 0.01,
        "train.trainable": "('*/lora_?',)",
        "train.frozen_dtype": "float32",  # as the checkpoint's, to be compared with it bit for bit
        "train.batch_size": 8,
        "evaluate.num_examples": 2,
        "evaluate.batch_size": 8,
        "generate.max_new_tokens": 2,
    }
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    run, merged, adapters = (str(tmp_path / name) for name in ("run", "merged", "adapters"))
    command = ["--config", "configs/lora.py", "--workdir", run, *arguments]
    assert main.main([*command, "--config.train.trainable=('*',)"]) == 2
    assert "config.train.trainable: with config.model.lora it must say what trains" in capsys.readouterr().err
    assert main.main(command) == 0
    assert main.main(["--mode", "export", "--workdir", run, "--output", merged]) == 0
    assert main.main(["--mode", "export", "--workdir", run, "--output", adapters, "--adapters"]) == 0
    kind = transformers.LlavaForConditionalGeneration
    base = kind.from_pretrained(tmp_path / "llava")
    before, after = base.state_dict(), kind.from_pretrained(merged).state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert len(changed) == 21
    assert all("language_model.layers" in name for name in changed)
    adapted = PeftModel.from_pretrained(base, adapters).merge_and_unload().state_dict()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, adapted[name], rtol=1e-5, atol=1e-6)

    # What else was trained would be lost.
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["train"]["trainable"] = ["*/lora_?", "projector/*"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert main.main(["--mode", "export", "--workdir", run, "--output", str(tmp_path / "no"), "--adapters"]) == 2
    assert "was trained besides the adapters; export it all, merged" in capsys.readouterr().err

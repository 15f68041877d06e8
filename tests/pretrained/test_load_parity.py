"""`jaxfusion.load` on directories as they are published: weights, config, tokenizer and image processor together."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import jaxfusion
from jaxfusion import main
from jaxfusion.config import from_dict
from jaxfusion.config.model import ModelConfig
from jaxfusion.config.run import Config
from jaxfusion.data.messages import Message
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import Layout, tokenise_prompt
from jaxfusion.errors import UserError
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.join import expand
from jaxfusion.pretrained.load import open_family_tokenizer
from jaxfusion.pretrained.table import flatten
from jaxfusion.text.tokenizer import open_tokenizer
from tests import checkpoint_tokenizers as kinds
from tests.pretrained import test_whole_parity as whole
from tests.pretrained.tiny_checkpoints import CHATML, randomise, save_tokenizer

VOCAB, IMAGE = 280, 3  # the image token is the first of those that `save_tokenizer` is given
MARKS = {
    "llava": ["<image>"],
    "paligemma": ["<image>"],
    "gemma3": ["<image_soft_token>", "<start_of_image>", "<end_of_image>"],
    "idefics3": ["<image>", "<fake_token_around_image>", "<global-img>"],
    "smolvlm, tied": ["<image>", "<fake_token_around_image>", "<global-img>"],
}
TOWERS = {
    "clip": transformers.CLIPVisionConfig(**whole.VISION, intermediate_size=44),
    "siglip": transformers.SiglipVisionConfig(**whole.VISION, intermediate_size=44),
    "dinov2": transformers.Dinov2Config(**whole.VISION),
    "vit": transformers.ViTConfig(**whole.VISION, intermediate_size=44),
}
LANGUAGES = {
    "gpt2": transformers.GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=VOCAB, n_positions=128),
    "llama": transformers.LlamaConfig(**whole.TEXT | dict(vocab_size=VOCAB)),
    "qwen3": transformers.Qwen3Config(**whole.TEXT | dict(vocab_size=VOCAB)),
    "gemma2": transformers.Gemma2Config(**whole.TEXT | dict(vocab_size=VOCAB, head_dim=14)),
    "smollm3": transformers.SmolLM3Config(**whole.TEXT | dict(vocab_size=VOCAB, pad_token_id=0)),
}


def processor(case: str, size: int):
    sides = {"height": size, "width": size}
    match case.partition(",")[0]:
        case "llava":
            return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=sides)
        case "gemma3":
            return Gemma3ImageProcessorPil(size=sides)
        case "idefics3" | "smolvlm":
            return Idefics3ImageProcessorPil(max_image_size={"longest_edge": size}, size={"longest_edge": 2 * size})
    return SiglipImageProcessorPil(size=sides)


def save_whole(case: str, directory: Path) -> None:
    kind = whole.CLASSES[case.partition(",")[0]]
    settings = deepcopy(whole.CASES[case])
    settings["text_config"]["vocab_size"] = VOCAB
    image = "image_token_index" if "image_token_id" in kind.config_class.attribute_map else "image_token_id"
    config = kind.config_class(**settings, **{image: IMAGE})
    randomise(kind._from_config(config)).save_pretrained(directory)
    save_tokenizer(directory, *MARKS[case], chat_template=None if case == "paligemma" else CHATML)
    processor(case, config.vision_config.image_size).save_pretrained(directory)


@pytest.mark.parametrize("case", MARKS)
def test_a_published_directory_loads_and_looks_at_its_pictures(case, tmp_path):
    save_whole(case, tmp_path)
    model, params = jaxfusion.load(tmp_path)
    assert model.config.vision.image_size == model.pixels.image_size
    tokenizer = model.tokenizer
    ids = tokenizer.image_ids(model.config.tokens_per_image)
    assert ids.count(tokenizer.image_id) == model.config.tokens_per_image
    assert {tokenizer.image_id} | {IMAGE + n for n in range(len(MARKS[case]))} <= {*ids, IMAGE}
    dark, light = np.zeros((9, 30, 3), np.uint8), np.full((30, 9, 3), 255, np.uint8)
    answers = jaxfusion.generate(model, params, ["What?", "What?"], [dark, [light, dark]], max_new_tokens=3)
    assert len(answers) == 2
    jaxfusion.save_pretrained(model, params, tmp_path / "out")
    assert_same(whole.CLASSES[case.partition(",")[0]], tmp_path, tmp_path / "out")


def assert_same(kind: type, before: Path, after: Path) -> None:
    """transformers reads the same weights from both, but for what no family reads."""
    before, after = (kind.from_pretrained(directory).state_dict() for directory in (before, after))
    assert before.keys() - after.keys() == {name for name in before if "head." in name and "lm_head" not in name}
    assert after.keys() <= before.keys()
    unread = ("pooler.", "mask_token")
    for name, tensor in after.items():
        assert any(part in name for part in unread) or bool((tensor == before[name]).all()), name


def test_a_tokenizer_with_more_ids_does_not_change_a_language_model(tmp_path):
    """As of Gemma 3's small ones: their tokenizer knows of images, and their table does not."""
    count = 3 + 256  # of the ids but for the last one
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**whole.TEXT | dict(vocab_size=count)))
    randomise(theirs).save_pretrained(tmp_path)
    more = "<image_soft_token>"
    asks = (
        "{% for message in messages %}{{ message.content }}{% if 'look' in message.content %}%s{% endif %}{% endfor %}"
    )
    save_tokenizer(tmp_path, chat_template=asks.replace("%s", more))
    path = tmp_path / "tokenizer.json"
    state = json.loads(path.read_text())
    state["added_tokens"].append(state["added_tokens"][0] | {"id": count, "content": more})
    path.write_text(json.dumps(state))
    model, params = jaxfusion.load(tmp_path)
    assert model.tokenizer.vocab_size == count + 1
    assert model.config.text_embedding.vocab_size == count
    logits = jaxfusion.forward(model, params, jaxfusion.Batch.from_tokens(np.array([[5, 6, 7]])))
    expected = theirs(torch.tensor([[5, 6, 7]])).logits.detach().numpy()
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert len(jaxfusion.generate(model, params, ["what"], max_new_tokens=2)) == 1
    with pytest.raises(UserError, match=f"the token {count}, of which the model's vocabulary of {count}"):
        jaxfusion.generate(model, params, ["look"], max_new_tokens=2)


def test_a_whole_model_trains_on_from_the_command_line(small_data, tmp_path):
    """`model` itself names the checkpoint; what it learned goes out as what it was."""
    save_whole("llava", tmp_path / "llava")
    settings = {
        "model": tmp_path / "llava",
        "data.data_dir": small_data,
        "data.task": "caption",
        "data.row_length": 256,
        "train.num_steps": 2,
        "train.batch_size": 8,
        "evaluate.num_examples": 2,
        "evaluate.batch_size": 8,
        "generate.max_new_tokens": 2,
    }
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    assert main.main(["--config", "configs/join.py", "--workdir", run, *arguments]) == 0
    assert main.main(["--mode", "export", "--workdir", run, "--output", out]) == 0
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(out)
    before = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    changed = {
        name.split(".")[1]
        for (name, new), old in zip(theirs.named_parameters(), before.parameters(), strict=True)
        if not bool((new == old).all())
    }
    assert changed == {"multi_modal_projector"}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("rooms")
    for name, config in TOWERS.items():
        transformers.AutoModel.from_config(config).save_pretrained(directory / name)
    for name, config in LANGUAGES.items():
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory / name)
    return directory


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("tower", TOWERS)
def test_any_tower_joins_any_language_model(rooms, tower, language):
    named = {"vision": str(rooms / tower), "decoder": str(rooms / language), "projector": "mlp"}
    config = from_dict(Config, expand({"model": named}))
    model = jaxfusion.build(config)
    params = jax.eval_shape(lambda: jaxfusion.init(model, jax.random.key(0)))
    count, size = config.model.tokens_per_image, config.model.vision.image_size
    assert count == (12 // 4) ** 2
    tokens = np.array([[1, *[IMAGE] * count, 5]])
    batch = jaxfusion.Batch.from_tokens(tokens, np.zeros((1, 1, size, size, 3), np.uint8), IMAGE)
    logits = jax.eval_shape(lambda params: jaxfusion.forward(model, params, batch), params)
    assert logits.shape == (*tokens.shape, VOCAB)


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("gpt2", ["transformer.h.1.attn.bias", "transformer.h.0.attn.masked_bias"]),
        ("clip", ["embeddings.position_ids"]),
        ("vit", ["vit.pooler.dense.weight", "classifier.bias"]),
        ("dinov2", ["classifier.bias"]),
    ],
)
def test_what_published_files_hold_besides_does_no_harm(rooms, tmp_path, name, extras, capsys):
    tensors = load_file(rooms / name / "model.safetensors")
    tensors = {name: value for name, value in tensors.items() if "pooler" not in name}
    save_file(tensors | dict.fromkeys(extras, np.zeros(3, np.float32)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((rooms / name / "config.json").read_bytes())
    _, params = jaxfusion.load(tmp_path)
    assert capsys.readouterr().err == ""
    assert jax.tree.all(jax.tree.map(np.array_equal, params, jaxfusion.load(rooms / name)[1]))


def test_a_dtype_and_shardings_are_looked_at_before_anything_is_read(rooms):
    for dtype in ("bf16", "float16", None):
        with pytest.raises(UserError, match=f"dtype: {dtype!r} is none of float32 and bfloat16"):
            jaxfusion.load(rooms / "llama", dtype=dtype)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    seen = {}

    def shard(path: str, shape: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
        seen[path] = shape
        return here

    _, params = jaxfusion.load(rooms / "llama", dtype="bfloat16", shardings=shard)
    assert all(leaf.sharding == here for leaf in jax.tree.leaves(params))
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(params).items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in seen.items()
    }


@pytest.mark.parametrize(("kind", "language"), [("gpt2", "gpt2"), ("llava", "llama"), ("gemma", "gemma2")])
def test_a_language_model_without_a_chat_template_goes_on_with_the_text(kind, language, tmp_path):
    """As transformers' `generate` does; the tokenizers of the last two put a bos in front, that of GPT-2 nothing."""
    getattr(kinds, kind)(tmp_path)
    for name in ("chat_template.jinja", "config.json", "generation_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    config = LANGUAGES[language].__class__.from_dict(LANGUAGES[language].to_dict() | dict(vocab_size=len(tokenizer)))
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(config))
    theirs.save_pretrained(tmp_path)
    model, params = jaxfusion.load(tmp_path)
    layout = Layout.of(model.config)
    for text in ("what is the", " a large\nred", "question"):
        inputs = tokenizer(text, return_tensors="pt")
        prompt = tokenise_prompt((Message("user", (text,)),), model.tokenizer, layout)
        assert prompt.tokens.tolist() == inputs["input_ids"][0].tolist()
        greedy = transformers.GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        expected = theirs.generate(**inputs, generation_config=greedy)[0, len(prompt.tokens) :]
        batch = pack([[prompt]], len(prompt.tokens), 0)
        tokens = jaxfusion.generate_tokens(model, params, batch, max_new_tokens=12)
        np.testing.assert_array_equal(np.asarray(tokens)[0], expected.numpy())
        assert jaxfusion.generate(model, params, [text], max_new_tokens=12) == [
            model.tokenizer.decode(expected.numpy())
        ]
    assert len(tokenise_prompt((Message("user", ("",)),), model.tokenizer, layout).tokens) == 1
    # Out and in again it is the same.
    model.tokenizer.save(tmp_path)
    assert jaxfusion.load(tmp_path)[0].tokenizer.prefix == open_tokenizer(tmp_path).prefix == model.tokenizer.prefix


def test_what_a_run_has_trained_is_asked_as_in_training(tmp_path):
    kinds.gpt2(tmp_path)
    of_a_run = open_family_tokenizer(tmp_path, FAMILIES["gpt2"], ModelConfig())
    of_a_run.save(tmp_path)
    for tokenizer in (
        of_a_run,
        open_tokenizer(tmp_path),
        open_family_tokenizer(tmp_path, FAMILIES["gpt2"], ModelConfig(), bare=True),
    ):
        assert tokenizer.prefix is None
        prompt = tokenise_prompt((Message("user", ("what",)),), tokenizer, Layout(0, "place", "next"))
        assert prompt.tokens.tolist() == [tokenizer.bos_id, *tokenizer.encode("what"), tokenizer.sep_id]


def test_a_tower_of_no_checkpoint_is_not_exported(rooms, tmp_path):
    tower, params = jaxfusion.load(rooms / "vit")
    with pytest.raises(UserError, match="export: the tower came from no checkpoint"):
        jaxfusion.save_pretrained(replace(tower, origin=None), params, tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Tokenizers and chat templates that go out, against transformers' own processors and tokenizers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

import jaxfusion
from jaxfusion.data.messages import Image as Picture
from jaxfusion.data.messages import Message
from jaxfusion.data.tokenise import Layout, tokenise_prompt
from jaxfusion.text.pretrained import load_tokenizer
from jaxfusion.text.tokenizer import open_tokenizer
from tests.checkpoint_tokenizers import THINKING
from tests.pretrained.tiny_checkpoints import CHATML, join, save_qwen3, save_siglip, save_tokenizer

TEMPLATES = {
    "SmolLM2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "Qwen2.5": """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "Qwen3": THINKING,
    "lists of texts": "  {% for message in messages %}{{ '<|im_start|>' + message.role }}\n"
    "{% for part in message.content %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "parts": CHATML,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    save_siglip(directory / "siglip")
    save_qwen3(directory / "qwen3")
    return directory


def ours(model: jaxfusion.Model, messages: list[Message]) -> np.ndarray:
    return tokenise_prompt(tuple(messages), model.tokenizer, Layout.of(model.config)).tokens


@pytest.mark.parametrize("image_is_known", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_with_pictures_are_laid_out_alike(checkpoints, tmp_path, name, image_is_known):
    """The processor of a joined model's export, the model that was joined, and the export loaded here."""
    more = ["<image>"] if image_is_known else []
    save_tokenizer(checkpoints / "qwen3", *more, chat_template=TEMPLATES[name])
    model, params = join(checkpoints / "siglip", checkpoints / "qwen3")
    jaxfusion.save_pretrained(model, params, tmp_path / "out")
    again, _ = jaxfusion.load(tmp_path / "out")

    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    shown = {"type": "image", "image": Image.fromarray(picture)}
    said = [
        ("user", [shown, "What is it?"]),
        ("assistant", ["A cat."]),
        ("user", ["And ", shown, " this,\n", shown, "?"]),
    ]
    parts = [
        {"role": role, "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in of]}
        for role, of in said
    ]
    messages = [
        Message(role, tuple(part if isinstance(part, str) else Picture(picture) for part in of)) for role, of in said
    ]
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    for last in (1, 3):
        theirs = processor.apply_chat_template(
            parts[:last], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
        )["input_ids"][0]
        assert np.sum(theirs == model.tokenizer.image_id) == (1 if last == 1 else 3) * model.config.tokens_per_image
        np.testing.assert_array_equal(ours(model, messages[:last]), theirs)
        np.testing.assert_array_equal(ours(again, messages[:last]), theirs)
    # Messages of plain text, too, as a tokenizer alone gives them.
    text = [{"role": "user", "content": "Who?"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(text, add_generation_prompt=True)
    if name != "lists of texts":
        np.testing.assert_array_equal(ours(model, [Message("user", ("Who?",))]), theirs["input_ids"])


def tokenizer_files(directory: Path) -> dict[str, bytes]:
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
def test_tokenizers_go_out_bit_for_bit_where_no_token_was_added(checkpoints, tmp_path, kind):
    language = tmp_path / "qwen3"
    save_qwen3(language)
    save_tokenizer(language, "<image>", chat_template=CHATML)
    config = json.loads((language / "tokenizer_config.json").read_text())
    (language / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": kind, "some_field": 1}))
    (language / "special_tokens_map.json").write_text('{"eos_token":   "<|im_end|>"}')

    model, params = jaxfusion.load(language)
    (tmp_path / "run").mkdir()
    model.tokenizer.save(tmp_path / "run")
    for number, tokenizer in enumerate((model.tokenizer, open_tokenizer(tmp_path / "run"))):
        out = tmp_path / f"language{number}"
        jaxfusion.save_pretrained(replace(model, tokenizer=tokenizer), params, out)
        assert tokenizer_files(out) == tokenizer_files(language)

    model, params = join(checkpoints / "siglip", language)
    jaxfusion.save_pretrained(model, params, tmp_path / "joined")
    # Within a LLaVA transformers 5 takes every tokenizer as its tokenizer.json has it, and not as its class makes it.
    assert (tokenizer_files(tmp_path / "joined") == tokenizer_files(language)) == (kind != "Qwen2Tokenizer")
    theirs, text = AutoTokenizer.from_pretrained(tmp_path / "joined"), " what is\n 好 e\u0301"
    assert model.tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_another_chat_template_than_the_checkpoints_goes_out_beside_its_files(tmp_path):
    language = tmp_path / "qwen3"
    save_qwen3(language)
    (language / "chat_template.jinja").unlink()
    model, params = jaxfusion.load(language)
    tokenizer = load_tokenizer(language, model.config, chat_template=CHATML)
    jaxfusion.save_pretrained(replace(model, tokenizer=tokenizer), params, tmp_path / "out")
    written = tokenizer_files(tmp_path / "out")
    assert written.pop("chat_template.jinja").decode() == CHATML
    assert written == tokenizer_files(language)


def test_tokenizers_with_an_added_token_are_written_for_transformers_4_as_well(checkpoints, tmp_path):
    save_tokenizer(checkpoints / "qwen3")
    model, params = join(checkpoints / "siglip", checkpoints / "qwen3")
    jaxfusion.save_pretrained(model, params, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|im_start|>"] and "extra_special_tokens" not in config
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.extra_special_tokens == ["<|im_start|>"] and theirs.image_token_id == model.tokenizer.image_id

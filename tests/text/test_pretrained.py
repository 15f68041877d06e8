"""Checkpoints' tokenizers: the ids of transformers, special tokens that no text makes, files there and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaTokenizer, LlavaProcessor, Qwen2Tokenizer

from jaxfusion.config.model import ModelConfig
from jaxfusion.errors import UserError
from jaxfusion.text.pretrained import load_tokenizer
from jaxfusion.text.template import ImageTokens
from jaxfusion.text.tokenizer import open_tokenizer
from tests import checkpoint_tokenizers as kinds

BLIND = ModelConfig()
TEXTS = ["what is there?", " a Large\n\n red  3, or\tnot? \n", "unseen wörds 好 😀", "", "<", "<think>"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in kinds.KINDS.items()}


def token_id(directory: Path, name: str) -> int:
    return AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids(name)


@pytest.mark.parametrize("name", kinds.KINDS)
def test_ids_and_texts_are_those_of_transformers(directories, name):
    tokenizer, reference = load_tokenizer(directories[name], BLIND), AutoTokenizer.from_pretrained(directories[name])
    for text in TEXTS:
        ids = reference(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True).strip()
    assert tokenizer.vocab_size == len(reference)


@pytest.mark.parametrize("name", kinds.KINDS)
def test_special_tokens_never_come_out_of_text(directories, name):
    tokenizer = load_tokenizer(directories[name], kinds.seeing())
    reference = AutoTokenizer.from_pretrained(directories[name], image_token=tokenizer.image_token)
    special = {index for index, token in reference.added_tokens_decoder.items() if token.special}
    assert {tokenizer.image_id, *tokenizer.stop_ids} <= special
    unknown = {reference.unk_token_id} if name in ("bert", "unigram") else set()  # what these cannot spell
    for token in (reference.added_tokens_decoder[index].content for index in special):
        for text in (token, f"a{token}b", f"a {token} b", token * 2, token.upper()):
            ids = tokenizer.encode(text)
            assert not set(ids) & special - unknown
            assert unknown or reference.decode(ids) == text


def test_what_is_missing_is_served_by_what_is_there(directories):
    llama, gpt2, bert = (load_tokenizer(directories[name], BLIND) for name in ("llama3", "gpt2", "bert"))
    assert llama.pad_id == llama.eos_id == token_id(directories["llama3"], "<|end_of_text|>")
    assert llama.bos_id == token_id(directories["llama3"], "<|begin_of_text|>")
    assert gpt2.pad_id == gpt2.bos_id == gpt2.eos_id == token_id(directories["gpt2"], "<|endoftext|>")
    assert gpt2.encode("\n") == [gpt2.sep_id] and llama.encode("\n") == [llama.sep_id]
    names = [token_id(directories["bert"], f"[{name}]") for name in ("PAD", "CLS", "SEP", "SEP", "MASK")]
    assert [bert.pad_id, bert.bos_id, bert.sep_id, bert.eos_id, bert.mask_id] == names
    assert gpt2.mask_id is llama.mask_id is None
    assert gpt2.chat_template is bert.chat_template is None


def test_text_stops_at_any_of_several_ids(directories, tmp_path):
    ends = ["<|im_end|>", "<|endoftext|>"]
    qwen = load_tokenizer(directories["qwen"], BLIND)
    assert qwen.stop_ids == tuple(token_id(directories["qwen"], name) for name in ends)
    for stop in qwen.stop_ids:
        assert qwen.decode([*qwen.encode("so"), stop, *qwen.encode("on")]) == "so"
    # Neither a config names it, nor is it eos: the template says what ends a turn.
    llama = load_tokenizer(directories["llama3"], BLIND)
    assert llama.stop_ids == (llama.eos_id, token_id(directories["llama3"], "<|eot_id|>"))
    # Without a generation_config.json, config.json counts, for the text of a whole model as well.
    kinds.llava(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": {"eos_token_id": [9, 11]}}))
    assert load_tokenizer(tmp_path, BLIND).stop_ids == (2, 9, 11)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert load_tokenizer(tmp_path, BLIND).stop_ids == (2, 7)


def test_the_image_token_is_the_checkpoints_own_or_a_new_one(directories):
    for name, token in (("llava", "<image>"), ("gemma", "<image_soft_token>")):  # by config.json; by the tokenizer
        tokenizer = load_tokenizer(directories[name], kinds.seeing())
        assert tokenizer.image_id == token_id(directories[name], token)
        assert tokenizer.vocab_size == load_tokenizer(directories[name], BLIND).vocab_size
    for name in ("qwen", "gpt2", "bert"):
        seeing, blind = (load_tokenizer(directories[name], config) for config in (kinds.seeing(), BLIND))
        assert seeing.image_token == "<image>"
        assert seeing.image_id == blind.vocab_size == seeing.vocab_size - 1
        assert blind.image_id is None
        assert seeing.image_ids(3) == [seeing.image_id] * 3
    wrapped = load_tokenizer(directories["qwen"], kinds.seeing(), image=ImageTokens("<pic>", "", "\n<|im_start|>", " "))
    begin, line, space = token_id(directories["qwen"], "<|im_start|>"), wrapped.encode("\n"), wrapped.encode(" ")
    assert wrapped.image_ids(2) == [*line, begin, *[wrapped.image_id] * 2, *space]


@pytest.mark.parametrize("name", kinds.KINDS)
def test_saved_and_opened_it_is_the_same(directories, tmp_path, name):
    image = ImageTokens("<picture>", "", "\n", "\n")
    first = load_tokenizer(directories[name], kinds.seeing(), image=image)
    (tmp_path / "config.json").write_text('{"model": {"width": 8}}')  # a workdir's own, which says nothing of this
    first.save(tmp_path)
    first.save(tmp_path)  # over what is there
    again = open_tokenizer(tmp_path)
    for field in ("vocab_size", "pad_id", "bos_id", "sep_id", "eos_id", "stop_ids", "image_id", "mask_id"):
        assert getattr(again, field) == getattr(first, field)
    assert [again.encode(text) for text in TEXTS] == [first.encode(text) for text in TEXTS]
    assert again.image_ids(2) == first.image_ids(2)
    assert (again.chat_template and again.chat_template.source) == (first.chat_template and first.chat_template.source)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.convert_tokens_to_ids("<picture>") == theirs.image_token_id == first.image_id
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS] == [first.encode(t) for t in TEXTS]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_classes_that_rebuild_their_tokenizer_are_read_as_they_rebuild_it(tmp_path):
    backend = kinds.byte_bpe([])
    state = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    qwen = Qwen2Tokenizer(vocab=state["vocab"], merges=merges)
    octets = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **octets, "▁": 259, "a": 260, "▁a": 261, "b": 262, "ab": 263}
    llama = LlamaTokenizer(vocab=vocabulary, merges=[("▁", "a"), ("a", "b")])
    for number, theirs in enumerate((qwen, llama)):
        theirs.save_pretrained(tmp_path / str(number))
        reference = AutoTokenizer.from_pretrained(tmp_path / str(number))
        assert type(reference) is type(theirs)
        tokenizer = load_tokenizer(tmp_path / str(number), BLIND)
        for text in ("a ab", " what is\n there", "好"):
            assert tokenizer.encode(text) == reference(text, add_special_tokens=False)["input_ids"]


def test_a_chat_template_may_be_in_an_older_place(tmp_path):
    kinds.llava(tmp_path, None)
    assert load_tokenizer(tmp_path, BLIND).chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": kinds.LLAVA}))
    assert load_tokenizer(tmp_path, BLIND).chat_template.source == kinds.LLAVA
    several = [{"name": name, "template": kinds.LLAVA + name} for name in ("tool_use", "default")]
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": several}))
    assert load_tokenizer(tmp_path, BLIND).chat_template.source == kinds.LLAVA + "default"


def test_a_whole_model_is_asked_as_its_processor_asks(tmp_path):
    """Not by the tokenizer's template, which may know of texts alone, where there is one for images as well."""

    def ours(config: ModelConfig) -> str:
        return load_tokenizer(tmp_path, config).chat_template.source

    def check(source: str) -> None:
        theirs = LlavaProcessor.get_processor_dict(tmp_path)[0]["chat_template"]
        assert ours(kinds.seeing()) == theirs == source

    kinds.llava(tmp_path, None)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": kinds.CHATML}))
    assert ours(BLIND) == ours(kinds.seeing()) == kinds.CHATML  # there is no other yet
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": kinds.LLAVA + "json"}))
    check(kinds.LLAVA + "json")
    assert ours(BLIND) == kinds.CHATML
    (tmp_path / "chat_template.jinja").write_text(kinds.LLAVA + "jinja")
    check(kinds.LLAVA + "json")
    (tmp_path / "processor_config.json").write_text(json.dumps({"chat_template": kinds.LLAVA + "config"}))
    check(kinds.LLAVA + "config")
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "chat_template.json").unlink()
    check(kinds.LLAVA + "jinja")


def test_what_cannot_be_read_is_named(tmp_path):
    assert load_tokenizer(tmp_path) is None
    kinds.gpt2(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())

    def refused(match: str, **changes) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=match):
            load_tokenizer(tmp_path, BLIND)

    refused("line 1: .*; mend it, or remove it", chat_template="{% if %}")
    refused("does not write what a message says", chat_template="hello")
    refused("there is no eos_token", eos_token=None)
    ran = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: pass\n")
    refused("cannot read its tokenizer", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["code.Mine", "code.Mine"]})
    assert not ran.exists()
    (tmp_path / "tokenizer.json").write_text("{")
    refused("cannot read its tokenizer")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("generation_config.json", [], "generation_config.json: a JSON object is wanted, not a list"),
        ("generation_config.json", {"eos_token_id": "x"}, "generation_config.json: eos_token_id: 'x' is neither"),
        ("generation_config.json", {"eos_token_id": [2, None]}, "eos_token_id: .2, None. is neither"),
        ("config.json", {"image_token_id": -1}, "config.json: image_token_id: -1 is no token's id; give"),
        ("config.json", {"image_token_index": "x"}, "config.json: image_token_index: 'x' is no token's id; give"),
        ("chat_template.json", [], "chat_template.json: a JSON object is wanted, not a list"),
    ],
)
def test_small_files_that_say_nonsense_are_named(tmp_path, name, value, message):
    kinds.llava(tmp_path)
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path, kinds.seeing())
    assert "\n" not in str(caught.value)


def test_no_text_stops_at_an_id_of_nothing(tmp_path):
    kinds.llava(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [-1, 7]}))
    assert load_tokenizer(tmp_path, BLIND).stop_ids == (2, 7)


@pytest.mark.parametrize("name", kinds.KINDS)
def test_no_vocabulary_is_copied_before_a_text_is_encoded(directories, name):
    """Which takes seconds for the large ones."""
    specials = load_tokenizer(directories[name], kinds.seeing())._specials
    assert "_backend" not in vars(specials)
    specials.encode("a")
    assert "_backend" in vars(specials)


def test_no_torch_is_needed_and_none_is_taken(directories):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import jaxfusion; assert 'transformers' not in sys.modules and 'tokenizers' not in sys.modules\n"
        "from jaxfusion.text.pretrained import load_tokenizer\n"
        f"print(load_tokenizer({str(directories['qwen'])!r}).encode('a b'))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == str(load_tokenizer(directories["qwen"]).encode("a b")), result.stderr
    assert "PyTorch" not in result.stderr

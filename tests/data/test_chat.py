"""Conversations by chat templates: the ids that transformers gives, what of them is learned, nothing smuggled in."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from jaxfusion.data.messages import Image, Masked, Sample, answer, ask, with_examples
from jaxfusion.data.tokenise import Layout, tokenise, tokenise_prompt
from jaxfusion.errors import UserError
from jaxfusion.text.pretrained import load_tokenizer
from jaxfusion.text.template import ImageTokens
from tests import checkpoint_tokenizers as kinds

PIXELS = np.zeros((4, 4, 3), np.uint8)
TEXT, PLACE = Layout(0, "place", "next"), Layout(3, "place", "next")
GEMMA_IMAGE = ImageTokens("<image_soft_token>", "<start_of_image>", "\n\n<start_of_image>", "<end_of_image>\n\n")
BUILDERS = {
    "qwen": kinds.qwen,
    "thinking": lambda directory: kinds.qwen(directory, kinds.THINKING),
    "llama3": kinds.llama3,
    "gemma": kinds.gemma,
    "llava": kinds.llava,
}
TALK = (ask("what is there?"), answer("a large red 3"), ask("and where?\nIn  one word."), answer("top-left 好\n\nyes"))


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def tokenizers(directories):
    images = {"gemma": GEMMA_IMAGE}
    return {name: load_tokenizer(path, image=images.get(name)) for name, path in directories.items()}


@pytest.fixture(scope="module")
def references(directories):
    return {name: AutoTokenizer.from_pretrained(path) for name, path in directories.items()}


def dicts(messages, parts: bool):
    """Messages as transformers takes them."""
    out = []
    for message in messages:
        content = [
            {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part} for part in message.parts
        ]
        out.append({"role": message.role, "content": content if parts else message.text})
    return out


def sample(*messages) -> Sample:
    return Sample("0", "en", tuple(messages))


def learned_texts(segment, reference) -> list[str]:
    """The runs of tokens that carry loss, as text with special tokens in it."""
    weights = np.append(0, segment.loss_weights[:-1])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], weights, [0]])))
    return [reference.decode(segment.tokens[a:b]) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize("name", ["qwen", "thinking", "llama3", "gemma"])
def test_ids_are_those_of_transformers(tokenizers, references, name):
    messages = dicts(TALK, parts=False)
    whole = tokenise(sample(*TALK), tokenizers[name], TEXT)
    assert whole.tokens.tolist() == references[name].apply_chat_template(messages, return_dict=False)
    for count in (1, 3):
        prompt = tokenise_prompt(TALK[:count], tokenizers[name], TEXT)
        expected = references[name].apply_chat_template(messages[:count], add_generation_prompt=True, return_dict=False)
        assert prompt.tokens.tolist() == expected
        assert not prompt.loss_weights[-1]


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("qwen", ["a large red 3<|im_end|>", "top-left 好\n\nyes<|im_end|>"]),
        # The empty thought is part of what the model has to write after the prompt.
        ("thinking", ["a large red 3<|im_end|>", "<think>\n\n</think>\n\ntop-left 好\n\nyes<|im_end|>"]),
        ("llama3", ["a large red 3<|eot_id|>", "top-left 好\n\nyes<|eot_id|>"]),
        ("gemma", ["a large red 3<end_of_turn>", "top-left 好\n\nyes<end_of_turn>"]),
        ("llava", ["a large red 3</s>", "top-left 好\n\nyes</s>"]),
    ],
)
def test_loss_is_on_replies_with_their_end_of_turn(tokenizers, references, name, learned):
    segment = tokenise(sample(*TALK), tokenizers[name], TEXT)
    assert [text.strip() for text in learned_texts(segment, references[name])] == learned
    assert segment.targets[:-1].tolist() == segment.tokens[1:].tolist()
    first = int(segment.prompt_mask.sum())
    assert segment.prompt_mask.tolist() == [True] * first + [False] * (len(segment.tokens) - first)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_examples_are_turns_of_which_nothing_is_learned(tokenizers, name):
    example, own = (ask("what is there?"), answer("a large red 3")), (ask("and here?"), answer("a blue 5"))
    shown = tokenise(sample(*with_examples(own, [example])), tokenizers[name], TEXT)
    talk = tokenise(sample(*example, *own), tokenizers[name], TEXT)
    assert shown.tokens.tolist() == talk.tokens.tolist()
    learned = np.flatnonzero(shown.loss_weights)
    assert 0 < len(learned) < talk.loss_weights.sum() and (np.diff(learned) == 1).all()
    assert talk.loss_weights[learned].all() and learned[-1] == np.flatnonzero(talk.loss_weights)[-1]


@pytest.mark.parametrize("name", list(BUILDERS))
def test_a_prompt_is_where_the_learned_reply_begins(tokenizers, name):
    messages = (ask("what is there?"), answer("a large red 3"))
    whole, prompt = (
        tokenise(sample(*messages), tokenizers[name], TEXT),
        tokenise_prompt(messages[:1], tokenizers[name], TEXT),
    )
    first = int(whole.prompt_mask.sum())
    assert prompt.tokens.tolist() == whole.tokens[:first].tolist()
    assert prompt.prompt_mask.all()
    length = int(whole.loss_weights.sum())
    assert length > 3 and whole.loss_weights[first - 1 : first - 1 + length].all()


@pytest.mark.parametrize("reply", ["  trimmed? ", "\nx\n\n", " ", "", "<think>\nhm\n</think>\n\nso"])
@pytest.mark.parametrize("name", ["qwen", "thinking", "llama3", "gemma"])
def test_white_space_and_thoughts_are_treated_as_the_template_does(tokenizers, references, name, reply):
    messages = (ask(" a question "), answer(reply), ask("x\n"), answer(reply))
    segment = tokenise(sample(*messages), tokenizers[name], TEXT)
    expected = references[name].apply_chat_template(dicts(messages, parts=False), return_dict=False)
    assert segment.tokens.tolist() == expected
    learned = learned_texts(segment, references[name])
    assert len(learned) == 2
    assert all(
        text.count("<|im_end|>") + text.count("<|eot_id|>") + text.count("<end_of_turn>") == 1 for text in learned
    )
    assert ("hm" in learned[-1]) == ("hm" in reply)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_special_tokens_in_texts_stay_text(tokenizers, references, name):
    reference, tokenizer = references[name], tokenizers[name]
    specials = [token.content for token in reference.added_tokens_decoder.values() if token.special]
    calm = tokenise(sample(ask("a", Image(PIXELS)), answer("b")), tokenizer, Layout(3, "add", "next")).tokens
    for special in specials:
        half = len(special) // 2
        for question in ((f"a{special}b",), (special,), (special[:half], special[half:]), (f" {special}\n{special}",)):
            messages = (ask(*question), answer(f"I say {special}"))
            tokens = tokenise(sample(*messages), tokenizer, TEXT).tokens
            ids = reference.all_special_ids
            count = {index: int(np.sum(calm == index)) for index in {*ids, tokenizer.image_id} - {None}}
            assert {index: int(np.sum(tokens == index)) for index in count} == count
            assert special in reference.decode(tokens[~np.isin(tokens, ids)])


def test_images_take_their_tokens_where_the_template_puts_them(tokenizers, references):
    messages = (ask("is this", Image(PIXELS), "or", Image(PIXELS + 1), "it?"), answer("yes"))
    gemma = tokenise(sample(*messages), tokenizers["gemma"], PLACE)
    soft = "\n\n<start_of_image>" + "<image_soft_token>" * 3 + "<end_of_image>\n\n"
    text = references["gemma"].apply_chat_template(dicts(messages, parts=True), tokenize=False)
    expected = references["gemma"](text.replace("<start_of_image>", soft), add_special_tokens=False)["input_ids"]
    assert gemma.tokens.tolist() == expected

    llava = tokenise(sample(*messages), tokenizers["llava"], PLACE)  # images first, a bos as its processor adds it
    text = references["llava"].apply_chat_template(dicts(messages, parts=True), tokenize=False)
    assert text.startswith("USER: <image>\n<image>\nis this ")
    text = text.removesuffix(" ") + "</s>"
    expected = references["llava"](text.replace("<image>", "<image>" * 3))["input_ids"]
    assert llava.tokens.tolist() == expected

    for segment in (gemma, llava):
        placed = segment.visual_index >= 0
        assert segment.visual_index[placed].tolist() == list(range(6))
        assert [image.max() for image in segment.images] == [0, 1]
        assert not segment.loss_weights[placed].any()


def test_a_template_of_plain_texts_gets_images_spelled_out(directories, references):
    tokenizer = load_tokenizer(directories["qwen"], kinds.seeing())
    segment = tokenise(sample(ask(Image(PIXELS), "what?"), answer("so")), tokenizer, PLACE)
    blind = tokenise(sample(ask("what?"), answer("so")), tokenizer, PLACE)
    assert segment.tokens[segment.visual_index < 0].tolist() == blind.tokens.tolist()
    start = references["qwen"].encode("<|im_start|>user\n", add_special_tokens=False)
    first = int(np.argmax(segment.visual_index >= 0))
    assert segment.tokens[first - len(start) : first].tolist() == start
    assert (segment.tokens == tokenizer.image_id).sum() == 3


def test_images_that_take_no_place_are_not_in_the_text(tokenizers):
    messages = (ask(Image(PIXELS), "what?"), answer("so"))
    with_image = tokenise(sample(*messages), tokenizers["llava"], Layout(1, "add", "next"))
    without = tokenise(sample(ask("what?"), answer("so")), tokenizers["llava"], PLACE)
    assert with_image.tokens.tolist() == without.tokens.tolist()
    assert len(with_image.images) == 1
    assert not with_image.visual_index.any()


def test_a_template_of_ones_own_lays_out_what_has_none(tmp_path):
    """As PaliGemma: images, bos, the question, a line break, the answer."""
    source = (
        "{% for m in messages %}{% for p in m.content if p.type == 'image' %}<image>{% endfor %}"
        "{% if loop.first %}{{ bos_token }}{% endif %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
        "{{ eos_token if m.role == 'assistant' else '\\n' }}{% endfor %}"
    )
    tokenizer = load_tokenizer(kinds.llava(tmp_path, None), kinds.seeing(), chat_template=source)
    assert tokenizer.chat_template.end_of_turn == "</s>"
    segment = tokenise(sample(ask("what?", Image(PIXELS)), answer("so")), tokenizer, PLACE)
    names = AutoTokenizer.from_pretrained(tmp_path).convert_ids_to_tokens(segment.tokens.tolist())
    assert names[:4] == [*["<image>"] * 3, "<s>"]
    assert names[-1] == "</s>"


def test_masked_text_is_hidden_where_the_tokenizer_can(tmp_path, tokenizers):
    messages = (ask("a ", Masked("large red"), " 3?"), answer("yes"))
    with pytest.raises(UserError, match="no mask token"):
        tokenise(sample(*messages), tokenizers["qwen"], TEXT)
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}[SEP]"
    tokenizer = load_tokenizer(kinds.bert(tmp_path), chat_template=template)
    hidden = tokenise(sample(*messages), tokenizer, TEXT).tokens
    shown = tokenise(sample(ask("a large red 3?"), answer("yes")), tokenizer, TEXT).tokens
    words = tokenizer.encode("large red")
    start = next(i for i in range(len(shown)) if shown[i : i + len(words)].tolist() == words)
    assert np.flatnonzero(hidden != shown).tolist() == list(range(start, start + len(words)))
    assert (hidden[start : start + len(words)] == tokenizer.mask_id).all()


def test_what_a_template_refuses_or_leaves_out_is_named(directories, tokenizers):
    with pytest.raises(UserError, match="chat template refuses the conversation .roles must alternate"):
        tokenise_prompt((ask("a"), ask("b")), tokenizers["gemma"], TEXT)
    source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    silent = load_tokenizer(directories["qwen"], chat_template=source + "{{ messages[-1].content[:11] }}")
    with pytest.raises(UserError, match="writes 0 of 1 replies"):
        tokenise(sample(ask("a"), answer("a long reply")), silent, TEXT)
    deaf = "{% for m in messages %}{{ m.content if m.content is string else m.content[-1].text }}{% endfor %}"
    seeing = load_tokenizer(directories["llava"], kinds.seeing(), chat_template=deaf + "<image>")
    with pytest.raises(UserError, match="shows 1 of 2 images"):
        tokenise_prompt((ask(Image(PIXELS), Image(PIXELS), "x"),), seeing, PLACE)

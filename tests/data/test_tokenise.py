"""Samples as segments: every layout spelled out token by token."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from jaxfusion.config import Config, from_dict
from jaxfusion.data.messages import Image, Masked, Sample, answer, ask, with_examples
from jaxfusion.data.tokenise import Layout, pieces, tokenise, tokenise_prompt
from jaxfusion.errors import UserError
from jaxfusion.text.pretrained import load_tokenizer
from jaxfusion.text.trained import TrainedTokenizer
from tests import checkpoint_tokenizers

PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def tokenizer():
    return TrainedTokenizer.train(["x"], 262)  # bytes only: one token a letter


def one(tokenizer, letter):
    return tokenizer.encode(letter)[0]


def test_a_conversation_carries_loss_on_its_answers_alone(tokenizer):
    messages = (ask(Image(PIXELS), "q"), answer("ab"), ask("r"), answer("c"))
    segment = tokenise(Sample("0", "en", messages), tokenizer, Layout(2, "place", "next"))
    a, b, c, q, r = (one(tokenizer, letter) for letter in "abcqr")
    image, sep, eos, bos, pad = (getattr(tokenizer, f"{n}_id") for n in ("image", "sep", "eos", "bos", "pad"))
    expected = [bos, image, image, q, sep, a, b, eos, r, sep, c, eos]
    assert segment.tokens.tolist() == expected
    assert segment.targets.tolist() == [*expected[1:], pad]
    assert segment.loss_weights.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0]
    assert segment.prompt_mask.tolist() == [True] * 5 + [False] * 7
    assert segment.visual_index.tolist() == [-1, 0, 1] + [-1] * 9
    assert len(segment.images) == 1


def test_examples_are_read_and_carry_no_loss(tokenizer):
    layout, own = Layout(1, "place", "next"), (ask(Image(PIXELS), "r"), answer("c"))
    messages = with_examples(own, [(ask(Image(PIXELS), "q"), answer("ab"))])
    segment = tokenise(Sample("0", "en", messages), tokenizer, layout)
    a, b, c, q, r = (one(tokenizer, letter) for letter in "abcqr")
    image, sep, eos, bos = (getattr(tokenizer, f"{n}_id") for n in ("image", "sep", "eos", "bos"))
    assert segment.tokens.tolist() == [bos, image, q, sep, a, b, eos, image, r, sep, c, eos]
    assert segment.loss_weights.tolist() == [0] * 9 + [1, 1, 0]
    assert segment.prompt_mask.tolist() == [True] * 10 + [False] * 2  # a prefix, where attention is in both directions
    prompt = tokenise_prompt(messages[:-1], tokenizer, layout)
    assert prompt.tokens.tolist() == segment.tokens[:10].tolist() and prompt.prompt_mask.all()


@pytest.mark.parametrize(("letters", "sizes"), [(6, [8]), (7, [8]), (8, [8, 2]), (15, [8, 8]), (16, [8, 8, 2])])
def test_every_piece_of_a_document_teaches_something(tokenizer, letters, sizes):
    segment = tokenise(Sample("0", "en", (answer("a" * letters),)), tokenizer, Layout(0, "place", "next"))
    parts = pieces(segment, 8)
    assert [len(part.tokens) for part in parts] == sizes
    assert all(part.loss_weights.any() for part in parts)
    assert sum(part.loss_weights.sum() for part in parts) == segment.loss_weights.sum() == letters + 1


def test_a_prompt_is_the_conversation_up_to_the_answer(tokenizer):
    layout = Layout(1, "place", "next")
    sample = Sample("0", "en", (ask("q", Image(PIXELS)), answer("a")))
    whole, prompt = tokenise(sample, tokenizer, layout), tokenise_prompt(sample.messages[:1], tokenizer, layout)
    length = int(whole.prompt_mask.sum())
    assert prompt.tokens.tolist() == whole.tokens[:length].tolist()
    assert prompt.visual_index.tolist() == whole.visual_index[:length].tolist()
    assert prompt.prompt_mask.all()
    assert not prompt.loss_weights.any()


def test_masked_text_is_hidden_and_asked_for(tokenizer):
    sample = Sample("0", "en", (ask(Image(PIXELS), "a", Masked("bc"), "d"), answer("abcd")))
    segment = tokenise(sample, tokenizer, Layout(1, "add", "tokens"))
    a, b, c, d = (one(tokenizer, letter) for letter in "abcd")
    mask, bos, eos = tokenizer.mask_id, tokenizer.bos_id, tokenizer.eos_id
    assert segment.tokens.tolist() == [bos, a, mask, mask, d, eos]
    assert segment.targets.tolist() == [bos, a, b, c, d, eos]
    assert segment.loss_weights.tolist() == [0, 1, 1, 1, 1, 0]
    assert segment.visual_index.tolist() == [0] * 6


def test_masked_text_in_a_prompt_is_hidden_from_a_language_model_too(tokenizer):
    sample = Sample("0", "en", (ask("a", Masked("b")), answer("ab")))
    segment = tokenise(sample, tokenizer, Layout(0, "place", "next"))
    assert segment.tokens[:3].tolist() == [tokenizer.bos_id, one(tokenizer, "a"), tokenizer.mask_id]


def test_adding_takes_one_image_a_sample(tokenizer):
    sample = Sample("0", "en", (ask(Image(PIXELS), Image(PIXELS), "a"), answer("b")))
    with pytest.raises(UserError, match="add takes one image a sample and this one has 2"):
        tokenise(sample, tokenizer, Layout(1, "add", "next"))


def test_a_class_stands_at_the_last_position(tokenizer):
    sample = Sample("0", "zh", (ask(Image(PIXELS), "q"), answer("好")), label=3)
    segment = tokenise(sample, tokenizer, Layout(4, "cross-attention", "class"))
    assert segment.tokens.tolist() == [tokenizer.bos_id, one(tokenizer, "q"), tokenizer.eos_id]
    assert segment.targets[-1] == 3
    assert segment.loss_weights.tolist() == [0, 0, 1]
    assert segment.visual_index.tolist() == [-1] * 3


def test_adding_more_than_one_visual_token_is_refused():
    model = from_dict(Config, {"model": {"vision": "vit-tiny", "fusion": "add"}}).model
    with pytest.raises(UserError, match=r"config\.model\.fusion: add needs one visual token an image and there are 36"):
        Layout.of(model)


def test_checkpoints_without_a_chat_template_have_the_fixed_layout(tmp_path):
    """With the tokens that they have: GPT-2 knows one special token, BERT begins with a class token."""
    gpt2 = load_tokenizer(checkpoint_tokenizers.gpt2(tmp_path / "gpt2"), checkpoint_tokenizers.seeing())
    segment = tokenise(Sample("0", "en", (ask(Image(PIXELS), "is"), answer("a"))), gpt2, Layout(2, "place", "next"))
    end, line = gpt2.eos_id, gpt2.encode("\n")
    tokens = [end, gpt2.image_id, gpt2.image_id, *gpt2.encode("is"), *line, *gpt2.encode("a"), end]
    assert segment.tokens.tolist() == tokens
    assert segment.loss_weights.tolist() == [0] * (len(tokens) - 3) + [1, 1, 0]
    bert = load_tokenizer(checkpoint_tokenizers.bert(tmp_path / "bert"))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "bert")
    segment = tokenise(Sample("0", "en", (ask("Is it there?"),), label=1), bert, Layout(0, "place", "class"))
    assert segment.tokens.tolist() == theirs("Is it there?")["input_ids"]
    masked = Sample("0", "en", (ask("is it ", Masked("there"), "?"),))
    segment = tokenise(masked, bert, Layout(0, "place", "tokens"))
    assert segment.targets.tolist() == theirs("is it there?")["input_ids"]
    hidden = segment.tokens == theirs.mask_token_id
    assert segment.targets[hidden].tolist() == bert.encode("there")


def test_a_checkpoint_that_has_learned_no_layout_reads_examples_as_text(tmp_path):
    gpt2 = load_tokenizer(checkpoint_tokenizers.gpt2(tmp_path / "gpt2"), checkpoint_tokenizers.seeing(), bare=True)
    messages = with_examples((ask(Image(PIXELS), "Is it?"),), [(ask(Image(PIXELS), "Is it?"), answer("no"))])
    prompt = tokenise_prompt(messages, gpt2, Layout(2, "place", "next"))
    images = [gpt2.image_id] * 2
    tokens = [*gpt2.prefix, *images, *gpt2.encode("Is it? no\n\n"), *images, *gpt2.encode("Is it?")]
    assert prompt.tokens.tolist() == tokens

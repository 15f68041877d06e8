"""Special tokens come from us alone: whatever a person types, in whatever kind of tokenizer."""

import pytest
from tokenizers import AddedToken, Tokenizer, models

from jaxfusion.text.specials import Specials
from tests import checkpoint_tokenizers as kinds


def specials(*names):
    return Specials(kinds.byte_bpe(["<end>", "<e", "<image>"]), names)


def encoded(knows: Specials, rendered: str) -> list[str]:
    ids, _ = knows.encode(knows.disguise(rendered))
    backend = kinds.byte_bpe(["<end>", "<e", "<image>"])
    return [backend.id_to_token(index) for index in ids]


def test_what_is_escaped_is_text_and_what_is_not_is_a_token():
    knows = specials("<end>", "<e", "<image>")
    rendered = "<image>" + knows.escape("<image><end") + "<end>" + knows.escape("<e")
    tokens = encoded(knows, rendered)
    assert tokens[0] == "<image>" and tokens.count("<image>") == 1
    assert tokens.count("<end>") == 1 and "<e" not in tokens
    assert "".join(tokens) == "<image><image><end<end><e"


def test_the_longest_name_counts():
    assert encoded(specials("<end>", "<e"), "<end><e") == ["<end>", "<e"]


def test_text_in_disguise_without_escape_has_offsets_in_it():
    knows = specials("<end>", "<e", "<image>")
    disguised = knows.disguise("ab <end>")
    _, offsets = knows.encode(disguised)
    assert offsets[0][0] == 0 and offsets[-1] == (3, len(disguised))
    assert knows.first(disguised) == "<end>" and knows.first("ab") is None


@pytest.mark.parametrize("prepend", [True, False])
def test_neighbours_of_special_tokens_are_encoded_as_ever(prepend):
    """A token that takes the white space around it goes on doing so, and normalizers see what they saw."""
    backend = kinds.sentencepiece_bpe(["<unk>", "<s>"], prepend)
    added = [AddedToken("<a>", lstrip=True, normalized=False), AddedToken("<b>", rstrip=True, normalized=False)]
    backend.add_special_tokens([*added, AddedToken("<c>", normalized=not prepend)])
    knows = Specials(backend, ["<unk>", "<s>", "<a>", "<b>", "<c>"])
    for text in ("is  <a> it <b>  there", "<s>is it <s>there<c> is", " a<a><b>", "<c>"):
        expected = backend.encode(text, add_special_tokens=False)
        ids, _ = knows.encode(knows.disguise(text))
        assert ids == expected.ids


def test_what_we_write_counts_even_where_the_tokenizer_would_not_see_it():
    backend = kinds.sentencepiece_bpe(["<unk>", "<s>"], prepend=True)
    backend.add_special_tokens([AddedToken("<a>", single_word=True), AddedToken("<b>", normalized=True)])
    index = [backend.token_to_id(name) for name in ("<a>", "<b>")]
    assert not set(backend.encode("is<a>it<b>there", add_special_tokens=False).ids) & set(index)
    knows = Specials(backend, ["<unk>", "<s>", "<a>", "<b>"])
    ids, _ = knows.encode(knows.disguise("is<a>it<b>there"))
    assert [i for i in ids if i in index] == index


@pytest.mark.parametrize("merges", [[("a", "b"), ("ab", "c")], [("b", "c"), ("a", "bc"), ("abc", "a")]])
def test_merges_do_not_make_a_special_token(merges):
    vocabulary = {piece: i for i, piece in enumerate(["a", "b", "c", "ab", "bc", "abc", "abca"])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.add_special_tokens(["abc"])
    ids, _ = Specials(backend, ["abc"]).encode("abcabc")
    assert vocabulary["abc"] not in ids and vocabulary["abca"] not in ids
    assert "".join(backend.id_to_token(index) for index in ids) == "abcabc"


def test_without_special_tokens_text_is_text():
    backend = kinds.byte_bpe([])
    knows = Specials(backend, [])
    assert knows.escape("<s>") == knows.disguise("<s>") == "<s>"
    assert knows.encode("<s>")[0] == backend.encode("<s>").ids

"""Text as it grows against text as it is in the end."""

import numpy as np
import pytest

from jaxfusion.generation.generate import until_stop
from jaxfusion.serving.text import AnswerText, Detokeniser
from jaxfusion.text.trained import TrainedTokenizer

TEXTS = ["  一个大的红色的3，and a small 7 \n\n", "wörds 😀, tabs\t and   spaces", "", " ", "aaaaabaaaab", "\n"]


@pytest.fixture(scope="module", params=[262, 300], ids=["bytes", "merged"])
def tokenizer(request):
    return TrainedTokenizer.train(["a large red 3 at the top, 一个大的红色的3 😀"] * 20, request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_ends_within_a_character_and_together_they_are_the_text(tokenizer, text):
    detokeniser = Detokeniser(tokenizer)
    pieces = [detokeniser.add(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


@pytest.mark.parametrize("stop", [(), ("的红",), ("aab", "aaab"), ("\n",), ("zz", " and"), ("😀, t",)])
@pytest.mark.parametrize("text", TEXTS)
def test_however_it_comes_it_is_what_the_whole_would_be(tokenizer, text, stop):
    rng, ids = np.random.default_rng(0), [*tokenizer.encode(text), tokenizer.eos_id]
    expected = until_stop(tokenizer.decode(ids), stop).rstrip()
    told = []
    for block in (1, 2, 3, 5, len(ids)):
        growing, taken, pieces = AnswerText(tokenizer, stop), "", []
        for start in range(0, len(ids), block):
            growing.add(ids[start : start + block], rng.random(len(ids[start : start + block])))
            new, more = growing.take()
            taken, pieces = taken + new, pieces + more
            assert expected.startswith(taken), "what was sent is taken back"
        growing.finish()
        assert taken == taken.rstrip()
        new, more = growing.take()
        assert taken + new == expected
        assert growing.stopped == any(text in tokenizer.text(ids).lstrip() for text in stop)
        told.append([(piece.text, piece.start, piece.end) for piece in pieces + more])
    assert all(pieces == told[0] for pieces in told)
    together = "".join(text for text, _, _ in told[0])
    assert together.startswith(expected) if stop else together.rstrip() == expected


def test_half_a_character_at_the_end_is_told_in_the_end(tokenizer):
    growing = AnswerText(tokenizer, ())
    growing.add(tokenizer.encode("x é")[:-1], np.zeros(3))
    assert growing.take()[0] == "x"
    growing.finish()
    text, pieces = growing.take()
    assert text == " \N{REPLACEMENT CHARACTER}"
    assert [piece.text for piece in pieces] == [" ", "\N{REPLACEMENT CHARACTER}"]
    assert growing.count == 3


def test_what_is_told_of_a_token_is_what_it_would_add_even_where_the_answer_is_cut_within_a_character(tokenizer):
    """Two characters are begun and never ended: by "é" in the middle, and by the last token."""
    ids, (other,) = tokenizer.encode("é")[:1] + tokenizer.encode("x é")[:-1], tokenizer.encode("y")
    beside = [[(one, -0.5), (other, -1.0), (tokenizer.eos_id, -2.0)] for one in ids]
    growing = AnswerText(tokenizer, ())
    growing.add(ids, [-0.5] * len(ids), beside)
    growing.finish()
    _, pieces = growing.take()
    assert pieces[-1].text.endswith("\N{REPLACEMENT CHARACTER}")
    for piece in pieces:
        (chosen, _), (instead, logprob), (end, _) = piece.top
        assert (piece.text, "", -1.0) == (chosen, end, logprob) and instead.endswith("y")


def test_each_token_that_is_told_of_is_decoded_once(tokenizer, monkeypatch):
    decoded, text = [], tokenizer.text
    monkeypatch.setattr(tokenizer, "text", lambda ids: decoded.append(ids) or text(ids))
    ids = tokenizer.encode("wörds 😀, tabs")
    growing = AnswerText(tokenizer, ())
    growing.add(ids, np.zeros(len(ids)), [[(one, 0.0) for one in {token, *range(5, 24)}] for token in ids])
    assert len(decoded) <= len(ids) * (20 + 1)  # and what is known by then, once


def test_a_stop_text_that_has_only_begun_is_held_back(tokenizer):
    growing = AnswerText(tokenizer, ("STOP",))
    for text, taken in (("go ST", "go"), ("OR", " STOR"), ("Y STO", "Y"), ("P more", "")):
        growing.add(ids := tokenizer.encode(text), np.zeros(len(ids)))
        assert growing.take()[0] == taken
    assert growing.stopped


@pytest.mark.parametrize("text", ["one or two digits é 的", "a large  red\n3"])
def test_an_answer_that_goes_on_with_a_prompt_joins_it_wherever_that_is_cut(tokenizer, text):
    """White space between them is the answer's, and so is a character that the prompt only begins."""
    ids = tokenizer.encode(text)
    for cut in range(1, len(ids)):
        growing = AnswerText(tokenizer, (), goes_on=ids[:cut])
        growing.add(ids[cut:], np.zeros(len(ids) - cut))
        growing.finish()
        said, pieces = growing.take()
        assert tokenizer.text(ids[:cut]).rstrip("\N{REPLACEMENT CHARACTER}") + said == text
        assert "".join(piece.text for piece in pieces) == said and pieces[0].start == 0


def test_an_answer_that_goes_on_begins_with_the_space_that_a_sentence_would_not():
    """As tokenizers of SentencePiece have it, whose first token loses its space."""

    class Pieces:
        stop_ids = ()

        def text(self, ids):
            return "".join(("\u2581one", "\u2581or", "\u2581two")[index] for index in ids).replace("\u2581", " ")[1:]

    for goes_on, expected in (([0, 1], " two"), (None, "two")):
        growing = AnswerText(Pieces(), (), goes_on)
        growing.add([2], [0.0])
        growing.finish()
        assert growing.take()[0] == expected

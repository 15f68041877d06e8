"""A run's own tokenizer: text survives the round trip, special tokens never come out of text, files are checked."""

import pytest

from jaxfusion.errors import UserError
from jaxfusion.text.tokenizer import open_tokenizer
from jaxfusion.text.trained import TrainedTokenizer

TEXTS = ["a large red 3 at the top left", "左上角有一个大的红色的3，右下角有一个小的蓝色的7"]


@pytest.fixture(scope="module")
def tokenizer():
    return TrainedTokenizer.train(TEXTS * 50, 400)


@pytest.mark.parametrize("text", [*TEXTS, "unseen wörds\nand 😀 too", "<image> is not <eos> here"])
def test_any_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {tokenizer.image_id, tokenizer.eos_id, tokenizer.pad_id}


def test_words_are_learned_and_digits_and_chinese_characters_stay_alone(tokenizer):
    assert len(tokenizer.encode(" large")) == 1
    assert len(tokenizer.encode("37")) == 2
    assert len(tokenizer.encode("左上角")) == 3


def test_text_ends_at_the_first_eos(tokenizer):
    ids = [*tokenizer.encode("red"), tokenizer.eos_id, *tokenizer.encode("blue")]
    assert tokenizer.decode(ids) == "red"


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = open_tokenizer(tmp_path)
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert "<image>" in loaded.decode(loaded.encode("<image>"))


def test_bad_files_and_sizes_are_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer"):
        open_tokenizer(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a readable tokenizer"):
        open_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"config\.data\.vocab_size: 100 cannot hold all bytes"):
        TrainedTokenizer.train(TEXTS, 100)

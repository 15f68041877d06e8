"""The training iterator: endless, shuffled anew each epoch, and able to say and find its exact place."""

import jax
import numpy as np
import pytest

from jaxfusion.config import Config, from_dict
from jaxfusion.data.loader import Reader, open_dataset, train_iterator
from jaxfusion.errors import UserError
from jaxfusion.text.trained import TrainedTokenizer


@pytest.fixture(scope="module")
def parts(small_data):
    vision = {"kind": "vgg", "image_size": 24, "stage_depths": [1], "stage_widths": [4]}
    settings = {
        "model": {"vision": vision, "projector": {"kind": "linear", "pool": "mean"}},
        "data": {"task": "question_answer", "languages": ["en", "zh"], "data_dir": str(small_data), "row_length": 640},
    }
    config = from_dict(Config, settings)
    dataset = open_dataset(config.data)
    return dataset, Reader(config.data, config.model, dataset.labels), TrainedTokenizer.train(["x"], 262)


def iterator(parts, seed=0):
    dataset, reader, tokenizer = parts
    return train_iterator(dataset.train, reader, tokenizer, batch_size=4, seed=seed)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_it_goes_on_exactly_where_its_state_says(parts):
    first = iterator(parts)
    for _ in range(3):
        next(first)
    state = first.get_state()
    expected = [next(first) for _ in range(12)]  # well into the next epoch
    again = iterator(parts)
    again.set_state(state)
    assert all(equal(next(again), batch) for batch in expected)


def test_seeds_and_epochs_have_orders_of_their_own(parts):
    dataset, *_ = parts
    one, same, other = iterator(parts), iterator(parts), iterator(parts, seed=1)
    first = next(one)
    assert equal(first, next(same))
    assert not equal(first, next(other))
    rest = [next(one) for _ in range(len(dataset.train) // 4)]
    assert not equal(first, rest[-1])


def test_rows_hold_one_dialogue_on_one_picture(parts):
    batch = next(iterator(parts))
    assert not batch.packed
    assert batch.images.shape == (4, 1, 24, 24, 3)
    _, _, tokenizer = parts
    for tokens in batch.tokens:
        assert (tokens == tokenizer.sep_id).sum() in (4, 6, 8, 10)  # two questions a digit, and two on all of them
        assert (tokens == tokenizer.image_id).sum() == 1


def test_unknown_and_unprepared_data_sets_are_named(tmp_path):
    def data(**settings):
        return from_dict(Config, {"data": {"data_dir": str(tmp_path)} | settings}).data

    with pytest.raises(UserError, match=r"config\.data\.name: there is no data set 'digit_scens'; did you mean"):
        open_dataset(data(name="digit_scens"))
    with pytest.raises(UserError, match=r"config\.data\.name: mnist is not prepared in .*; run `tfds build mnist"):
        open_dataset(data(name="mnist"))

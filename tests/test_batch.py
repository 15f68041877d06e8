"""Batch against a loop over positions, and as the pytree that jit takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxfusion.batch import Batch

IMAGE = 7
NUM_ROWS, NUM_TOKENS, NUM_IMAGES = 16, 11, 3


def _random_input(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens with image tokens anywhere (in padding too, where they are not images), lengths 0 to all, images."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 10, size=(NUM_ROWS, NUM_TOKENS)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.2] = IMAGE
    tokens[0] = IMAGE
    tokens[1] = np.where(tokens[1] == IMAGE, 1, tokens[1])
    lengths = rng.integers(0, NUM_TOKENS + 1, size=NUM_ROWS).astype(np.int32)
    lengths[:3] = NUM_TOKENS, NUM_TOKENS, 0
    images = rng.integers(0, 256, size=(NUM_ROWS, NUM_IMAGES, 4, 4, 3)).astype(np.uint8)
    return tokens, lengths, images


def _row_by_row(tokens: np.ndarray, lengths: np.ndarray, image_token_id: int | None) -> dict[str, list]:
    """Batch.from_tokens as its docstring tells it, one position at a time; a target that has no weight is None."""
    names = ("positions", "segment_ids", "targets", "loss_weights", "prompt_mask", "visual_index")
    fields = {name: [] for name in names}
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        images = [at for at in range(length) if row[at] == image_token_id]
        text = [at for at in range(length) if row[at] != image_token_id]
        columns = range(len(row))
        fields["positions"].append([at if at < length else 0 for at in columns])
        fields["segment_ids"].append([1 if at < length else 0 for at in columns])
        fields["targets"].append([row[at + 1] if at + 1 in text else None for at in columns])
        fields["loss_weights"].append([1.0 if at + 1 in text else 0.0 for at in columns])
        fields["prompt_mask"].append([bool(images) and at <= images[-1] for at in columns])
        fields["visual_index"].append([images.index(at) if at in images else -1 for at in columns])
    return fields


@pytest.mark.parametrize("image_token_id", [IMAGE, None])
@pytest.mark.parametrize("seed", range(3))
def test_from_tokens_is_what_a_loop_over_positions_gives(seed, image_token_id):
    tokens, lengths, images = _random_input(seed)
    batch = Batch.from_tokens(tokens, images, image_token_id, lengths)
    expected = _row_by_row(tokens, lengths, image_token_id)
    targets = np.array(expected.pop("targets"), object)
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(batch, name), np.array(values), err_msg=name)
    counted = np.asarray(batch.loss_weights) > 0
    np.testing.assert_array_equal(np.asarray(batch.targets)[counted], targets[counted].astype(int))
    np.testing.assert_array_equal(batch.tokens, tokens)
    np.testing.assert_array_equal(batch.images, images)
    assert batch.images.dtype == jnp.uint8
    np.testing.assert_array_equal(batch.image_segment_ids, np.ones((NUM_ROWS, NUM_IMAGES)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(batch)} == {"int32", "float32", "bool", "uint8"}
    assert not batch.packed


def test_from_tokens_by_hand():
    """<image> <image> a b, padded to 5."""
    batch = Batch.from_tokens(np.array([[IMAGE, IMAGE, 3, 4, 0]]), image_token_id=IMAGE, lengths=np.array([4]))
    assert batch.visual_index.tolist() == [[0, 1, -1, -1, -1]]
    assert batch.prompt_mask.tolist() == [[True, True, False, False, False]]
    assert batch.targets[0, 1:3].tolist() == [3, 4]
    assert batch.loss_weights.tolist() == [[0, 1, 1, 0, 0]]
    assert batch.images is None and batch.image_segment_ids is None


def test_from_tokens_without_lengths_takes_whole_rows():
    tokens, _, _ = _random_input(0)
    whole = Batch.from_tokens(tokens, image_token_id=IMAGE)
    same = Batch.from_tokens(tokens, image_token_id=IMAGE, lengths=np.full(NUM_ROWS, NUM_TOKENS))
    jax.tree.map(np.testing.assert_array_equal, whole, same)


@pytest.mark.parametrize("shape, dtype", [((NUM_ROWS, 2), np.int32), ((NUM_ROWS, 2, 5, 8), np.float32)])
def test_from_tokens_takes_image_ids_and_features(shape, dtype):
    tokens, _, _ = _random_input(0)
    batch = Batch.from_tokens(tokens, np.ones(shape, dtype))
    assert batch.images.shape == shape and batch.images.dtype == dtype
    assert batch.image_segment_ids.shape == (NUM_ROWS, 2)


def test_a_batch_is_made_and_passed_through_jit():
    tokens, lengths, images = _random_input(1)
    outside = Batch.from_tokens(tokens, images, IMAGE, lengths)
    inside = jax.jit(Batch.from_tokens, static_argnames="image_token_id")(tokens, images, IMAGE, lengths)
    jax.tree.map(np.testing.assert_array_equal, inside, outside)
    through = jax.jit(lambda batch: batch.replace(tokens=batch.tokens + 1))(outside)
    np.testing.assert_array_equal(through.tokens, tokens + 1)
    np.testing.assert_array_equal(through.targets, outside.targets)


def test_packed_is_static_and_so_part_of_what_jit_compiles_for():
    traced = []

    @jax.jit
    def look(batch: Batch) -> jax.Array:
        traced.append(batch.packed)
        return batch.tokens if batch.packed else -batch.tokens

    batch = Batch.from_tokens(np.ones((1, 2), np.int32))
    for packed in (False, True, False):
        assert look(batch.replace(packed=packed)).tolist() == ([[1, 1]] if packed else [[-1, -1]])
    assert traced == [False, True]


def test_a_field_of_another_shape_or_dtype_is_refused():
    """jaxtyping's checks are on in these tests, for functions and for dataclasses, and JAX can still map over those."""
    batch = Batch.from_tokens(np.ones((2, 3), np.int32))
    with pytest.raises(TypeCheckError, match="targets"):
        batch.replace(targets=batch.targets[:, :2])
    with pytest.raises(TypeCheckError, match="tokens"):
        Batch.from_tokens(np.ones((2, 3), np.float32))
    assert jax.tree.map(lambda leaf: leaf.shape, batch).tokens == (2, 3)

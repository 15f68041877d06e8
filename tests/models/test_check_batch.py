"""Batches that do not fit their images are refused before they give wrong numbers."""

import jax
import numpy as np
import pytest

import jaxfusion
from jaxfusion.batch import Batch
from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig, ViTConfig
from jaxfusion.errors import UserError
from jaxfusion.models.check import check_batch

IMAGE = 10
CONFIG = ModelConfig(
    width=16,
    text_embedding=TextEmbeddingConfig(vocab_size=11),
    vision=ViTConfig(image_size=8, patch_size=4, width=16, num_layers=1, num_heads=2, class_token=False),
    decoder=TransformerDecoderConfig(num_layers=1, num_heads=2),
)


def batch(count: int, num_images: int = 1, image_token_id: int | None = IMAGE, last: int = 5) -> Batch:
    tokens = np.array([[1, *[IMAGE] * count, 2, last]])
    images = np.zeros((1, num_images, 8, 8, 3), np.uint8) if num_images else None
    return Batch.from_tokens(tokens, images, image_token_id)


@pytest.mark.parametrize(("count", "num_images"), [(4, 1), (8, 2), (0, 0)])
def test_what_fits_passes(count, num_images):
    check_batch(CONFIG, batch(count, num_images))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(count=0), "row 0 has 0 image tokens, and its images become 4, 4 each"),
        (dict(count=3), "row 0 has 3 image tokens, and its images become 4"),
        (dict(count=4, num_images=2), "row 0 has 4 image tokens, and its images become 8"),
        (dict(count=5), "visual_index goes to 4, and a row's images have 4"),
        (dict(count=4, num_images=0), "row 0 has visual tokens, and there are no images"),
        (dict(count=4, image_token_id=None), "row 0 has 0 image tokens"),
        (dict(count=4, last=11), r"tokens\[0, 6\] is 11, and the vocabulary has 11 ids"),
        (dict(count=4, last=-1), r"tokens\[0, 6\] is -1"),
    ],
)
def test_what_does_not_is_refused_by_row(wrong, message):
    with pytest.raises(UserError, match=f"batch: {message}"):
        check_batch(CONFIG, batch(**wrong))


def test_forward_looks_at_a_batch_outside_of_jit():
    model = jaxfusion.build(CONFIG)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda rng: jaxfusion.init(model, rng), jax.random.key(0)),
    )
    with pytest.raises(UserError, match="row 0 has 3 image tokens"):
        jaxfusion.forward(model, params, batch(3))
    assert jax.jit(jaxfusion.forward, static_argnums=0)(model, params, batch(4)).shape == (1, 7, 11)

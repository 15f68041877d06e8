"""Which rooms of a run begin at random and stay so."""

import pytest

import jaxfusion
from jaxfusion.config import Config, from_dict
from jaxfusion.pretrained.join import expand
from jaxfusion.pretrained.load import fresh_and_frozen
from tests.pretrained.tiny_tower import save_tower

DECODER = {"kind": "transformer", "num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("trainable", "lora", "expected"),
    [
        (["projector/*"], [], ["decoder", "text_embedding"]),
        (["projector/*", "decoder/*", "text_embedding/*"], [], []),
        (["projector/*", "decoder/layers/*", "text_embedding/*"], [], ["decoder"]),  # all but the last norm
        (["projector/*", "decoder/*", "text_embedding/*"], [{"layers": "vision/*"}], []),
        (["vision/*"], [], ["decoder", "projector", "text_embedding"]),
    ],
)
def test_what_comes_from_no_checkpoint_and_does_not_train_is_named(tmp_path, trainable, lora, expected):
    tower = str(save_tower(tmp_path / "siglip"))
    model = {"width": 16, "vision": tower, "decoder": DECODER, "lora": lora, "text_embedding": {"vocab_size": 9}}
    config = from_dict(Config, expand({"model": model}))
    assert fresh_and_frozen(jaxfusion.build(config), {"vision": tower}, trainable) == expected
    everything = fresh_and_frozen(jaxfusion.build(config), {}, trainable)
    assert ("vision" in everything) == ("vision/*" not in trainable)

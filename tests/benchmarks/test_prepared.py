"""The benchmark as it is run, on few pictures and a tiny model: the three sides learn the same."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.prepared import MODEL, main, measure
from jaxfusion.config.model import TransformerDecoderConfig, ViTConfig


def test_the_three_sides_learn_the_same(tmp_path):
    vision = ViTConfig(
        image_size=32,
        patch_size=16,
        width=8,
        num_layers=1,
        num_heads=1,
        mlp_width=8,
        class_token=False,
        scan_layers=False,
    )
    decoder = TransformerDecoderConfig(num_layers=1, num_heads=1, scan_layers=False)
    model = replace(MODEL, width=8, vision=vision, decoder=decoder)
    result = measure(tmp_path, num_records=4, rows=2, steps=1, rounds=2, model_config=model)
    losses = list(result["mean_loss"].values())
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    assert result["prepared"]["features"]["tower_ms"] > 0
    assert set(result["to_images"]) == {"pixels", "features"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rows", "0"], "--rows: 0 is not a positive"), (["--json", "no/such/x.json"], "--json: no/such is not a")],
)
def test_what_the_user_can_mend_is_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

"""Samples of many lengths, with images and without: one compilation serves them, and a run that needs more says so."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from jaxfusion.batch import Batch
from jaxfusion.config import Config
from jaxfusion.config.model import FeaturesConfig, ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig
from jaxfusion.config.run import EvaluateConfig, TrainConfig
from jaxfusion.models.vlm import build
from jaxfusion.training.compilations import counted_compilations
from jaxfusion.training.loop import train
from jaxfusion.training.metrics import read_metrics

ROWS, LENGTH, SLOTS, VOCAB, STEPS = 2, 16, 3, 7, 12
CONFIG = Config(
    model=ModelConfig(
        width=8,
        text_embedding=TextEmbeddingConfig(vocab_size=VOCAB),
        vision=FeaturesConfig(num_tokens=1, feature_width=4),
        decoder=TransformerDecoderConfig(num_layers=1, num_heads=1),
    ),
    train=TrainConfig(num_steps=STEPS, batch_size=ROWS, warmup_steps=2, log_every=1, checkpoint_every=0),
    evaluate=EvaluateConfig(every=4),
)


class Ragged:
    """Batches of one shape whose rows are filled with samples of 2 to 8 positions and up to two images; one sample a
    row where they are not packed."""

    def __init__(self, packed: bool, slots=lambda step: SLOTS):
        self.rng, self.packed, self.slots, self.taken = np.random.default_rng(0), packed, slots, 0

    def __next__(self) -> Batch:
        self.taken += 1
        slots, rng, shape = self.slots(self.taken), self.rng, (ROWS, LENGTH)
        segment_ids, positions, image_ids = np.zeros(shape, int), np.zeros(shape, int), np.zeros((ROWS, slots), int)
        visual_index = np.full(shape, -1)
        for row in range(ROWS):
            start = images = number = 0
            while start <= LENGTH - 8 and (self.packed or number == 0):
                size, seen, number = rng.integers(2, 9), rng.integers(0, 3), number + 1
                seen = min(seen, slots - images, size)
                segment_ids[row, start : start + size] = number
                positions[row, start : start + size] = np.arange(size)
                visual_index[row, start : start + seen] = images + np.arange(seen)
                image_ids[row, images : images + seen] = number
                start, images = start + size, images + seen
        return Batch(
            tokens=rng.integers(0, VOCAB, shape).astype(np.int32),
            positions=positions.astype(np.int32),
            segment_ids=segment_ids.astype(np.int32),
            targets=rng.integers(0, VOCAB, shape).astype(np.int32),
            loss_weights=(segment_ids > 0).astype(np.float32),
            prompt_mask=visual_index >= 0,
            visual_index=visual_index.astype(np.int32),
            images=rng.normal(size=(ROWS, slots, 1, 4)).astype(np.float32),
            image_segment_ids=image_ids.astype(np.int32),
            packed=self.packed,
        )

    def get_state(self) -> dict:
        return {"taken": self.taken}


def run(iterator: Ragged, workdir: Path) -> tuple[list[int], list[dict], str]:
    """Compilations up to each evaluation, every fourth step, and at the end; the rows of metrics; what was said."""
    output, counts = io.StringIO(), []
    with counted_compilations() as compilations, contextlib.redirect_stdout(output):

        def evaluate(_params) -> dict:
            counts.append(compilations())
            return {}

        train(CONFIG, build(CONFIG.model), iterator, workdir, evaluate=evaluate)
        counts.append(compilations())
    rows = [row for row in read_metrics(workdir) if "loss" in row]
    return counts, rows, output.getvalue()


@pytest.mark.parametrize("packed", [True, False])
def test_ragged_samples_compile_nothing_after_the_first_steps(tmp_path, packed):
    counts, rows, output = run(Ragged(packed), tmp_path)
    assert 0 < counts[0] == counts[1] == counts[2]
    assert [row["compilations"] for row in rows] == [1] * STEPS
    assert "compiled again" not in output
    for name in ("useful_tokens", "filled_image_slots"):
        assert len({row[name] for row in rows[1:]}) > 3


def test_batches_of_changing_shapes_are_named_in_one_line(tmp_path):
    counts, rows, output = run(Ragged(True, slots=lambda step: SLOTS + (step == 6)), tmp_path)
    assert counts[1] > counts[0] and rows[-1]["compilations"] == 2
    (line,) = [line for line in output.splitlines() if "compiled again" in line]
    assert line.startswith("step 6 had to be compiled again: images float32[2, 3, 1, 4] -> float32[2, 4, 1, 4], ")

"""What the comparison makes of its runs' losses; the trainings are `jaxfusion.experiment`'s own."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import distil


def test_students_are_compared_record_by_record(monkeypatch, tmp_path):
    """Records are harder and easier for both alike, so their difference is surer than each of the two."""
    asked = []

    def train_run(config, workdir):
        asked.append((workdir.name, config.train.seed, config.distil.weight, config.distil.teacher))
        assert Path(config.data.prepared).name == ("prepared_3" if workdir.name.startswith("top_3") else "")

    def prepare_run(config, output):
        asked.append((output.name, config.prepare.teacher_top_k, config.distil.weight, config.distil.teacher))

    def read_held_out(config, workdir):
        tokens = 1.0 + np.arange(200) % 3
        hard = np.random.default_rng(0).random(200) + 0.1 * config.train.seed
        noise = 0.01 * np.random.default_rng(len(asked)).standard_normal(200)
        return tokens * (hard - 0.05 * workdir.name.startswith("distilled") + noise), tokens

    monkeypatch.setattr(distil, "train_run", train_run)
    monkeypatch.setattr(distil, "read_held_out", read_held_out)
    monkeypatch.setattr(distil, "prepare_run", prepare_run)
    config = tmp_path / "any.py"
    config.write_text("from jaxfusion.config import default_config as get_config")
    found = distil.compare(config, config, tmp_path / "runs", seeds=2, top_k=3)
    teacher = str(tmp_path / "runs" / "teacher")
    assert asked == [
        ("teacher", 0, 0.5, ""),
        *(("alone_0", 0, 0.0, teacher), ("alone_1", 1, 0.0, teacher)),
        *(("distilled_0", 0, 0.5, teacher), ("distilled_1", 1, 0.5, teacher)),
        *(("prepared_3", 3, 0.5, teacher), ("top_3_0", 0, 0.5, teacher), ("top_3_1", 1, 0.5, teacher)),
    ]
    cost = found["top 3 - distilled"]
    assert cost.mean == pytest.approx(found["top 3"].mean - found["distilled"].mean)
    gain = found["distilled - alone"]
    assert gain.mean == pytest.approx(found["distilled"].mean - found["alone"].mean)
    assert gain.mean == pytest.approx(np.mean(gain.by_seed))
    assert -0.06 < gain.interval[0] < gain.mean < gain.interval[1] < -0.04
    low, high = found["alone"].interval
    assert high - low > 5 * (gain.interval[1] - gain.interval[0])
    assert distil._table(found).row_count == 6


def test_what_the_user_can_mend_is_one_line(capsys):
    assert distil.main(["--student", "no/such.py"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distil: no/such.py: no such config file") and error.count("\n") == 1

"""What the comparison makes of right and wrong answers; the trainings are `jaxfusion.experiment`'s own."""

import json

import numpy as np
import pytest

from benchmarks import distil


def test_students_are_compared_record_by_record(monkeypatch, tmp_path):
    """Half of the records are as hard for both, so their difference is surer than each of the two."""
    asked = []

    def train_run(config, workdir):
        asked.append((workdir.name, config.train.seed, config.distil.teacher))
        rng = np.random.default_rng(config.train.seed)
        easy = np.arange(200) % 2 == 0
        taught = workdir.name.startswith("distilled") & (rng.random(200) < 0.5)
        workdir.mkdir(parents=True)
        rows = (json.dumps({"correct": bool(x)}) for x in easy | taught)
        (workdir / "predictions.jsonl").write_text("\n".join(rows))
        return {"test_loss": 0.5 + config.train.seed}

    monkeypatch.setattr(distil, "train_run", train_run)
    config = tmp_path / "any.py"
    config.write_text("from jaxfusion.config import default_config as get_config")
    found = distil.compare(config, config, tmp_path / "runs", seeds=2)
    teacher = str(tmp_path / "runs" / "teacher")
    assert asked == [
        ("teacher", 0, ""),
        *(("alone_0", 0, ""), ("alone_1", 1, "")),
        *(("distilled_0", 0, teacher), ("distilled_1", 1, teacher)),
    ]
    assert (found["alone"].mean, found["alone"].loss) == (0.5, 1.0)
    gain = found["distilled - alone"]
    assert gain.mean == pytest.approx(found["distilled"].mean - 0.5)
    assert gain.mean == pytest.approx(np.mean(gain.by_seed))
    assert 0.15 < gain.interval[0] < gain.mean < gain.interval[1] < 0.35
    low, high = found["alone"].interval
    assert high - low > gain.interval[1] - gain.interval[0]
    assert distil._table(found).row_count == 4


def test_what_the_user_can_mend_is_one_line(capsys):
    assert distil.main(["--student", "no/such.py"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distil: no/such.py: no such config file") and error.count("\n") == 1

"""What a teacher is worth: a small model trained alone, and the same one taught by a larger one, on held-out data.

python -m benchmarks.distil

Trains the teacher, and with each seed the student twice, with the same steps on the same batches from the same first
parameters; then compares, record by record, which answers are right to the letter. The same command again goes on.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import Parser, positive
from jaxfusion.config import read_config
from jaxfusion.errors import UserError
from jaxfusion.evaluation.bootstrap import Interval, intervals, mean_of
from jaxfusion.experiment import train_run
from jaxfusion.parallel import use_cpu_cores
from jaxfusion.workdir import PREDICTIONS

SIDES = ("alone", "distilled")


class Score(NamedTuple):
    """The share of answers that are right, over records and seeds. interval: of 95 %, by resampling records.
    by_seed: of each. loss: of the held-out targets (nats), the seeds' mean; None of a difference."""

    mean: float
    interval: Interval | None
    by_seed: list[float]
    loss: float | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    try:
        args = _parser().parse_args(argv)
        Console().print(_table(compare(args.student, args.teacher, args.workdir, args.seeds, args.data_dir)))
    except UserError as error:
        print(f"distil: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, default=Path("configs/distil_student.py"), help="its config")
    parser.add_argument("--teacher", type=Path, default=Path("configs/quickstart.py"), help="its config")
    parser.add_argument("--workdir", type=Path, default=Path("runs/distil"), help="where all the runs live")
    parser.add_argument("--seeds", type=positive, default=2, help="of the student (default: 2)")
    parser.add_argument("--data-dir", default="", help="where prepared data live (default: TFDS's own)")
    return parser


def compare(student: Path, teacher: Path, workdir: Path, seeds: int, data_dir: str = "") -> dict[str, Score]:
    """By name: the teacher, both students, and what the distilled one has more than the other, paired.

    student, teacher: configs. Raises UserError as training does.
    """
    right, losses = {}, {}
    shared = {"data.data_dir": data_dir}
    read_config(student, shared)  # what is wrong with it is told now, and not after the teacher's training
    right["teacher"], losses["teacher"] = _run(teacher, shared | {"distil.teacher": ""}, [workdir / "teacher"])
    for side in SIDES:
        taught_by = str(workdir / "teacher") if side == "distilled" else ""
        places = [workdir / f"{side}_{seed}" for seed in range(seeds)]
        right[side], losses[side] = _run(student, shared | {"distil.teacher": taught_by}, places)
    if len({found.shape[1] for found in right.values()}) > 1:
        raise UserError("--teacher: it is evaluated on other records than the student; give both the same config.data")
    scores = {name: score(found, losses[name]) for name, found in right.items()}
    return scores | {"distilled - alone": score(right["distilled"] - right["alone"])}


def score(right: Float[np.ndarray, "seeds records"], loss: float | None = None) -> Score:
    """Of which answers are right, or how much righter they are."""
    found = intervals({"right": mean_of(right.mean(axis=0))})
    return Score(float(right.mean()), found.get("right"), [float(x) for x in right.mean(axis=1)], loss)


def _run(path: Path, overrides: dict[str, str], places: Sequence[Path]) -> tuple[np.ndarray, float]:
    """Trains with seed 0, 1, ... in the places: which answers are right, [seeds, records], and the mean loss."""
    right, losses = [], []
    for seed, workdir in enumerate(places):
        config = read_config(path, overrides | {"train.seed": str(seed)})
        use_cpu_cores(config.train.batch_size)
        print(f"{workdir}: {path}, seed {seed}", file=sys.stderr, flush=True)
        losses.append(train_run(config, workdir)["test_loss"])
        lines = (workdir / PREDICTIONS).read_text(encoding="utf-8").splitlines()
        right.append([float(json.loads(line)["correct"]) for line in lines])
    return np.asarray(right), float(np.mean(losses))


def _table(scores: dict[str, Score]) -> Table:
    table = Table("", "answers right (95 %)", "each seed", "held-out loss")
    for name, found in scores.items():
        sign = "+" if found.loss is None else ""
        within = f" ({found.interval[0]:{sign}.3f} to {found.interval[1]:{sign}.3f})" if found.interval else ""
        each = ", ".join(f"{x:{sign}.3f}" for x in found.by_seed)
        loss = "" if found.loss is None else f"{found.loss:.4f}"
        table.add_row(name, f"{found.mean:{sign}.3f}{within}", each, loss)
    return table


if __name__ == "__main__":
    sys.exit(main())

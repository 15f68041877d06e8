"""What a teacher is worth: a small model trained alone, and the same one taught by a larger one, on held-out data.

python -m benchmarks.distil

Trains the teacher, and with each seed the student twice, from the same first parameters, with the same tokenizer, on
the same batches; alone it gives the teacher no weight. Then compares the losses of held-out answers, record by record.
The same command again goes on.

--top-k 16 trains it once more with each seed, on data prepared with the teacher's 16 largest probabilities, and
measures both ways' samples a second in turns.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import Parser, positive
from benchmarks.training import Training
from jaxfusion.config import Config, read_config
from jaxfusion.data.loader import train_iterator
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import Layout, tokenise
from jaxfusion.errors import UserError
from jaxfusion.evaluation.bootstrap import Interval, intervals, mean_of
from jaxfusion.experiment import open_experiment, train_run
from jaxfusion.generation.score import row_scores
from jaxfusion.parallel import make_parallel, use_cpu_cores
from jaxfusion.prepare import prepare_run
from jaxfusion.teacher import teacher_of
from jaxfusion.workdir import load_run

SIDES = ("alone", "distilled")
ROWS = 50  # held-out records that are read at once


class Score(NamedTuple):
    """Nats a token of held-out answers, over records and seeds, or how much they differ. interval: of 95 %, by
    resampling records. by_seed: of each."""

    mean: float
    interval: Interval
    by_seed: list[float]


class Found(NamedTuple):
    """nats: of each record's answer. tokens: that it has, where they are learned."""

    nats: Float[np.ndarray, "seeds records"]
    tokens: Float[np.ndarray, " records"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    try:
        args = _parser().parse_args(argv)
        scores = compare(args.student, args.teacher, args.workdir, args.seeds, args.data_dir, args.top_k)
        rates = measure_rates(args.student, args.workdir, args.data_dir, args.top_k) if args.top_k else None
    except UserError as error:
        print(f"distil: {error}", file=sys.stderr)
        return 2
    Console().print(_table(scores))
    if rates:
        taught, said = (np.median(rate) for rate in rates)
        ratios = np.divide(rates[1], rates[0])
        print(
            f"samples a second: {taught:,.0f} with the teacher, {said:,.0f} with what it said; "
            f"{np.median(ratios):.2f} times as many ({ratios.min():.2f} to {ratios.max():.2f} in {len(ratios)} turns)"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, default=Path("configs/distil_student.py"), help="its config")
    parser.add_argument("--teacher", type=Path, default=Path("configs/distil_teacher.py"), help="its config")
    parser.add_argument("--workdir", type=Path, default=Path("runs/distil"), help="where all the runs live")
    parser.add_argument("--seeds", type=positive, default=3, help="of the student (default: 3)")
    parser.add_argument("--top-k", type=positive, default=0, help="of the teacher's probabilities (default: none)")
    parser.add_argument("--data-dir", default="", help="where prepared data live (default: TFDS's own)")
    return parser


def compare(
    student: Path, teacher: Path, workdir: Path, seeds: int, data_dir: str = "", top_k: int = 0
) -> dict[str, Score]:
    """By name: the teacher, both students, and what the distilled one has more than the other, paired.

    student, teacher: configs. top_k: with a third student, of the teacher's largest probabilities alone; 0: none.
    Raises UserError as training does.
    """
    data, taught = {"data.data_dir": data_dir}, {"distil.teacher": str(workdir / "teacher")}
    read_config(student, data)  # what is wrong with it is told now, and not after the teacher's training
    found = {"teacher": _run(teacher, data, [workdir / "teacher"])}
    for side in SIDES:
        weight = {"distil.weight": "0.0"} if side == "alone" else {}
        found[side] = _run(student, data | taught | weight, [workdir / f"{side}_{seed}" for seed in range(seeds)])
    alone, distilled = (found[side] for side in SIDES)
    found["distilled - alone"] = distilled._replace(nats=distilled.nats - alone.nats)
    if top_k:
        said = _said(student, workdir, data_dir, top_k)
        prepare_run(read_config(student, said | {"data.prepared": ""}), Path(said["data.prepared"]))
        name, places = f"top {top_k}", [workdir / f"top_{top_k}_{seed}" for seed in range(seeds)]
        found[name] = _run(student, said, places)
        found[f"{name} - distilled"] = distilled._replace(nats=found[name].nats - distilled.nats)
    return {name: score(*each) for name, each in found.items()}


def _said(student: Path, workdir: Path, data_dir: str, top_k: int) -> dict[str, str]:
    """The settings of a student of what the teacher has said."""
    settings = {"data.data_dir": data_dir, "distil.teacher": str(workdir / "teacher")}
    return settings | {"data.prepared": str(workdir / f"prepared_{top_k}"), "prepare.teacher_top_k": str(top_k)}


def measure_rates(
    student: Path, workdir: Path, data_dir: str, top_k: int, rounds: int = 9, steps: int = 20
) -> tuple[list[float], list[float]]:
    """Samples a second of training with the teacher and with what it has said, in turns, reading included."""
    said = _said(student, workdir, data_dir, top_k)
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        sides = []
        for number, changes in enumerate(({"data.prepared": ""}, {})):
            config = read_config(student, said | changes)
            experiment = open_experiment(config, Path(scratch))
            config, model = experiment.config, experiment.model
            prepared = experiment.source if number else None
            teacher = teacher_of(config, model, Path(scratch), prepared)(make_parallel(config.parallel))
            rows = config.train.batch_size
            iterator = train_iterator(experiment.source, experiment.reader, model.tokenizer, rows, 0)
            sides.append(stack.enter_context(Training(model, config.train, iterator, rows, teacher=teacher)))
        rates = [[side.run(steps) for side in sides] for _ in range(rounds)]
    return tuple(map(list, zip(*rates, strict=True)))


def score(nats: Float[np.ndarray, "seeds records"], tokens: Float[np.ndarray, " records"]) -> Score:
    """Of the seeds' mean. See `Found`."""
    statistic = mean_of(nats.mean(axis=0), tokens)
    by_seed = [float(row.sum() / tokens.sum()) for row in nats]
    return Score(statistic.value, intervals({"nats": statistic})["nats"], by_seed)


def _run(path: Path, overrides: dict[str, str], places: Sequence[Path]) -> Found:
    """Trains with seed 0, 1, ... in the places, and reads what each run thinks of held-out answers."""
    found = []
    for seed, workdir in enumerate(places):
        config = read_config(path, overrides | {"train.seed": str(seed)})
        use_cpu_cores(config.train.batch_size)
        print(f"{workdir}: {path}, seed {seed}", file=sys.stderr, flush=True)
        train_run(config, workdir)
        found.append(read_held_out(config, workdir))
    nats, tokens = zip(*found, strict=True)
    return Found(np.stack(nats), tokens[0])


def read_held_out(config: Config, workdir: Path) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """A trained run's nats of each of its held-out samples, and the tokens that they are of."""
    model, params = load_run(workdir)
    layout = Layout.of(model.config)
    segments = [tokenise(sample, model.tokenizer, layout) for sample in open_experiment(config, workdir).samples]
    length = max(len(segment.tokens) for segment in segments)
    nats = []
    for start in range(0, len(segments), ROWS):
        part = segments[start : start + ROWS]
        rows = [[segment] for segment in part + part[:1] * (ROWS - len(part))]  # all batches of one shape
        nats.append(-np.asarray(row_scores(model, params, pack(rows, length, layout.tokens_per_image)))[: len(part)])
    tokens = np.array([segment.loss_weights.sum() for segment in segments], np.float64)
    return np.concatenate(nats).astype(np.float64), tokens


def _table(scores: dict[str, Score]) -> Table:
    table = Table("", "held-out loss, nats a token (95 %)", "each seed")
    for name, found in scores.items():
        sign = "+" if "-" in name else ""
        low, high = found.interval
        each = ", ".join(f"{x:{sign}.4f}" for x in found.by_seed)
        table.add_row(name, f"{found.mean:{sign}.4f} ({low:{sign}.4f} to {high:{sign}.4f})", each)
    return table


if __name__ == "__main__":
    sys.exit(main())

"""report.html: what a run did and what its model says, on one page that asks nothing of the network.

A section whose file is missing is left out, and a file or line that cannot be read is named on the page: a report
is most wanted when something went wrong.
"""

import difflib
import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from jaxfusion.config import Config, to_dict
from jaxfusion.config.presets import PRESETS
from jaxfusion.errors import UserError
from jaxfusion.evaluation.curves import draw_curves, is_share
from jaxfusion.training.progress import scaled

SAMPLE_SIZE = 24
MAX_MISTAKES = 24
MAX_CARDS = 6
MINOR = re.compile(r"bleu_[123]|cider_plain")  # metrics that need no card
MAX_CLASSES = 40  # a confusion matrix with more is not readable on a page

HAN = "⺀-鿿豈-﫿！-｠"  # Chinese and Japanese characters and their punctuation
WORDS = re.compile(rf"[{HAN}]|[^\W{HAN}]+|\s+|.", re.DOTALL)


class Setting(NamedTuple):
    name: str
    value: Any
    default: Any

    @property
    def changed(self) -> bool:
        return self.value != self.default


def write_report(workdir: Path) -> Path:
    """Writes `report.html` from the config.json, metrics.jsonl, evaluation.json and predictions.jsonl of a workdir.

    Returns the report's path. Any of the four may be missing. Raises UserError where the workdir does not exist or
    the report cannot be written.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such workdir; give the folder that a run has written to")
    notes: list[str] = []
    config = _read_object(workdir / "config.json", notes)
    evaluation = _read_object(workdir / "evaluation.json", notes)
    rows = [row for row in _read_lines(workdir / "metrics.jsonl", notes) if isinstance(row.get("step"), int)]
    sample, mistakes, num_predictions, num_wrong = _choose(_read_lines(workdir / "predictions.jsonl", notes))

    metrics = dict(_flatten(evaluation.get("metrics") or {}))
    intervals = evaluation.get("intervals")
    intervals = {k: v for k, v in intervals.items() if _is_pair(v)} if isinstance(intervals, Mapping) else {}
    final = [{"step": evaluation["step"], **metrics}] if rows and "step" in evaluation else []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"show": show, "duration": duration, "words": lambda name: name.replace("_", " ")}
    environment.tests |= {"share": is_share, "han": re.compile(f"[{HAN}]").search}
    page = environment.get_template("report.html.jinja").render(
        name=workdir.resolve().name,
        evaluation=evaluation,
        metrics=metrics,
        cards=list(itertools.islice(((k, v) for k, v in metrics.items() if not MINOR.match(k)), MAX_CARDS)),
        intervals=intervals,
        last=next((row for row in reversed(rows) if "loss" in row), {}),
        num_skipped=sum(row.get("skipped_updates") or 0 for row in rows),
        finished=_finished(workdir, evaluation),
        curves=draw_curves(sorted(rows + final, key=itemgetter("step"))),
        sample=sample,
        mistakes=mistakes,
        num_predictions=num_predictions,
        num_wrong=num_wrong,
        settings=list(_settings(config, json.loads(json.dumps(to_dict(Config()))))),
        max_classes=MAX_CLASSES,
        word_diff=word_diff,
        notes=notes,
    )
    path = workdir / "report.html"
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make the workdir writable") from error
    return path


def word_diff(text: str, other: str) -> list[tuple[str, bool]]:
    """The pieces of `text`, in order, each with whether `other` lacks it there. Chinese is compared by character."""
    words, others = WORDS.findall(text), WORDS.findall(other)
    pieces: list[tuple[str, bool]] = []
    for tag, start, end, _, _ in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if end > start:
            pieces.append(("".join(words[start:end]), tag != "equal"))
    return pieces


def show(value: Any, name: str = "") -> str:
    """A value as a person reads it; a metric whose name says that it is a share as a percentage."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if is_share(name) and 0 <= value <= 1:
        return f"{100 * value:.4g}%"
    if name.endswith(("flops_per_second", "_bytes")):
        return scaled(value) + ("B" if name.endswith("_bytes") else "FLOP/s")
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds) // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{seconds:.3g} s"


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        notes.append(f"{path.name} was left out: {error}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} was left out: it holds no JSON object")
        return {}
    return value


def _read_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                yield value
            elif line.strip():
                notes.append(f"{path.name}, line {number} was left out: it is not a whole JSON object")


def _choose(predictions: Iterator[dict]) -> tuple[list[dict], list[dict], int, int]:
    """A fixed random sample (a reservoir: the file may be far larger than memory), the first mistakes, and counts."""
    rng = random.Random(0)
    sample: list[tuple[int, dict]] = []
    mistakes: list[dict] = []
    count = wrong = 0
    for count, prediction in enumerate(predictions, start=1):
        if len(sample) < SAMPLE_SIZE:
            sample.append((count, prediction))
        elif (place := rng.randrange(count)) < SAMPLE_SIZE:
            sample[place] = (count, prediction)
        if not prediction.get("correct"):
            wrong += 1
            if wrong <= MAX_MISTAKES:
                mistakes.append(prediction)
    return [prediction for _, prediction in sorted(sample, key=itemgetter(0))], mistakes, count, wrong


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value)


def _finished(workdir: Path, evaluation: Mapping[str, Any]) -> str:
    if isinstance(evaluation.get("finished"), str):
        return evaluation["finished"]
    paths = [workdir / "evaluation.json", workdir / "metrics.jsonl", workdir / "config.json"]
    times = [path.stat().st_mtime for path in paths if path.is_file()]
    return datetime.fromtimestamp(times[0]).strftime("%Y-%m-%d %H:%M") if times else ""


def _settings(values: Mapping[str, Any], defaults: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting beside its default; a room of another kind than the default's has that kind's defaults."""
    defaults = defaults if isinstance(defaults, Mapping) else {}
    for key, value in values.items():
        default = defaults.get(key)
        if not isinstance(value, Mapping):
            default = default.get("kind") if isinstance(default, Mapping) else default
            yield Setting(prefix + key, value, default)
            continue
        kind = default.get("kind") if isinstance(default, Mapping) else None
        if value.get("kind") != kind and value.get("kind") in PRESETS.get(key, {}):
            default = json.loads(json.dumps(to_dict(PRESETS[key][value["kind"]]))) | {"kind": kind}
        yield from _settings(value, default, f"{prefix}{key}.")

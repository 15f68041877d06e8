"""Training curves as small inline SVG whose colours are the page's own CSS variables, so they follow its scheme."""

import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator

MAX_POINTS = 300  # a line; more cannot be told apart on a page and only make the file heavy
MAX_SERIES = 4

# The shares among a run's meters, see `jaxfusion.training.meters`.
METERS = ("useful_tokens", "filled_image_slots", "input_bound", "mfu", "vision_mfu", "language_mfu")

# Charts of metrics that are no shares of samples, and how their names begin.
SCORES = {"CIDEr": "cider(?!_plain)", "BLEU-4": "bleu_4", "ROUGE-L": "rouge_l", "Macro F1": "macro_f1"}

# Numbers that are never drawn on a logarithmic axis.
LINEAR = re.compile("learning_rate|cider|bleu|rouge|macro_f1")

# matplotlib knows no CSS variables: it draws in these stand-ins, which are then replaced.
INK, RULE = "#000001", "#000002"
SERIES = [f"#00001{i}" for i in range(MAX_SERIES)]
CSS = {INK: "var(--muted)", RULE: "var(--rule)"} | {colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)}

STYLE = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "svg.hashsalt": "jaxfusion",  # the same curves give the same file
    "text.parse_math": False,
    "font.size": 10,
}


class Series(NamedTuple):
    """One line of a curve: its name, the CSS variable of its colour, and its last value."""

    name: str
    colour: str
    last: float


class Curve(NamedTuple):
    """A chart for the page; `svg` is markup, safe to inline."""

    title: str
    series: list[Series]
    svg: str
    small: bool


def draw_curves(rows: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """The loss, accuracy, optimizer and meters' curves of a run; those without a single number are left out.

    rows: in the order of their steps, each with a "step" and any of the metrics that `metrics.jsonl` holds.
    """
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                columns.setdefault(key, []).append((row["step"], value))
    accuracies = [key for key in columns if is_share(key) and key not in METERS]
    first = ("accuracy", "test_accuracy")  # then the others, by name
    during = sorted(key for key, points in columns.items() if len(points) > 1)  # and not at the end alone
    scores = [(title, [key for key in during if re.match(pattern, key)]) for title, pattern in SCORES.items()]
    charts = [
        ("Loss", ["loss", "test_loss", "divergence", "feature_distance"], False),
        ("Accuracy", [*first, *sorted(set(accuracies) - set(first))], False),
        *((title, keys, len(keys) == 1) for title, keys in scores),
        ("Samples a second", ["samples_per_second"], True),
        ("Real tokens a second", ["tokens_per_second"], True),
        ("Learning rate", ["learning_rate"], True),
        ("Gradient norm", ["gradient_norm"], True),
        ("Room and time", ["useful_tokens", "filled_image_slots", "input_bound"], False),
        ("Model FLOP utilisation", ["mfu", "vision_mfu", "language_mfu"], False),
        ("Model FLOP/s", ["model_flops_per_second"], True),
        ("Images a second", ["images_per_second"], True),
    ]
    drawn = ((title, {key: columns[key] for key in keys if key in columns}, small) for title, keys, small in charts)
    return [
        _curve(title, dict(itertools.islice(lines.items(), MAX_SERIES)), small)
        for title, lines, small in drawn
        if lines
    ]


def is_share(name: str) -> bool:
    """Whether a metric of this name is a share of something, between 0 and 1."""
    return name in METERS or "accuracy" in name or "exact_match" in name


def _curve(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], small: bool) -> Curve:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2, 2.1) if small else (5.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        drawn = [_thinned(points) for points in lines.values()]
        for i, (steps, values) in enumerate(drawn):
            marker = "o" if len(steps) <= 12 else None  # a lone evaluation must be seen, too
            axes.plot(steps, values, color=SERIES[i], linewidth=1.8, marker=marker, markersize=4, zorder=3 + i)
        _style(axes, np.concatenate([values for _, values in drawn]), next(iter(lines)))
        svg = _inline(figure, f"{title} by training step")
    legend = [Series(name, f"--series-{i}", points[-1][1]) for i, (name, points) in enumerate(lines.items())]
    return Curve(title, legend, svg, small)


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, averaged over as many neighbours as MAX_POINTS asks; what is not finite leaves a gap."""
    table = np.asarray(points, np.float64)
    table[~np.isfinite(table)] = np.nan
    bins = np.array_split(table, min(len(table), MAX_POINTS))
    return tuple(np.array([part.mean(axis=0) for part in bins]).T)


def _style(axes: Any, values: np.ndarray, name: str) -> None:
    values = values[np.isfinite(values)]
    plain = FuncFormatter(lambda value, _: f"{value:,g}" if abs(value) < 1e4 else EngFormatter(sep="")(value))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if is_share(name):
        axes.set_ylim(-0.02, 1.02)
    elif not LINEAR.match(name) and values.size and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=min(0, values.min(initial=0)))
    axes.yaxis.set_major_formatter(plain)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(which="both", length=0, labelcolor=INK)


def _inline(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    # Without metadata there is no RDF block, whose namespaces look like links.
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"|\sid="[\w.]+_\d+"|<style.*?</style>', "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for stand_in, variable in CSS.items():
        svg = svg.replace(stand_in, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)

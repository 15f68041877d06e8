"""The curves: what is drawn is what was measured, in the page's own colours."""

import math
import re

import numpy as np

from jaxfusion.evaluation.curves import draw_curves, is_share


def points(svg: str, series: int) -> np.ndarray:
    """The drawn coordinates [N, 2] of a series' line."""
    line = re.search(rf'<path d="([^"]*)"[^>]*stroke: var\(--series-{series}\)', svg)
    return np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", line[1]), float)


def test_lines_are_linear_in_step_and_share():
    steps, accuracy, exact = [0, 10, 30, 40], [0.0, 0.25, 1.0, 0.5], [0.5, 0.5, 0.0, 1.0]
    rows = [dict(step=s, accuracy=a, caption_exact_match=e) for s, a, e in zip(steps, accuracy, exact, strict=True)]
    (curve,) = draw_curves(rows)
    assert [line.name for line in curve.series] == ["accuracy", "caption_exact_match"]
    assert [line.last for line in curve.series] == [0.5, 1.0]
    for i, values in enumerate((accuracy, exact)):
        x, y = points(curve.svg, i).T
        np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), np.array(steps) / 40, atol=1e-4)
        # SVG's y runs downwards; the axis is fixed to [0, 1] and both lines share it.
        scale = points(curve.svg, 1)[2, 1] - points(curve.svg, 1)[3, 1]
        np.testing.assert_allclose((points(curve.svg, 1)[2, 1] - y) / scale, values, atol=1e-4)


def test_loss_over_decades_is_logarithmic():
    (curve,) = draw_curves([dict(step=i, loss=10.0**-i) for i in range(5)])
    falls = np.diff(points(curve.svg, 0)[:, 1])
    np.testing.assert_allclose(falls, falls[0], rtol=1e-4)


def test_the_learning_rate_is_linear_as_it_was_set():
    (curve,) = draw_curves([dict(step=i, learning_rate=rate) for i, rate in enumerate((0.001, 0.051, 0.101))])
    falls = np.diff(points(curve.svg, 0)[:, 1])
    np.testing.assert_allclose(falls, falls[0], rtol=1e-4)


def test_meters_have_their_own_charts():
    row = dict(step=1, accuracy=0.5, useful_tokens=0.9, input_bound=0.1, mfu=0.4, vision_mfu=0.1, language_mfu=0.3)
    charts = {curve.title: [line.name for line in curve.series] for curve in draw_curves([row])}
    assert charts == {
        "Accuracy": ["accuracy"],
        "Room and time": ["useful_tokens", "input_bound"],
        "Model FLOP utilisation": ["mfu", "vision_mfu", "language_mfu"],
    }


def test_what_is_scored_during_training_has_its_charts_and_what_is_at_the_end_alone_has_none():
    end = dict(step=9, cider=0.9, cider_plain=1.2, bleu_1=0.9, bleu_4=0.5, rouge_l=0.6, test_accuracy=0.5)
    assert [curve.title for curve in draw_curves([end])] == ["Accuracy"]
    charts = {curve.title: [line.name for line in curve.series] for curve in draw_curves([end | dict(step=5), end])}
    lines = {"Accuracy": ["test_accuracy"], "CIDEr": ["cider"], "BLEU-4": ["bleu_4"], "ROUGE-L": ["rouge_l"]}
    assert charts == lines


def test_many_rows_are_averaged_into_a_small_picture():
    rng = np.random.default_rng(0)
    rows = [dict(step=i, loss=2.0 + float(noise)) for i, noise in enumerate(rng.normal(size=60_000) * 0.1)]
    (curve,) = draw_curves(rows)
    line = points(curve.svg, 0)
    assert 100 < len(line) <= 300 and len(curve.svg) < 30_000
    assert np.ptp(line[:, 1]) < 10, "the mean of 200 noisy losses lies close to 2"


def test_a_diverged_run_leaves_a_gap():
    rows = [dict(step=i, loss=math.nan if i in (3, 4) else 1.0) for i in range(8)]
    (curve,) = draw_curves(rows)
    assert re.search(r'<path d="([^"]*)"[^>]*var\(--series-0\)', curve.svg)[1].count("M") == 2
    assert draw_curves([dict(step=i, loss=math.nan) for i in range(3)]), "no number at all still draws its axes"


def test_only_what_was_measured_is_drawn():
    assert draw_curves([]) == []
    assert draw_curves([dict(step=1, loss=None, note="text")]) == []
    titles = [curve.title for curve in draw_curves([dict(step=1, test_loss=1.0, samples_per_second=3.0)])]
    assert titles == ["Loss", "Samples a second"]


def test_svg_is_inline_and_follows_the_page():
    (curve,) = draw_curves([dict(step=1, loss=1.0), dict(step=2, loss=0.5)])
    assert curve.svg.startswith("<svg") and "http" not in curve.svg and "<style" not in curve.svg
    assert "#0000" not in curve.svg, "every stand-in colour is a CSS variable by now"
    assert curve.svg == draw_curves([dict(step=1, loss=1.0), dict(step=2, loss=0.5)])[0].svg


def test_share_names():
    assert is_share("answer_accuracy_zh") and is_share("caption_exact_match") and not is_share("test_loss")

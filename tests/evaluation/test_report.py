"""The report: complete, self-contained, escaped, and never in the way of a broken run."""

import base64
import dataclasses
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jaxfusion.config import Config, to_dict
from jaxfusion.config.presets import PRESETS
from jaxfusion.errors import UserError
from jaxfusion.evaluation.report import duration, show, word_diff, write_report

VOID = {"meta", "link", "img", "input", "br", "use", "path", "rect"}
HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """The tags with their attributes, and the text inside every element of a class."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict]] = []
        self.open: list[tuple[str, set]] = []
        self.texts: list[tuple[frozenset, str]] = []
        self.feed(self.source)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, {tag, *(dict(attrs).get("class") or "").split()}))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag, f"</{tag}> at {self.getpos()} closes something else"

    def handle_data(self, data):
        self.texts.append((frozenset().union(*(names for _, names in self.open)), data))

    def text(self, *names: str) -> str:
        return " ".join(" ".join(data for inside, data in self.texts if set(names) <= inside).split())

    def with_class(self, name: str) -> list[dict]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def png(seed: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def prediction(i: int, text: str, reference: str = "a large red 3") -> dict:
    return dict(
        id=f"test/{i}",
        image=png(i),
        prompt="Describe it.",
        reference=reference,
        prediction=text,
        correct=text == reference,
    )


def write_lines(path, rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "first & <b>best"
    folder.mkdir()
    default = Config()
    config = dataclasses.replace(
        default,
        model=dataclasses.replace(default.model, vision=PRESETS["vision"]["resnet-tiny"]),
        train=dataclasses.replace(default.train, num_steps=200),
    )
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    rows = [
        dict(step=s, loss=4 / s, accuracy=1 - 1 / s, samples_per_second=900.0, tokens_per_second=5e4, seconds=s / 5)
        for s in range(20, 201, 20)
    ]
    write_lines(folder / "metrics.jsonl", [*rows, dict(step=100, test_loss=0.5)])
    evaluation = dict(
        step=200,
        metrics={"caption_exact_match": 0.953, "test_loss": 0.25, HOSTILE: 1.0},
        intervals={"caption_exact_match": [0.94, 0.965], "test_loss": "broken", HOSTILE: [0.5, 1]},
        num_examples=1000,
        versions=dict(jax="0.10.2"),
        device="2 x imaginary accelerator",
        confusion=dict(labels=["正面", "负面"], matrix=[[8, 2], [0, 0]]),
        comparison=dict(title="Modalities", columns=["model", "accuracy"], rows=[["text alone", 0.5]]),
    )
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    texts = ["a large red 3", "a small red 5", HOSTILE]
    chinese = prediction(3, "左上角有一个小的3", "左上角有一个大的3")
    write_lines(folder / "predictions.jsonl", [prediction(i, text) for i, text in enumerate(texts)] + [chinese])
    return folder


def test_everything_is_on_the_page(workdir):
    path = write_report(workdir)
    page = Page(path)
    assert path == workdir / "report.html" and page.text("h1") == "first & <b>best"
    facts = page.text("facts")
    assert "1,000" in facts and "2 x imaginary accelerator" in facts and "Training time 40 s" in facts
    assert "jax 0.10.2" in page.text("versions")
    assert "95.3% caption exact match 94% – 96.5%" in page.text("card") and "0.25 test loss" in page.text("card")
    assert [tag for tag, _ in page.tags].count("svg") == 4
    assert "train 0.02 test loss 0.25" in page.text("keys"), "the last evaluation is on the curve, too"
    assert page.text("comparison") == "model accuracy text alone 50%"
    assert page.text("confusion") == "正面 负面 正面 8 2 负面 0 0"
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    evaluation["confusion"]["matrix"] = [[8, 1, 1], [0, 0, 0]]  # what a language model says may be no class
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    assert Page(write_report(workdir)).text("confusion") == "正面 负面 no class 正面 8 1 1 负面 0 0 0"
    images = [attrs["src"].removeprefix("data:image/png;base64,") for tag, attrs in page.tags if tag == "img"]
    assert images == [png(i) for i in (0, 1, 2, 3, 1, 2, 3)], "the sample, then the mistakes"


def test_of_several_references_all_are_shown(workdir):
    rows = [
        prediction(0, "a big 3") | dict(references=["a large red 3", "a big 3"], correct=True),
        prediction(1, "a dog") | dict(references=["a large red 3", HOSTILE]),
        prediction(2, "a cat") | dict(references="broken"),
    ]
    write_lines(workdir / "predictions.jsonl", rows)
    examples = Page(write_report(workdir)).text("example")
    assert "Reference and prediction a big 3 All references a large red 3 · a big 3" in examples
    assert f"Prediction a dog All references a large red 3 · {HOSTILE}" in examples
    assert "broken" not in examples


def test_the_page_is_self_contained(workdir):
    page = Page(write_report(workdir))
    for tag, attrs in page.tags:
        assert tag not in ("script", "iframe", "object", "embed"), tag
        for name, value in attrs.items():
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value.startswith(("#", "data:")), f"{tag} {name}={value}"
            assert not name.startswith("on"), f"{tag} {name}"
    assert "http://" not in page.source and "https://" not in page.source and "@import" not in page.source
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {a["href"][1:] for tag, a in page.tags if tag == "a"} <= targets


def test_text_from_the_run_is_escaped(workdir):
    (workdir / "config.json").write_text(f'{{"data": {{"name": "{HOSTILE}"}}}}')
    page = Page(write_report(workdir))
    assert HOSTILE not in page.source
    assert HOSTILE in page.text("prediction") and HOSTILE in page.text("tables") and HOSTILE in page.text("changed")


def test_mistakes_are_marked(workdir):
    page = Page(write_report(workdir))
    assert len(page.with_class("right")) == 1 and len(page.with_class("wrong")) == 2 * 3
    assert page.text("wrong", "verdict").count("✗ wrong") == 6 and page.text("right", "verdict") == "✓ right test/0"
    missed = [data for inside, data in page.texts if {"mark", "reference", "article"} <= inside]
    said = [data for inside, data in page.texts if {"mark", "prediction", "article"} <= inside]
    assert missed[:2] == ["large", "3"] and said[:2] == ["small", "5"]
    assert missed[-1] == "大" and said[-1] == "小"
    assert 'lang="zh-Hans"' in page.source


@pytest.mark.parametrize("kept", ["config.json", "metrics.jsonl", "evaluation.json", "predictions.jsonl", None])
def test_missing_files_are_left_out(workdir, kept):
    for path in list(workdir.iterdir()):
        if path.name != kept:
            path.unlink()
    page = Page(write_report(workdir))
    sections = {attrs["id"] for tag, attrs in page.tags if tag == "section" and "id" in attrs}
    assert (
        sections
        == {
            "config.json": {"config"},
            "metrics.jsonl": {"curves", "metrics"},
            "evaluation.json": {"metrics", "comparison", "confusion"},
            "predictions.jsonl": {"sample", "mistakes"},
            None: set(),
        }[kept]
    )
    assert not page.with_class("notes"), "a file that is missing is no fault"


def test_broken_input_is_named_and_the_rest_shown(workdir):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 220, "lo')
    (workdir / "evaluation.json").write_text('{"step": 200, ')
    (workdir / "config.json").write_text("[]")
    notes = (page := Page(write_report(workdir))).text("notes")
    assert "metrics.jsonl, line 12" in notes and "evaluation.json" in notes and "config.json" in notes
    assert page.text("card").startswith("0.02 training loss") and page.with_class("example")


def test_bad_workdirs_are_user_errors(workdir):
    with pytest.raises(UserError, match="nowhere: no such workdir"):
        write_report(workdir / "nowhere")
    (workdir / "report.html").mkdir()
    with pytest.raises(UserError, match="report.html: cannot be written"):
        write_report(workdir)


def test_changed_settings_come_first_with_their_own_kinds_defaults(workdir):
    page = Page(write_report(workdir))
    changed = [data for inside, data in page.texts if {"changed", "code"} <= inside]
    fields = ["kind", "image_size", "stage_depths", "width", "stem", "norm", "mean", "std"]
    assert changed[: len(changed) // 2] == [f"model.vision.{name}" for name in fields] + ["train.num_steps"]
    assert "model.vision.width 16 64" in page.text("changed") and "train.num_steps 200 1000" in page.text("changed")
    assert "model.encoder none none" in page.text("tr")


def test_the_sample_is_random_fixed_and_bounded(workdir):
    rows = [prediction(i, "a large red 3" if i % 2 else "b") | {"image": None} for i in range(300)]
    write_lines(workdir / "predictions.jsonl", rows)
    page = Page(write_report(workdir))
    ids = [int(data.removeprefix("test/")) for inside, data in page.texts if {"article", "id"} <= inside]
    sample, mistakes = ids[:24], ids[24:]
    assert len(set(sample)) == 24 and sample == sorted(sample) and max(sample) > 200 and min(sample) < 100
    assert mistakes == list(range(0, 48, 2))
    assert "24 drawn at random from 300; of all of them 150 are right and 150 wrong" in page.text("intro")
    assert "The first 24 of 150" in page.text("intro")
    assert page.source == write_report(workdir).read_text(encoding="utf-8")


def test_word_diff():
    text, other = "a large red 3, and  a blue 7.", "a small red 3 and a blue 9."
    pieces = word_diff(text, other)
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, differs in pieces if differs] == ["large", ",", "  ", "7"]
    assert word_diff("左上角有一个大的3", "左上角有一个小的3") == [
        ("左上角有一个", False),
        ("大", True),
        ("的3", False),
    ]
    assert word_diff("", "x") == [] and word_diff("x", "") == [("x", True)]


def test_numbers_read_well():
    assert show(0.9532, "test_accuracy") == "95.32%" and show(1.0, "accuracy") == "100%"
    assert show(0.9995, "accuracy") == "99.95%"
    assert show(12345) == "12,345" and show(0.012345) == "0.01235" and show(None) == "–" and show(12345.6) == "12,346"
    assert (duration(4.25), duration(59.9), duration(151), duration(3725)) == (
        "4.25 s",
        "1 min 0 s",
        "2 min 31 s",
        "1 h 2 min",
    )

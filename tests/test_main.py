"""The command line as people use it: every bad input is one line that names the thing and the mend, exit code 2."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import openai
import pytest
from PIL import Image

from jaxfusion import generate, load
from jaxfusion.data.images import read_image
from jaxfusion.data.messages import ask
from jaxfusion.data.video import FrameSampling, read_video
from jaxfusion.errors import UserError
from jaxfusion.generation.engine import Engine
from jaxfusion.generation.generate import prompt_segment
from jaxfusion.main import main
from jaxfusion.models.int8 import has_int8
from tests.data.test_video import clip

REPOSITORY = Path(__file__).parents[1]
QUICKSTART = str(REPOSITORY / "configs" / "quickstart.py")
TINY = (
    "--config.model.width=16",
    "--config.model.decoder.num_layers=1",
    "--config.model.decoder.num_heads=2",
    "--config.model.vision.stage_widths=(4,4,8)",
    "--config.model.text_embedding.max_positions=96",
    "--config.train.batch_size=4",
    "--config.train.num_steps=4",
    "--config.train.checkpoint_every=2",
    "--config.evaluate.num_examples=6",
    "--config.evaluate.batch_size=4",
    "--config.generate.max_new_tokens=32",
)


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    """A trained workdir and the options that made it."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    options = ["--config", QUICKSTART, "--workdir", str(workdir), f"--config.data.data_dir={small_data}", *TINY]
    options.append("--config.evaluate.full_every=2")
    assert main(options) == 0
    return workdir, options


@pytest.fixture
def fails(capsys):
    """Runs a command that has to fail, and gives its one line."""

    def check(*argv: str) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 2
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("jaxfusion: ")]
        assert len(lines) == 1, error
        assert "Traceback" not in error
        return lines[0]

    return check


def test_a_run_leaves_its_evaluation_predictions_and_report(run):
    workdir, _ = run
    record = json.loads((workdir / "evaluation.json").read_text())
    assert record["num_examples"] == 6
    assert {"caption_exact_match", "test_loss", "test_accuracy"} <= record["metrics"].keys()
    predictions = [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 6
    right = np.mean([row["prediction"] == row["reference"] for row in predictions])
    assert record["metrics"]["caption_exact_match"] == pytest.approx(right)
    low, high = record["intervals"]["test_loss"]
    assert low < record["metrics"]["test_loss"] < high
    assert read_image(workdir / "example.png").shape == (48, 48, 3)
    assert (workdir / "report.html").read_text().count("data:image/png;base64,") >= 6
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4
    (during,) = (row for row in rows if "cider" in row)  # the whole evaluation, answers and all
    assert during["step"] == 2 and during.keys() == {"step", *record["metrics"]}
    assert record["metrics"] != pytest.approx({name: during[name] for name in record["metrics"]})


def test_evaluate_and_generate_work_on_the_workdir(run, tmp_path, capsys):
    workdir, _ = run
    before = json.loads((workdir / "evaluation.json").read_text())["metrics"]
    assert main(["--mode", "evaluate", "--workdir", str(workdir)]) == 0
    after = json.loads((workdir / "evaluation.json").read_text())["metrics"]
    assert after == pytest.approx(before, abs=1e-6)
    scene = tmp_path / "scene.png"
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(scene)
    capsys.readouterr()
    options = ["--mode", "generate", "--workdir", str(workdir), "--image", str(scene), "--prompt", "what is there?"]
    assert main(options) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_a_run_on_texts_alone_goes_on_with_a_prompt(small_data, tmp_path):
    config, workdir = str(REPOSITORY / "configs" / "language_model.py"), str(tmp_path / "texts")
    sizes = [option for option in TINY if "vision" not in option]
    options = ["--config", config, "--workdir", workdir, f"--config.data.data_dir={small_data}", *sizes]
    assert main([*options, "--config.data.row_length=96", "--config.data.packing=none"]) == 0
    record = json.loads((tmp_path / "texts" / "evaluation.json").read_text())
    assert list(record["metrics"])[:3] == ["perplexity", "perplexity_en", "perplexity_zh"]
    model, _ = load(workdir)
    ids = prompt_segment(model, (ask("Anna: The "),)).tokens.tolist()
    assert ids == [model.tokenizer.bos_id, *model.tokenizer.encode("Anna: The ")]  # and nothing behind it


def test_the_same_command_again_has_nothing_left_to_train(run, capsys):
    _, options = run
    capsys.readouterr()
    assert main(options) == 0
    assert "has all of its 4 steps" in " ".join(capsys.readouterr().out.split())


def test_where_the_last_checkpoint_is_broken_the_one_before_is_evaluated_and_gone_on_from(run, tmp_path, capsys):
    workdir, options = run
    expected = json.loads((workdir / "evaluation.json").read_text())["metrics"]
    copy = Path(shutil.copytree(workdir, tmp_path / "copy"))
    (copy / "checkpoints" / "4" / "params" / "manifest.ocdbt").write_bytes(b"")
    capsys.readouterr()
    assert main(["--mode", "evaluate", "--workdir", str(copy)]) == 0
    assert "taking the parameters of step 2" in capsys.readouterr().err
    assert json.loads((copy / "evaluation.json").read_text())["step"] == 2
    assert main([str(copy) if option == str(workdir) else option for option in options]) == 0
    assert "continuing from step 2" in capsys.readouterr().out
    record = json.loads((copy / "evaluation.json").read_text())
    assert record["step"] == 4 and record["metrics"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.num_stps=3", "config.train.num_stps: there is no such setting; did you mean 'num_steps'"),
        ("--config.train.num_steps=many", "config.train.num_steps: expected int, got str 'many'"),
        ("--config.model.vision=resnet-19", "config.model.vision: 'resnet-19' is not a choice; did you mean"),
        ("--config.data.name=digit_scene", "config.data.name: there is no data set 'digit_scene'; did you mean"),
        ("--config.data.test_split=exam", "config.data.test_split: digit_scenes has no split 'exam'; choose from"),
        (
            "--config.data.task=classify",
            "record 0 of digit_scenes: there is no field 'label', which the task 'classify' reads",
        ),
        ("--config.data.prompt={question}", "config.data.prompt: {question} is nothing of the task 'caption'"),
        ("--config.data.row_length=16", "config.data.row_length: "),
        ("--config.data.row_length=100", "config.data.row_length: 100 is more than"),
        ("--config.model.vision=lookup", "config.data.test_split: a lookup table knows"),
        ("--config.data.name=coco", "config.data.path: 'coco' is a format; name its files"),
        ("--config.data.name=coco_captions", "config.data.name: TFDS cannot prepare coco_captions here"),
        ("--config.model.decoder.dropout=1.5", "config.model.decoder.dropout: 1.5 is no share"),
        ("--config.model.projector.factor=0", "config.model.projector.factor: "),
        ("--config.train.trainable=('visoin/*',)", "config.train.trainable: no parameter fits 'visoin/*'; did"),
        ("--config.train.batch_size=0", "config.train.batch_size: 0 is too small; use 1 or more"),
        ("--config.generate.top_p=2", "config.generate.top_p: 2.0 was given; it must be above 0 and at most 1"),
        ("--workdri=x", "--workdri=x: no such option; see --help"),
    ],
)
def test_wrong_settings_are_named(small_data, tmp_path, fails, argument, message):
    line = fails(
        "--config", QUICKSTART, "--workdir", tmp_path / "run", f"--config.data.data_dir={small_data}", *TINY, argument
    )
    assert line.startswith(f"jaxfusion: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--output", "x"],
            "--output: --mode train does not use it; leave it out, or choose --mode generate or export",
        ),
        (["--mode", "plan", "--profile"], "--profile: --mode plan does not use it; leave it out, or choose"),
        (["--mode", "evaluate", "--prompt", "x"], "--prompt: --mode evaluate does not use it"),
        (["--mode", "export", "--config.train.seed=1"], "--config.train.seed: --mode export does not use it"),
    ],
)
def test_options_that_a_mode_does_not_use_are_refused(fails, argv, message):
    assert fails(*argv).startswith(f"jaxfusion: {message}")


def test_missing_configs_and_workdirs_are_named(fails, tmp_path):
    assert "no such config file; did you mean" in fails("--config", QUICKSTART.replace("quickstart", "quikstart"))
    assert "--config: none was given" in fails()
    assert "--workdir: none was given" in fails("--mode", "evaluate")
    assert "no such workdir" in fails("--mode", "evaluate", "--workdir", tmp_path / "absent")
    assert "no run in it" in fails("--mode", "generate", "--workdir", tmp_path)


def test_another_configs_workdir_is_refused(run, fails):
    workdir, options = run
    line = fails(*options, "--config.model.decoder.num_layers=3")
    assert f"{workdir}: it holds a run with config.model.decoder.num_layers = 1, and here it is 3" in line
    assert "config.train.seed = 0" in fails("--mode", "evaluate", "--workdir", workdir, "--config.train.seed=1")


def test_an_unwritable_workdir_is_named(fails, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert "cannot write there" in fails("--config", QUICKSTART, "--workdir", file / "run")


def test_bad_images_are_named(run, fails, tmp_path):
    workdir, _ = run
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(good)
    truncated, text, bomb = tmp_path / "truncated.png", tmp_path / "text.png", tmp_path / "bomb.png"
    truncated.write_bytes(good.read_bytes()[:2000])
    text.write_text("not an image")
    Image.new("1", (20_000, 20_000)).save(bomb)
    for path in (tmp_path / "absent.png", truncated, text, bomb):
        line = fails("--mode", "generate", "--workdir", workdir, "--image", path)
        assert path.name in line
        assert ";" in line  # the mend


def test_a_video_is_its_frames(run, fails, tmp_path, capsys):
    workdir, _ = run
    video = tmp_path / "clip.mp4"
    video.write_bytes(clip())
    asked = [
        "--mode",
        "generate",
        "--workdir",
        str(workdir),
        "--video",
        str(video),
        "--config.generate.max_new_tokens=16",
    ]
    assert main(asked) == 0
    images = [read_video(video, FrameSampling())]
    assert capsys.readouterr().out == generate(*load(workdir), [""], images, max_new_tokens=16)[0] + "\n"
    video.write_bytes(clip()[:300])
    assert re.search("--video: the video .*clip.mp4 (is truncated|holds no)", fails(*asked))
    assert "--video: --mode chat does not use it" in fails("--mode", "chat", *asked[2:])
    line = fails(*asked, "--input", tmp_path, "--output", tmp_path / "a.jsonl")
    assert "--video: the pictures are those of --input; leave it out" in line


def test_examples_stand_before_the_question(run, fails, tmp_path, capsys):
    workdir, _ = run
    paths = [tmp_path / f"{name}.png" for name in "abq"]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((48, 48, 3), 80 * number, np.uint8)).save(path)
    asked = ["--mode", "generate", "--workdir", str(workdir), "--image", str(paths[2])]
    asked += ["--example", f"{paths[0]}=a dax", "--example", f"{paths[1]}=x = y", "--config.generate.max_new_tokens=8"]
    assert main(asked) == 0
    examples = [(paths[0], "a dax"), (paths[1], "x = y")]
    expected = generate(*load(workdir), [""], [paths[2]], examples=examples, max_new_tokens=8)
    assert capsys.readouterr().out == expected[0] + "\n"
    assert "--example: a.png is no image with its answer; write FILE=TEXT" in fails(*asked, "--example", "a.png")


def test_a_directory_is_answered_in_bulk(run, fails, tmp_path, capsys):
    workdir, _ = run
    photos, output = tmp_path / "photos", tmp_path / "captions.jsonl"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.full((60, 80, 3), 40 * number, np.uint8)).save(photos / f"{number}.png")
    (photos / "bad.png").touch()
    bulk = ["--mode", "generate", "--workdir", str(workdir), "--input", str(photos), "--output", str(output)]
    bulk.append("--config.generate.batch_size=2")
    assert main(bulk) == 0
    content = output.read_text()
    rows = {row["id"]: row for row in map(json.loads, content.splitlines())}
    assert sorted(rows) == ["0.png", "1.png", "2.png", "bad.png"]
    assert [name for name in rows if "error" in rows[name]] == ["bad.png"]
    capsys.readouterr()
    assert main(["--mode", "generate", "--workdir", str(workdir), "--image", str(photos / "2.png")]) == 0
    assert capsys.readouterr().out == rows["2.png"]["answer"] + "\n"
    about = output.with_name("captions.jsonl.about.json")
    settings = json.loads(about.read_text())
    later = {settings.pop(f"config.generate.{name}") for name in ("cache_dtype", "weights")}
    assert later == {"compute", "given"}
    about.write_text(json.dumps(settings))  # as one that was begun before there were these
    assert main(bulk) == 0
    assert "has 4 of 4 records already" in " ".join(capsys.readouterr().out.split())
    line = fails(*bulk, "--config.generate.temperature=0.5")
    assert "was begun with config.generate.temperature = 0.0, and here it is 0.5; name another file" in line
    assert "was begun with --prompt = '', and here it is 'why?'" in fails(*bulk, "--prompt", "why?")
    assert "was begun by 1 processes, and here they are 2" in fails(*bulk, "--shard", "1/2")
    assert output.read_text() == content
    assert "--shard: 2/2 is no share" in fails(*bulk, "--shard", "2/2")
    assert "config.generate.num_beams: 2 is not for --input" in fails(*bulk, "--config.generate.num_beams=2")
    assert "--output: none was given" in fails(*bulk[:-3])
    assert "--image: the pictures are those of --input" in fails(*bulk, "--image", photos / "0.png")


@pytest.mark.parametrize(
    "mode",
    [
        ["generate", "--workdir", "RUN", "--prompt", "what?"],
        ["generate", "--workdir", "RUN", "--prompt", "what?", "--config.generate.num_beams=2"],
        ["generate", "--workdir", "RUN", "--input", "OUT/asked.jsonl", "--output", "OUT/answers.jsonl"],
        ["evaluate", "--workdir", "RUN"],
        ["evaluate", "--workdir", "RUN", "--config.generate.num_beams=2"],
        ["chat", "--workdir", "RUN"],
        ["serve", "--workdir", "RUN", "--config.serve.port=0"],
        ["serve", "--checkpoint", "RUN", "--config.serve.port=0"],
    ],
    ids=["generate", "generate-beams", "bulk", "evaluate", "evaluate-beams", "chat", "serve", "serve-checkpoint"],
)
def test_every_mode_decodes_with_the_bits_that_are_set(run, fails, tmp_path, monkeypatch, mode):
    """Up to where what decodes is made; that it decodes so is for tests/generation and tests/serving."""
    workdir, _ = run
    (tmp_path / "asked.jsonl").write_text('{"prompt": "what?"}\n')

    def tell(model, params, *_, cache_dtype="compute", **__):
        raise UserError(f"weights in 8 bits: {has_int8(params['decoder'])}, keys and values: {cache_dtype}")

    monkeypatch.setattr(Engine, "__init__", lambda _, *given, **settings: tell(*given, **settings))
    monkeypatch.setattr("jaxfusion.generation.generate.beam_search", tell)
    settings = ["--config.generate.cache_dtype=int8", "--config.generate.weights=int8"]
    given = [text.replace("RUN", str(workdir)).replace("OUT", str(tmp_path)) for text in mode]
    line = fails("--mode", *given, *settings)
    assert line == "jaxfusion: weights in 8 bits: True, keys and values: int8"


def test_a_prompt_longer_than_the_context_is_refused(run, fails):
    workdir, _ = run
    line = fails("--mode", "generate", "--workdir", workdir, "--prompt", "many words " * 50)
    assert "the model's context of 96; shorten the prompt" in line


def test_an_image_token_in_a_prompt_is_only_text(run, capsys):
    workdir, _ = run
    assert main(["--mode", "generate", "--workdir", str(workdir), "--prompt", "<image>"]) == 0


def test_debug_shows_the_traceback_and_a_process_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "jaxfusion.main", "--config", str(tmp_path / "none.py")]
    processes = [
        subprocess.Popen([*command, *debug], stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for debug in ([], ["--debug"])
    ]
    quiet, loud = (process.communicate()[1] for process in processes)
    assert processes[0].returncode == 2
    assert quiet.count("\n") == 1
    assert "Traceback" in loud


def test_a_killed_run_continues_to_exactly_the_same_parameters(run, tmp_path):
    """SIGKILL from outside while the real command trains; the same command again ends where an unbroken run ends."""
    workdir, options = run
    settings = ("num_steps=20", "checkpoint_every=5", "log_every=1")

    def arguments(name: str) -> list[str]:
        renamed = [str(tmp_path / name) if option == str(workdir) else option for option in options]
        return [*renamed, *(f"--config.train.{item}" for item in settings), "--config.evaluate.num_examples=1"]

    log = tmp_path / "killed" / "metrics.jsonl"
    random_step = int(np.random.default_rng().integers(6, 16))
    command = [sys.executable, "-m", "jaxfusion.main", *arguments("killed")]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}  # sums over others are others
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment) as process:
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= random_step):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL, f"it was not killed at step {random_step}"
    for name in ("killed", "unbroken"):
        assert main(arguments(name)) == 0
    (_, resumed), (_, expected) = load(tmp_path / "killed"), load(tmp_path / "unbroken")
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)
    rows = [(row["step"], "loss" in row) for row in map(json.loads, log.read_text().splitlines())]
    assert rows == sorted(set(rows), key=lambda row: (row[0], not row[1])), "a step was logged twice"


def test_the_trained_model_is_served_and_finishes_what_is_in_flight_when_told_to_end(run):
    """SIGTERM while the real command streams an answer: it goes on to its end, and the exit is clean."""
    workdir, _ = run
    command = [sys.executable, "-m", "jaxfusion.main", "--mode", "serve", "--workdir", str(workdir)]
    command += ["--config.serve.port=0", "--config.serve.model_name=captions", "--config.serve.num_rows=2"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        url = re.match(r"jaxfusion: captions is served at (http://127\.0\.0\.1:\d+/v1)\n", line)
        assert url, line + process.stderr.read()
        with openai.OpenAI(base_url=url[1], api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["captions"]
            picture = base64.b64encode((workdir / "example.png").read_bytes()).decode()
            content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
            settings = {"model": "captions", "messages": [{"role": "user", "content": content}], "max_tokens": 80}
            expected = client.chat.completions.create(**settings).choices[0]
            stream = client.chat.completions.create(**settings, stream=True)
            next(stream)
            process.send_signal(signal.SIGTERM)
            choices = [chunk.choices[0] for chunk in stream]
        assert "".join(choice.delta.content or "" for choice in choices) == expected.message.content
        assert choices[-1].finish_reason == expected.finish_reason
        assert process.wait(60) == 0


def test_the_trained_model_chats_about_a_picture_as_generate_tells_of_it(run, fails, monkeypatch, capsys):
    workdir, _ = run
    picture = str(workdir / "example.png")
    assert main(["--mode", "generate", "--workdir", str(workdir), "--image", picture]) == 0
    letters = capsys.readouterr().out.strip()
    expected = "".join(letter for letter in letters if letter.isprintable() or letter in "\n\t")
    lines = ["/image no.png", f"/image '{picture}'", "", "/reset", f"/image {picture}", "", "/clear", "/quit", "unread"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["--mode", "chat", "--workdir", str(workdir)]) == 0
    out = capsys.readouterr().out
    assert out.count(expected) == 2 and "no.png does not exist; check the path" in out
    found = re.findall(r"\d+ tokens in .* tokens/s\), .*; (\d+) of the prompt's (\d+) positions were kept", out)
    assert len(found) == 2 and found[0][0] == "0" and 0 < int(found[1][0]) < int(found[1][1])
    assert "/clear is no command; /image PATH shows a picture" in out
    assert "config.generate.num_beams: 2 is not for --mode chat" in fails(
        "--mode", "chat", "--workdir", workdir, "--config.generate.num_beams=2"
    )


def test_what_cannot_be_served_is_told_in_a_line(run, fails, monkeypatch):
    workdir, _ = run
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = fails("--mode", "serve", "--workdir", workdir, f"--config.serve.port={port}")
    assert line.startswith(f"jaxfusion: config.serve.port: 127.0.0.1:{port} is not to be had")
    assert "--checkpoint: it stands in place of" in fails("--mode", "serve", "--workdir", workdir, "--checkpoint", "x")
    assert "config.generate.num_beams" in fails(
        "--mode", "serve", "--workdir", workdir, "--config.serve.port=0", "--config.generate.num_beams=2"
    )
    monkeypatch.setattr("jaxfusion.serving.NEEDED", ("fastapi", "not_installed"))
    line = fails("--mode", "serve", "--workdir", workdir)
    assert line == 'jaxfusion: --mode serve: not_installed cannot be imported; pip install -e ".[serve]"'

"""configs/: each is read, and what those on built-in data teach fits the rows and the context that they set."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from jaxfusion.config.convert import read_config
from jaxfusion.data.builtin import BUILTIN
from jaxfusion.evaluation.evaluate import held_out_samples
from jaxfusion.experiment import open_experiment
from jaxfusion.generation.generate import prompt_segment

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
NAMES_MORE = re.compile(r'"[\w.-]+/[\w.-]+"')  # a checkpoint, or another run
ALONE = [path for path in CONFIGS if not NAMES_MORE.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_is_for(path):
    assert path.read_text(encoding="utf-8").startswith('"""')


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_samples_fit_the_rows_and_answers_the_context(path, small_data, tmp_path):
    config = read_config(path, {})
    assert config.data.name in BUILTIN
    config = replace(config, data=replace(config.data, data_dir=str(small_data)))
    experiment = open_experiment(
        config, tmp_path
    )  # which looks at the first samples of training, and refuses long ones
    samples = held_out_samples(experiment.dataset.test, experiment.reader, 0)
    assert {sample.group for sample in samples} == set(config.data.languages)
    room = experiment.config.model.text_embedding.max_positions - config.generate.max_new_tokens
    if config.data.task != "text" and config.model.decoder.kind == "transformer":
        sizes = [prompt_segment(experiment.model, sample.messages[:-1]).size[0] for sample in samples]
        assert max(sizes) <= room
        answers = [len(experiment.model.tokenizer.encode(text)) for s in samples for text in s.references]
        assert max(answers) < config.generate.max_new_tokens

"""docs/config.md: each section of a config is in it, and what it says can be written on the command line can be."""

import re
from pathlib import Path
from typing import get_type_hints

from jaxfusion.config import Config, override

DOCUMENT = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")


def test_every_section_is_in_the_table():
    sections = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| `(\w+)`", DOCUMENT, re.MULTILINE))
    assert sections == {name: cls.__name__ for name, cls in get_type_hints(Config).items()}


def test_what_it_writes_on_the_command_line_is_taken():
    examples = dict(re.findall(r"`--config\.([\w.]+)=\"?([^`\"]+)\"?`", DOCUMENT))
    assert len(examples) == 9
    del examples["model.decoder"], examples["train.rules.0.learning_rate"]  # of a checkpoint; of a rule that is there
    config = override(Config(), examples)
    assert config.model.vision.num_layers == 6 and config.train.trainable == ("projector/*", "decoder/*")
    assert config.train.b2 is None and config.plan.largest_batch is False

"""Where a model's rooms came from: the small files of their checkpoints, kept so that export can write them again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxfusion.pretrained.checkpoint import open_checkpoint

Room = Literal["model", "decoder", "encoder", "vision"]

# Weights apart, what transformers writes beside a model, its tokenizer and its image processor.
FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


RUNS = "runs.json"


@dataclass(frozen=True)
class Origin:
    """rooms: by the config's key that named a checkpoint ("model" for a whole one): file name -> content.
    runs: rooms that were named by a run's directory, which may be gone by now; `rooms` has what that run kept."""

    rooms: Mapping[Room, Mapping[str, bytes]] = field(default_factory=dict)
    runs: frozenset[Room] = frozenset()

    @classmethod
    def read(cls, checkpoints: Mapping[Room, str | Path]) -> "Origin":
        """Of directories, files or hub ids, none of them a run's. A bare file's config.json is what the names of its
        tensors tell."""
        opened = {room: open_checkpoint(source) for room, source in checkpoints.items()}
        return cls(
            {
                room: _files(checkpoint.home) or {"config.json": json.dumps(checkpoint.config).encode()}
                for room, checkpoint in opened.items()
            }
        )

    @classmethod
    def load(cls, directory: Path) -> "Origin":
        """The inverse of `save`; empty where there is nothing."""
        rooms = sorted(path for path in directory.glob("*") if path.is_dir())
        noted = directory / RUNS
        runs = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else ()
        return cls({path.name: _files(path) for path in rooms}, frozenset(runs))

    def save(self, directory: Path) -> None:
        for room, files in self.rooms.items():
            (directory / room).mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (directory / room / name).write_bytes(content)
        if self.rooms or self.runs:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / RUNS).write_text(json.dumps(sorted(self.runs)), encoding="utf-8")


def _files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}

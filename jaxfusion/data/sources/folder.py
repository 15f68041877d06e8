"""Directories of pictures, one a class: `folder`. A record has an `image` and a `label`."""

from collections.abc import Sequence
from pathlib import Path

from jaxfusion.data.sources.files import PICTURES, files_below
from jaxfusion.data.sources.joined import Record
from jaxfusion.errors import UserError


class Folder(Sequence):
    """labels: the classes, by the order of their directories' names."""

    def __init__(self, root: Path, labels: Sequence[str] = ()) -> None:
        """labels: those of the train split, for held-out pictures; (): the directories that are there.

        Raises UserError where there is none, or one that is none of these classes.
        """
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        self.labels = tuple(labels) or tuple(path.name for path in folders)
        for folder in folders:
            if folder.name not in self.labels:
                raise UserError(f"{folder}: no class of that name is trained ({', '.join(self.labels)}); take it away")
        self._found = [
            (path, self.labels.index(folder.name)) for folder in folders for path in files_below(folder, PICTURES)
        ]

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, place: int) -> Record:
        path, label = self._found[place]
        return {"images": [path], "label": label, "origin": str(path)}

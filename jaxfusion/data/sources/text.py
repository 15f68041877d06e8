"""Plain text: `text`, a document a line, and `documents`, a document a file. A record's one field is `text`."""

from collections.abc import Sequence
from pathlib import Path

from jaxfusion.data.sources.joined import Record
from jaxfusion.data.sources.lines import Lines
from jaxfusion.errors import RecordError

SUFFIXES = (".txt", ".md", ".text")


class TextLines(Sequence):
    """The lines of a file that are not blank."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, place: int) -> Record:
        where = self._lines.where(place)
        return {"text": _decoded(self._lines[place], where), "images": [], "origin": where}


class Documents(Sequence):
    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Record:
        where = str(self.paths[place])
        try:
            content = self.paths[place].read_bytes()
        except OSError as error:
            raise RecordError(where, f"cannot be read ({error.strerror or error}); check the file") from None
        return {"text": _decoded(content, where), "images": [], "origin": where}


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()  # files of Windows may begin with a mark
    except UnicodeDecodeError as error:
        raise RecordError(where, f"not UTF-8 ({error}); write it again") from None

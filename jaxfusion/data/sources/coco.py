"""COCO's files: `coco`, captions of pictures, and `vqa`, VQA v2's questions on them with ten answers each.

A record is a picture: `caption` is all captions of it, or `questions` are all questions on it and `answers` theirs.
Format: https://cocodataset.org/#format-data and https://visualqa.org/vqa_v1_download.html (the same in v2).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxfusion.data.sources.joined import Record
from jaxfusion.data.sources.json_array import find_items
from jaxfusion.errors import RecordError, UserError

SUFFIXES = (".json",)

# Names of COCO's pictures by their number and split: of 2014 and 2015, and of 2017.
PICTURE_NAMES = ("COCO_{split}_{number:012}.jpg", "{number:012}.jpg")


# The lists in these files, and what tells their entries from what these hold.
KEYS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id",),
    "questions": ("question_id", "image_id"),
}


# Behind a list: the end of the file, or one of its other fields.
END = re.compile(
    r"\]\s*(\}\s*\Z|,\s*\"(images|annotations|questions|info|licenses?|categories|task_type|data_(sub)?type|type)\")"
)


class Broken:
    """An entry of a list that is not of its form."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Captions(Sequence):
    """The pictures of a captions file, and, behind them, what in it is broken."""

    def __init__(self, path: Path, root: Path, setting: str) -> None:
        """setting: that the path is of, for errors."""
        self.path, self.root = path, root
        content = read_lists(path, ("images", "annotations"), setting)
        self._pictures: list[tuple[int, str]] = []
        self._captions: dict[int, list[str]] = {}
        self._broken: list[tuple[str, str]] = []
        for place, entry in enumerate(content["images"]):
            where = f"{path}: images[{place}]"
            if found := self._taken(entry, {"id": int, "file_name": str}, where):
                self._pictures.append((found["id"], found["file_name"]))
                self._captions[found["id"]] = []
        for place, entry in enumerate(content["annotations"]):
            where = f"{path}: annotations[{place}]"
            if found := self._taken(entry, {"image_id": int, "caption": str}, where):
                if found["image_id"] in self._captions:
                    self._captions[found["image_id"]].append(found["caption"].strip())
                else:
                    self._broken.append((where, f"image {found['image_id']} is not among the images; take it out"))

    def _taken(self, entry: Any, form: dict[str, type], where: str) -> dict[str, Any] | None:
        try:
            return checked(entry, form, where)
        except RecordError as error:
            self._broken.append((error.where, error.reason))
            return None

    def __len__(self) -> int:
        return len(self._pictures) + len(self._broken)

    def __getitem__(self, place: int) -> Record:
        if place >= len(self._pictures):
            raise RecordError(*self._broken[place - len(self._pictures)])
        number, name = self._pictures[place]
        where = f"{self.path}: image {number} ({name})"
        if not (captions := self._captions[number]):
            raise RecordError(where, "no annotation has a caption of it; take the image out")
        return {"images": [self.root / name], "image_id": number, "caption": captions, "origin": where}


class Questions(Sequence):
    """The pictures that VQA's questions are about."""

    def __init__(self, path: Path, root: Path, content: dict[str, Any], answers: dict[int, Any]) -> None:
        """content: the file's object. answers: the annotations' entries, by the number of their question."""
        self.path, self.root, self._answers = path, root, answers
        self._split = content.get("data_subtype", "")
        by_picture: dict[Any, list[Any]] = {}
        for place, entry in enumerate(content["questions"]):
            # One without a picture is a record of its own, to be refused when its turn comes.
            number = entry.get("image_id") if isinstance(entry, dict) else None
            by_picture.setdefault(number if isinstance(number, int) else f"questions[{place}]", []).append(entry)
        self._pictures = list(by_picture.items())

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, place: int) -> Record:
        number, entries = self._pictures[place]
        where = f"{self.path}: {f'image {number}' if isinstance(number, int) else number}"
        questions, answers = [], []
        for entry in entries:
            asked = checked(entry, {"question_id": int, "question": str, "image_id": int}, where)
            here = f"{where}, question {asked['question_id']}"
            if asked["question_id"] not in self._answers:
                raise RecordError(here, "no annotation answers it; give the file that does, or take the question out")
            given = checked(self._answers[asked["question_id"]], {"answers": list}, here)["answers"]
            questions.append(asked["question"].strip())
            answers.append([checked(answer, {"answer": str}, here)["answer"] for answer in given])
        images = [self._picture(number)]
        return {"images": images, "image_id": number, "questions": questions, "answers": answers, "origin": where}

    def _picture(self, number: int) -> Path:
        paths = [self.root / name.format(split=self._split, number=number) for name in PICTURE_NAMES]
        return next((path for path in paths if path.exists()), paths[0])


def open_vqa(paths: Sequence[Path], root: Path | None, setting: str) -> list[Sequence[Record]]:
    """Of some files, in any order, the ones with questions, joined to the answers in the others.

    setting: that the paths are of. Raises UserError where one of the two kinds is missing.
    """
    questions, answers = [], {}
    for path in paths:
        content = read_lists(path, (), setting)
        if isinstance(content.get("questions"), list):
            questions.append((path, content))
        else:
            found = _list(content, "annotations", path, setting)
            answers |= {entry["question_id"]: entry for entry in found if _has_number(entry)}
    if not questions or not answers:
        missing = "questions" if not questions else "annotations"
        raise UserError(
            f"{setting}: none of {', '.join(map(str, paths))} has VQA's {missing}; name both files, as in "
            "'vqa/{questions,annotations}.json'"
        )
    return [Questions(path, root or path.parent, content, answers) for path, content in questions]


def _has_number(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("question_id"), int)


def checked(entry: Any, form: dict[str, type], where: str) -> dict[str, Any]:
    """The entry, if it has all the fields of the form. Raises RecordError where it does not."""
    if isinstance(entry, Broken):
        raise RecordError(where, entry.reason)
    if not isinstance(entry, dict):
        raise RecordError(where, f"an object is wanted and it is {entry!r:.40}; correct it")
    for name, kind in form.items():
        value = entry.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RecordError(where, f"{name!r} is {value!r:.40} and should be of type {kind.__name__}; correct it")
        if value == "" or value == []:
            raise RecordError(where, f"{name!r} is empty; correct it")
    return entry


def read_lists(path: Path, names: Sequence[str], setting: str) -> dict[str, Any]:
    """A file's object, in which lists of these names must be. Where it is damaged, these lists, or VQA's, with what is
    broken marked in them.

    Raises RecordError where the file cannot be read, and UserError where one of the lists is not there.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecordError(str(path), f"cannot be read ({error.strerror or error}); check the file") from None
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        text = raw.decode(errors="surrogateescape")
        content = {name: _salvaged(text, name) for name in names or ("questions", "annotations")}
        content = {name: found for name, found in content.items() if found is not None}
        if split := re.search(r'"data_subtype"\s*:\s*"(\w+)"', text):
            content["data_subtype"] = split[1]
    content = content if isinstance(content, dict) else {}
    for name in names:
        _list(content, name, path, setting)
    return content


def _list(content: dict[str, Any], name: str, path: Path, setting: str) -> list[Any]:
    if not isinstance(content.get(name), list):
        raise UserError(f"{setting}: {path} has no list {name!r}, as a file of COCO has; name another file")
    return content[name]


def _salvaged(text: str, name: str) -> list[Any] | None:
    opening = re.search(rf'"{name}"\s*:\s*\[', text)
    if not opening:
        return None
    found = []
    for start, end in find_items(text, opening.end(), KEYS[name], END):
        try:
            found.append(json.loads(text[start:end]))
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, start) + 1
            found.append(Broken(f"not JSON, from line {line}, character {start} of the file ({error}); correct it"))
    return found

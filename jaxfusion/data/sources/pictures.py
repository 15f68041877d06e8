"""A record's pictures, however it names them: a path, a data URL, bytes, Parquet's {"bytes", "path"}, one or a list."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxfusion.data.data_url import content_of
from jaxfusion.data.sources.joined import with_names
from jaxfusion.data.turns import entry_of
from jaxfusion.errors import RecordError, UserError

# Longer than any system's, and too long for an error.
LONGEST_PATH = 2**12


def picture_entries(record: Mapping[str, Any]) -> list[Any]:
    """What a record has under `image` and `images`, none included."""
    return [entry for name in ("image", "images") for entry in _listed(record.get(name))]


def picture_of(entry: Any, root: Path) -> Path | bytes:
    """root: what paths start from. Raises UserError for what names no picture."""
    if isinstance(entry, dict):  # as image columns of Parquet files are
        entry = entry.get("path") if entry.get("bytes") is None else entry["bytes"]
    if isinstance(entry, bytes):
        return entry
    if isinstance(entry, str) and entry:
        try:
            content = content_of(entry)
        except UserError as error:
            raise UserError(f"image: {error}; correct it") from None
        if content is not None:
            return content
        if entry[:8].lower().startswith(("http://", "https://")):
            raise UserError(f"image: {entry:.100} is on another host; download it, and give its path")
        if len(entry) <= LONGEST_PATH:
            return root / entry
    raise UserError(f"image: a path is wanted and it is {entry!r:.40}; correct it")


def video_of(entry: Any, root: Path) -> Path | bytes | list[Path | bytes]:
    """As `picture_of`: a video's file, or a list of its frames."""
    try:
        return [picture_of(frame, root) for frame in entry] if isinstance(entry, list) else picture_of(entry, root)
    except UserError as error:
        raise UserError(str(error).replace("image", "video", 1)) from None


def finished(record: dict[str, Any], where: str, root: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """The record with its pictures as `images`, a list of paths and bytes, its video as one, and with its origin.

    Those that its messages name are among them, in their order. Raises RecordError for what names no picture.
    names: further ones for fields, see `jaxfusion.data.sources.joined.with_names`.
    """
    record = with_names(record, names)
    own = picture_entries(record)
    named = [entry_of(part) for part in _image_parts(record.get("messages"))]
    if any(entry is not None for entry in named):
        rest = iter(own)
        own = [next(rest, None) if entry is None else entry for entry in named]
        own += rest
    try:
        images = [picture_of(entry, root) for entry in own]
        video = {} if record.get("video") is None else {"video": video_of(record["video"], root)}
    except (UserError, TypeError) as error:
        raise RecordError(where, str(error)) from None
    return {name: value for name, value in record.items() if name != "image"} | {
        "images": images,
        **video,
        "origin": where,
    }


def _image_parts(messages: Any) -> list[dict[str, Any]]:
    turns = [turn for turn in _listed(messages) if isinstance(turn, dict)]
    parts = [part for turn in turns for part in _listed(turn.get("content")) if isinstance(part, dict)]
    return [part for part in parts if part.get("type") in ("image", "image_url")]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]

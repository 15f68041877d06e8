"""Where the members of a tar lie, also of one that is damaged in places."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
# Blocks looked at at once for the next header, behind one that is broken.
LOOKED_AT = 1024
# Longer names and headers are damage.
LONGEST = 2**20
LONGEST_NUMBER = 20

EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
SKIPPED = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
# Links, directories and the like: whatever size they tell, nothing stands behind their headers.
EMPTY = frozenset(kind for kind in tarfile.SUPPORTED_TYPES if kind not in tarfile.REGULAR_TYPES) - {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}


class Member(NamedTuple):
    """A file in the tar. start: of its content. size: more than is there of a file that the tar ends within; -1 where
    something that is no header stands at `start`."""

    name: str
    start: int
    size: int


def members_of(path: Path, *, whole: bool = False) -> Iterator[Member]:
    """The files in a tar, in order, over its headers alone.

    Headers of POSIX (pax), GNU and old tars are known. A broken one is given as such, and the next that is whole
    is looked for, so that damage costs the members that it is in.

    whole: raise tarfile.TarError at what is broken. Raises it in any case where the file does not begin as a tar does.
    """
    with path.open("rb") as file:
        end, at, given = path.stat().st_size, 0, {}
        if end < BLOCK:
            raise tarfile.ReadError(f"it has {end} bytes")
        while at + BLOCK <= end:
            header = _header(file, at)
            if header is None:
                if _is_end(file, at):
                    return
                broken, at, given = at, _next_header(file, at + BLOCK, end), {}
                if whole or (broken == 0 and at == end):
                    raise tarfile.ReadError(f"no header at byte {broken:,}; is it an uncompressed tar?")
                yield Member("", broken, -1)
                continue
            size = 0 if header.type in EMPTY else header.size
            if header.isreg():
                size = int(given.get("size", size))
            content = at + BLOCK
            if content + size > end:
                if whole:
                    raise tarfile.ReadError("it ends within a file")
                if header.isreg():
                    yield Member(given.get("path", header.name), content, end - content + 1)
                else:
                    yield Member("", at, -1)
                at, given = _next_header(file, content, end), {}  # where the size alone is wrong there is one
                continue
            at = content + -(-size // BLOCK) * BLOCK
            if header.type in EXTENDED:
                given |= _extended(file, content, size)
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                given |= {"path": _read(file, content, size).split(b"\0")[0].decode(errors="surrogateescape")}
            elif header.type not in SKIPPED:
                if header.isreg():
                    yield Member(given.get("path", header.name), content, size)
                given = {}
        if whole and at > end:
            raise tarfile.ReadError("it ends within a file")


def _header(file: BinaryIO, at: int) -> tarfile.TarInfo | None:
    file.seek(at)
    try:
        header = tarfile.TarInfo.frombuf(file.read(BLOCK), tarfile.ENCODING, "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def _is_end(file: BinaryIO, at: int) -> bool:
    """Two blocks of nothing, or one at the very end."""
    file.seek(at)
    return not any(file.read(2 * BLOCK))


def _next_header(file: BinaryIO, at: int, end: int) -> int:
    while at < end:
        file.seek(at)
        blocks = file.read(LOOKED_AT * BLOCK)
        for offset in range(0, len(blocks), BLOCK):
            # "ustar" is in all headers that are written today; the checksum makes sure.
            if blocks[offset + 257 : offset + 262] == b"ustar" and _header(file, at + offset) is not None:
                return at + offset
        at += len(blocks)
    return end


def _extended(file: BinaryIO, start: int, size: int) -> dict[str, str]:
    """A pax header's `path` and `size`: lines of "length key=value"."""
    found, content = {}, _read(file, start, size)
    while content:
        length, _, _ = content.partition(b" ")
        if not _is_number(length) or not 0 < int(length) <= len(content):
            break
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path" or (key == b"size" and _is_number(value)):
            found[key.decode()] = value.decode(errors="surrogateescape")
        content = content[int(length) :]
    return found


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) <= LONGEST_NUMBER


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(min(size, LONGEST))

"""A pretrained checkpoint's files: finding them, and seeing from their headers alone that they are whole.

Nothing in a checkpoint is ever executed: weights are read from safetensors, never unpickled, and code beside them is
left alone. The headers are read here because the library's NumPy side knows no bfloat16, and does not say which tensor
of which file is wrong.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxfusion.errors import UserError
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.torchvision import describe

# Of the safetensors format; the numbers are bytes an element.
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
OTHERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8}
OTHERS |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}

MAX_HEADER_BYTES = 100_000_000  # as in the reference reader

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}

WANTED_FROM_HUB = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
UNWANTED_FROM_HUB = ["*/*", "consolidated*"]  # other formats' folders, and a second copy of the same weights


class Stored(NamedTuple):
    """A tensor as it lies in a file. dtype: safetensors' name. start: its first byte."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def read(self) -> np.ndarray:
        """The tensor, mapped: bytes come from the disk as they are used, and go from memory with the array."""
        dtype = np.dtype(FLOATS[self.dtype])
        if not self.num_bytes:
            return np.empty(self.shape, dtype)
        flat = np.memmap(self.file, dtype, mode="r", offset=self.start, shape=prod(self.shape))
        return np.asarray(flat).reshape(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """What is there, without any weight read.

    path:    a directory, or one .safetensors file.
    config:  its config.json. A single file may have none beside it; then this is what the names of its tensors tell,
             or empty.
    tensors: by the names in the files.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def home(self) -> Path:
        """The directory whose small files belong to the weights; of a bare file its own path, which holds none."""
        return self.path.parent if self.path.is_file() and _config_file(self.path).is_file() else self.path


def find_checkpoint(source: str | Path) -> Path:
    """A directory or file as it is; else a hub id's snapshot, downloaded where it is not in the cache.

    Raises UserError if there is neither, and for a name that the hub does not give us.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise UserError(f"{source}: no such file or directory; give a checkpoint's directory, or a hub id as org/name")
    return _download(str(source))


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Finds a checkpoint and reads all its headers.

    source: a directory with config.json and model.safetensors, or shards with an index; a .safetensors file; a hub id.
    Raises UserError for what is missing, truncated, broken or pickled, naming the file and the tensor.
    """
    path = find_checkpoint(source)
    config = _config_file(path)
    tensors = dict(_tensors(path))
    if path.is_dir() and not config.is_file():
        raise UserError(f"{path}: there is no config.json, which says what the weights are; copy it there")
    if config.is_file():
        return Checkpoint(path, read_json(config), tensors)
    return Checkpoint(path, describe(path, {name: tensor.shape for name, tensor in tensors.items()}), tensors)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError for a file that is missing or holds anything else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); copy it there") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); copy or download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: a JSON object is wanted, not a {type(value).__name__}; copy or download it again")
    return value


def family_of(checkpoint: Checkpoint, families: Mapping[str, Family]) -> Family:
    """The family of the checkpoint's model_type. Raises UserError with the known ones, the nearest first, and for
    weights that are quantised."""
    if not checkpoint.config and checkpoint.path.is_file():
        raise UserError(
            f"{checkpoint.path}: there is no config.json beside it, and its tensors are not named as those of "
            "torchvision's ResNet or VGG; copy the config.json that belongs to them there"
        )
    if quantised := checkpoint.config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"{checkpoint.path}: config.json: quantization_config: weights quantised by {method} cannot be loaded; "
            "use the checkpoint that they were made from"
        )
    model_type = checkpoint.config.get("model_type")
    if isinstance(model_type, str) and model_type in families:
        return families[model_type]
    near = get_close_matches(str(model_type), families, n=3, cutoff=0.5)
    known = ", ".join([*near, *sorted(families.keys() - set(near))])
    said = "there is no model_type" if model_type is None else f"model_type: unknown {model_type!r}"
    code = " (it comes as code, which is never run)" if "auto_map" in checkpoint.config else ""
    raise UserError(f"{checkpoint.path}: config.json: {said}{code}; known are {known}")


def read_header(file: Path) -> list[Stored]:
    """The tensors of one safetensors file. Raises UserError if it is truncated or broken.

    Source: the format's description in the safetensors repository: 8 bytes of length, JSON, then the tensors' bytes
    one after the other, without holes.
    """

    def broken(what: str) -> UserError:
        return UserError(f"{file}: {what}; copy or download it again")

    if file.suffix != ".safetensors":
        raise UserError(f"{file}: it is no .safetensors file; give the checkpoint's directory, or such a file")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise broken(f"truncated: {size} bytes are no safetensors file")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise broken(f"truncated, or no safetensors file: its header would be {length} of {size} bytes")
            text = stream.read(length)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from None
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
        header.pop("__metadata__", None)
        found = [_stored(file, 8 + length, name, entry) for name, entry in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise broken(f"its header is broken ({error})") from None
    end = 8 + length
    for tensor in sorted(found, key=lambda tensor: (tensor.start, tensor.num_bytes)):
        if tensor.start + tensor.num_bytes > size:
            wanted = tensor.start + tensor.num_bytes
            raise broken(f"truncated: {tensor.name} would end at byte {wanted:,} of {size:,}")
        if tensor.start != end:
            raise broken(f"its header is broken ({tensor.name} does not begin where the tensor before it ends)")
        end = tensor.start + tensor.num_bytes
    if end != size:
        raise broken(f"{size - end:,} bytes at its end belong to no tensor")
    return found


def _config_file(path: Path) -> Path:
    return path / "config.json" if path.is_dir() else path.with_name("config.json")


def _tensors(path: Path) -> Iterator[tuple[str, Stored]]:
    seen: dict[str, Stored] = {}
    files, owners = _files(path)
    for file in files:
        for tensor in read_header(file):
            if tensor.name in seen:
                raise UserError(f"{tensor} is in {seen[tensor.name].file.name} as well; remove one of the files")
            seen[tensor.name] = tensor
            yield tensor.name, tensor
    for name, file in owners.items():
        if name not in seen or seen[name].file.name != file:
            raise UserError(
                f"{path / INDEX}: it places {name} in {file}, which does not hold it; download the index and that file "
                "again"
            )


def _files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The files of weights, and by the index which of them holds which tensor."""
    if path.is_file() and path.suffix not in PICKLED:
        return [path], {}
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS], {}
    if (path / INDEX).is_file():
        owners = read_json(path / INDEX).get("weight_map")
        if not isinstance(owners, dict) or not owners or not all(isinstance(file, str) for file in owners.values()):
            raise UserError(f"{path / INDEX}: weight_map must map tensors to files; download it again")
        for name, file in owners.items():
            if Path(file).name != file:
                raise UserError(f"{path / INDEX}: {name}: {file!r} is not a file's name; download the index again")
            if not (path / file).is_file():
                raise UserError(f"{path / INDEX}: it names {file}, which is not there; download that file as well")
        return [path / file for file in sorted(set(owners.values()))], owners
    pickled = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in PICKLED)
    if pickled:
        raise UserError(
            f"{pickled[0]}: pickled weights may run code and are never loaded; convert them once, where you trust "
            "them, with transformers' from_pretrained(...).save_pretrained(...)"
        )
    other = ", ".join(sorted(file.name for file in path.glob("*.safetensors")))
    mend = f"name one file of it ({other})" if other else "give a checkpoint that holds safetensors"
    raise UserError(f"{path}: there is neither {WEIGHTS} nor {INDEX}; {mend}")


def _stored(file: Path, data: int, name: str, entry: Mapping[str, Any]) -> Stored:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or end < begin:
        raise ValueError(f"{name}: shape {shape} at {begin}-{end}")
    itemsize = np.dtype(FLOATS[dtype]).itemsize if dtype in FLOATS else OTHERS.get(dtype)
    if itemsize is not None and prod(shape) * itemsize != end - begin:
        raise ValueError(f"{name}: {dtype} of shape {shape} in {end - begin} bytes")
    return Stored(file, name, dtype, shape, data + begin, end - begin)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return value


def _download(repo: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ModuleNotFoundError:
        raise UserError(f"{repo}: no such directory; to load a hub id, pip install huggingface_hub") from None
    try:
        path = Path(snapshot_download(repo, allow_patterns=WANTED_FROM_HUB, ignore_patterns=UNWANTED_FROM_HUB))
        if any(path.glob("*.safetensors")):
            return path
        reason = "the repository holds no safetensors, and pickled weights are neither loaded nor downloaded"
        mend = "convert them once, where you trust them, with transformers' from_pretrained(...).save_pretrained(...)"
    except GatedRepoError:
        reason, mend = "its owner gives it on request", "ask there and log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason, mend = "no such directory, and no such repository on the hub", "check the name"
    except LocalEntryNotFoundError:
        reason, mend = "no such directory, not in the hub's cache, and the hub cannot be reached", "go online once"
    except OSError as error:
        reason = " ".join(str(error).split())
        mend = "try again"
    raise UserError(f"{repo}: {reason}; {mend}, or give a directory")

"""What a run's records depend on, prepared ones above all, and whether it has the same ones still: any difference is
refused by name."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfusion.config import Config, to_dict
from jaxfusion.config.model import Network
from jaxfusion.config.run import DataConfig
from jaxfusion.data.dataset import Dataset
from jaxfusion.data.prepared import About, Prepared, Setting, check_settings
from jaxfusion.data.sources.contents import contents_of
from jaxfusion.data.sources.mixture import Mixture
from jaxfusion.data.tokenise import Layout
from jaxfusion.errors import UserError
from jaxfusion.files import write_json
from jaxfusion.models.lora import is_adapter
from jaxfusion.models.vlm import Model, Params, init
from jaxfusion.pretrained.checkpoint import open_checkpoint
from jaxfusion.pretrained.table import flatten
from jaxfusion.text.tokenizer import Tokenizer
from jaxfusion.text.trained import TrainedTokenizer
from jaxfusion.training.checkpoint import FROZEN, PARAMS
from jaxfusion.training.trainable import trained_paths
from jaxfusion.workdir import is_run, latest_step

# Of `config.data`, what decides on samples; where rows are made of them it is free.
DATA = ("name", "train_split", "task", "label", "languages", "modalities", "segment_words", "remove_stop_words")

FILES = ("path", "fields", "labels")

# Those that are as they are by default count as not there, so that what was prepared before stays good.
LATER = ("prompt", "frames", "frame_sampling", "fps", "frame_times")

# What all networks that read pixels count as, where pixels are prepared.
NETWORK = "any network"

# Of a checkpoint's small files, those that say how pictures are prepared.
PIXELS = ("preprocessor_config.json", "processor_config.json")


def settings_of(config: Config, model: Model, num_records: int, store: str) -> dict[str, Setting]:
    """By the names that people know them by. The tower's weights, which take time to read, are not among them.

    config: with all sizes settled. num_records: of the train split.
    """
    layout, vision = Layout.of(config.model), config.model.vision
    found = {f"config.data.{name}": _plain(getattr(config.data, name)) for name in DATA}
    # Those of files alone, so that what was prepared before there were any stays good.
    found |= {f"config.data.{name}": _plain(value) for name in FILES if (value := getattr(config.data, name))}
    default = DataConfig()
    found |= {
        f"config.data.{name}": value
        for name in LATER
        if (value := getattr(config.data, name)) != getattr(default, name)
    }
    found["the number of records"] = num_records
    found["what the decoder predicts"] = layout.predict
    named = config.pretrained
    if isinstance(model.tokenizer, TrainedTokenizer) and not (named.model or named.decoder or named.encoder):
        found["config.data.vocab_size"] = config.data.vocab_size
    else:
        found["the tokenizer's fingerprint"] = _tokenizer_fingerprint(model.tokenizer)
    if vision is None or "image" not in config.data.modalities:
        return found | {"config.model.vision": None}
    found["config.model.fusion"] = layout.fusion
    # Networks are given the same pixels, whatever they are; a table of images their ids.
    found["config.model.vision.kind"] = NETWORK if isinstance(vision, Network) and store == "pixels" else vision.kind
    if isinstance(vision, Network):
        found["config.model.vision.image_size"] = vision.image_size
        if model.pixels is None:
            found["config.data.scaled_decode"] = config.data.scaled_decode
        else:
            files = (content for room in model.origin.rooms.values() for content in map(room.get, PIXELS) if content)
            found["the fingerprint of the checkpoint's image processor"] = _fingerprint(files)
    found["the positions that an image takes"] = layout.positions_per_image  # which the projector says, too
    if store == "features":
        unimportant = ("kind", "scan_layers")  # a scan computes the same
        settings = {name: value for name, value in to_dict(vision).items() if name not in unimportant}
        found |= {f"config.model.vision.{name}": _plain(value) for name, value in settings.items()}
        found["config.model.dtype"] = config.model.dtype
        found["config.train.frozen_dtype"] = config.train.frozen_dtype
    return found


def check_data(config: DataConfig, dataset: Dataset, path: Path, *, begun: bool) -> None:
    """Notes in a file how many records a run's data have, and what is in them; where it has begun, compares.

    Raises UserError where there are others now: its place in the data would be one in others. Held-out records may
    change: they leave no trace in the parameters.
    """
    parts = dataset.train.parts if isinstance(dataset.train, Mixture) else [dataset.train]
    names = ["config.data", *(f"config.data.others[{number}]" for number in range(len(parts) - 1))]
    found = {
        name: {"records": len(part), "contents": contents_of(part, settings)}
        for name, part, settings in zip(names, parts, (config, *config.others), strict=True)
    }
    if not begun:
        write_json(path, found)
    elif path.exists():  # runs from before this was noted go on as they did
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, here in found.items():
            began = before.get(name, 0)
            if not isinstance(began, dict):  # and so do those from when the number alone was
                began = {"records": began, "contents": here["contents"]}
            if began != here:
                now, then = f"{here['records']:,} records", f"{began['records']:,}"
                if now.split()[0] == then:
                    now, then = "other records", "as many different ones"
                raise UserError(
                    f"{name}: {now}, and the run in {path.parent} began with {then}; give it the same data, or choose "
                    "another --workdir"
                )


def check_made_for(prepared: Prepared, config: Config, model: Model, num_records: int) -> None:
    """Raises UserError where a run of the config would make other records than those that were prepared."""
    about = prepared.about
    ours = settings_of(config, model, num_records, about.store)
    check_settings(about.settings, ours, partial(_other_records, prepared.directory))
    if prepared.features:
        check_frozen_tower(config, model)


def _other_records(directory: Path, name: str, theirs: Setting, here: Setting) -> str:
    return (
        f"config.data.prepared: {directory} was prepared with {name} = {theirs!r}, and here it is {here!r}; change it "
        "back, or prepare the data again in another --output"
    )


def check_unchanged(prepared: Prepared, began: About, workdir: Path) -> None:
    """Raises UserError where the directory has been prepared anew since the run began with it."""
    theirs, ours = (
        about.settings
        | {"store": about.store, "variants": about.variants, "the tower's fingerprint": about.tower}
        | {f"the teacher's {name}": value for name, value in about.teacher.items() if name != "name"}
        for about in (began, prepared.about)
    )
    check_settings(
        theirs,
        ours,
        lambda name, theirs, here: (
            f"config.data.prepared: the run in {workdir} began with data prepared with {name} = {theirs!r}, and in "
            f"{prepared.directory} it is {here!r}; name the directory that it began with"
        ),
    )


def check_told(prepared: Prepared, config: Config) -> None:
    """Raises UserError where what a teacher said when the data were prepared is not what the run would hear from its
    own. Where the run's teacher is not at hand, or a hub id, which is not downloaded for that, its name has to do.

    config: with all sizes settled.
    """
    told, here = prepared.about.teacher, config.distil
    if here.features:
        raise UserError(
            f"config.distil.features: {prepared.directory} holds a teacher's probabilities and not its hidden states; "
            "set it to 0, or learn from the teacher itself, on data without config.prepare.teacher_top_k"
        )
    pairs = {
        "config.distil.temperature": (told["temperature"], here.temperature),
        "config.model.text_embedding.vocab_size": (told["rows"], config.model.text_embedding.vocab_size),
    }
    if Path(here.teacher).expanduser().exists():  # then it may lie anywhere
        pairs["the fingerprint of config.distil.teacher"] = told["fingerprint"], files_fingerprint(here.teacher)
    else:
        pairs["config.distil.teacher"] = told["name"], here.teacher
    theirs, ours = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
    check_settings(theirs, ours, partial(_other_records, prepared.directory))


def check_frozen_tower(config: Config, model: Model) -> None:
    """Raises UserError where features computed once would not be what the run's tower makes of pictures throughout."""
    vision, mend = config.model.vision, "or prepare with config.prepare.store = 'pixels'"
    if not isinstance(vision, Network) or "image" not in config.data.modalities:
        kind = vision.kind if vision is not None and "image" in config.data.modalities else "none"
        raise UserError(f"config.model.vision: {kind} computes no features of pictures; choose a network, {mend}")
    if not (config.pretrained.vision or config.pretrained.model):
        raise UserError(
            "config.model.vision: features are of a tower whose weights come from a checkpoint, and this one's begin "
            f"at random; name a checkpoint in its place, {mend}"
        )
    shapes = jax.eval_shape(lambda rng: init(model, rng), jax.random.key(0))
    for path in sorted(trained_paths(shapes, config.train.trainable)):
        if path.startswith("vision/"):
            raise UserError(
                f"config.train.trainable: {path} would train, and features are a frozen tower's; leave 'vision/*' "
                f"out, {mend}"
            )
    if adapter := next((path for path in flatten(shapes) if path.startswith("vision/") and is_adapter(path)), None):
        raise UserError(f"config.model.lora: {adapter} is in the tower, whose features are computed once; {mend[3:]}")


def check_tower(prepared: Prepared, tower: Params) -> None:
    """Raises UserError where the run's tower has other weights than the one that made the features."""
    if weights_fingerprint(tower) != prepared.about.tower:
        raise UserError(
            f"config.data.prepared: the features in {prepared.directory} are of a tower with other weights than the "
            "run's checkpoint has; name the checkpoint that made them, or prepare the data again in another --output"
        )


def weights_fingerprint(params: Params) -> str:
    """Of all weights, as they are computed with."""
    leaves = sorted(jax.tree_util.tree_leaves_with_path(params), key=lambda pair: jax.tree_util.keystr(pair[0]))
    return _fingerprint(
        part
        for path, leaf in leaves
        for part in (
            f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode(),
            # Of a copy, which goes at once: an array keeps what the host has seen of it.
            np.ascontiguousarray(jnp.copy(leaf)).reshape(-1).view(np.uint8),
        )
    )


def files_fingerprint(name: str) -> str:
    """Of a run's newest parameters, or a checkpoint's weights, as they lie in their files: nothing is held in memory.

    Raises UserError where they are not there.
    """
    home = Path(name).expanduser()
    if is_run(home):
        parts = [home / "checkpoints" / str(latest_step(home)) / PARAMS, home / FROZEN]
        files = sorted(file for part in parts for file in part.rglob("*") if file.is_file())
    else:
        checkpoint = open_checkpoint(name)
        home = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        files = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    return _fingerprint(part for file in files for part in (str(file.relative_to(home)).encode(), *_pieces(file)))


def _pieces(file: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(size):
            yield piece


def vocabulary_fingerprint(tokenizer: Tokenizer) -> str:
    """Of what turns text into ids and back."""
    return _fingerprint([_vocabulary(tokenizer), repr(tokenizer.image_id).encode()])


def _tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Of what decides on ids: its vocabulary and merges, its special tokens, and how it lays conversations out."""
    names = ("pad_id", "bos_id", "sep_id", "eos_id", "stop_ids", "image_id", "mask_id", "prefix")
    special = [getattr(tokenizer, name) for name in names]
    image = None if tokenizer.image_id is None else tokenizer.image_ids(1)
    template = tokenizer.chat_template.source if tokenizer.chat_template else None
    return _fingerprint([_vocabulary(tokenizer), repr((special, image, template)).encode()])


def _vocabulary(tokenizer: Tokenizer) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(Path(directory))
        return (Path(directory) / "tokenizer.json").read_bytes()


def _fingerprint(parts: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def _plain(value: Any) -> Setting:
    return list(value) if isinstance(value, tuple) else value

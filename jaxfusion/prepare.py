"""`--mode prepare`: a data set's train split as tokenised records with resized pictures, or a frozen tower's features,
and with a teacher's largest probabilities.

It goes on where it was killed: a shard is there as a whole or not at all.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped
from rich.console import Console

from jaxfusion.config import Config
from jaxfusion.config.run import ParallelConfig
from jaxfusion.data.bad_records import BAD_RECORDS
from jaxfusion.data.loader import prepared_columns
from jaxfusion.data.packing import ImageSlots
from jaxfusion.data.prepared import ABOUT, TOLD, About, Columns, Prepared, check_settings, shards_of, to_bytes
from jaxfusion.errors import UserError
from jaxfusion.experiment import Experiment, named_checkpoints, open_experiment
from jaxfusion.files import write_json
from jaxfusion.models.vlm import Model, Params, apply, init
from jaxfusion.parallel import make_parallel
from jaxfusion.pretrained.load import read_tower
from jaxfusion.provenance import check_frozen_tower, settings_of, weights_fingerprint
from jaxfusion.run_tokenizer import text_checkpoint
from jaxfusion.speaking_teacher import SpeakingTeacher
from jaxfusion.text.tokenizer import open_tokenizer
from jaxfusion.training.frozen import freeze
from jaxfusion.training.progress import Progress, to_go
from jaxfusion.workdir import LOCK, claimed

T = TypeVar("T")

SHARD_RECORDS = 1024
MEASURED_RECORDS = 100
SECONDS_BETWEEN_DISPLAYS = 0.2


def prepare_run(config: Config, output: Path, console: Console | None = None) -> Prepared:
    """Writes what the config says to `output`, or goes on doing so, and says what was written and measured.

    Raises UserError for a directory that holds anything else, or data prepared with other settings, and for features of
    a tower that is not frozen or does not come from a checkpoint; for a teacher as `open_teacher` does.
    """
    if config.data.prepared:
        raise UserError("config.data.prepared: --mode prepare reads the data set itself; leave it empty")
    if config.data.augment:
        raise UserError("config.data.augment: prepared pictures are the same in each visit; leave it empty")
    if config.data.episodes.ways:
        raise UserError("config.data.episodes: they are new at each visit, so nothing can be prepared; set ways to 0")
    if config.data.others:
        raise UserError("config.data.others: one data set is prepared at a time; leave the others out")
    if output.is_dir() and not (output / ABOUT).exists() and any(path.name != LOCK for path in output.iterdir()):
        raise UserError(f"--output: {output} holds something else than prepared data; name a new directory")
    with claimed(output, lambda path: (path / ABOUT).exists(), "--output"), tempfile.TemporaryDirectory() as scratch:
        learned = output / "tokenizer.json"
        tokenizer = open_tokenizer(output) if learned.exists() and not text_checkpoint(config) else None
        experiment = open_experiment(config, Path(scratch), tokenizer)
        tower = teacher = None
        if config.prepare.store == "features":
            check_frozen_tower(experiment.config, experiment.model)
            tower = FrozenTower.read(experiment.config, experiment.model)
        if config.prepare.teacher_top_k:
            teacher = SpeakingTeacher.read(experiment.config, experiment.model)
        console = console or Console()
        prepared = write_prepared(experiment, tower, output, console, teacher)
        if bad := experiment.reader.bad:
            shutil.copy(bad.file, output / BAD_RECORDS)
            text = f"{len(bad)} bad records were left out, see {output / BAD_RECORDS}; others are in their places"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        return prepared


def write_prepared(
    experiment: Experiment,
    tower: "FrozenTower | None",
    output: Path,
    console: Console,
    teacher: SpeakingTeacher | None = None,
) -> Prepared:
    """Writes the experiment's train split to a directory, or goes on doing so.

    tower: for features; None: pixels. teacher: whose largest probabilities records bring.
    """
    config, model, records = experiment.config, experiment.model, len(experiment.dataset.train)
    store = "pixels" if tower is None else "features"
    settings = settings_of(config, model, records, store)
    fingerprint, told = tower.fingerprint if tower else "", teacher.about if teacher else {}
    about = About(store, records, settings, config.prepare.variants, fingerprint, told)
    if (output / ABOUT).exists():
        before = About.read(output / ABOUT)
        _check_same(before, about, output)
        if before.complete:
            text = f"{output} has all of its {records:,} records"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            return Prepared(output)
    write_json(output / ABOUT, about.as_json())  # first: from now on the directory is of these settings
    if not text_checkpoint(config):  # learned here, or a teacher's
        model.tokenizer.save(output)
    _write_shards(experiment, tower, teacher, output, console)
    about = replace(about, complete=True)
    write_json(output / ABOUT, about.as_json())
    write_json(
        output / ABOUT, replace(about, measured=_measure(experiment, tower, teacher, Prepared(output))).as_json()
    )
    prepared = Prepared(output)
    _tell(prepared, console)
    return prepared


def _check_same(before: About, now: About, output: Path) -> None:
    theirs, ours = (
        about.settings
        | {
            "config.prepare.store": about.store,
            "config.prepare.variants": about.variants,
            "the fingerprint of the tower's weights": about.tower,
            "config.prepare.teacher_top_k": about.teacher.get("top_k", 0),
            "config.distil.temperature": about.teacher.get("temperature"),
            "the fingerprint of config.distil.teacher": about.teacher.get("fingerprint"),
            "config.model.dtype, in which config.distil.teacher speaks,": about.teacher.get("dtype"),
        }
        for about in (before, now)
    )
    check_settings(
        theirs,
        ours,
        lambda name, theirs, here: (
            f"--output: {output} holds data prepared with {name} = {theirs!r}, and here it is {here!r}; "
            "name another directory, or change it back"
        ),
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_shards(
    experiment: Experiment,
    tower: "FrozenTower | None",
    teacher: SpeakingTeacher | None,
    output: Path,
    console: Console,
) -> None:
    """All shards that are not there yet, with pictures read ahead and the models' work on one batch at a time."""
    config, records = experiment.config, len(experiment.dataset.train)
    shards = list(shards_of(output, records, SHARD_RECORDS))
    missing = [shard for shard in shards if not shard.path.exists()]
    places = [place for shard in missing for place in shard.places]
    done = records - len(places)
    with Progress(records, console, unit="record") as progress:
        if done:
            progress.say(f"{output} has {done:,} records already; going on")
        if slots := ImageSlots.of(config.model, 1, features=tower is not None):
            size = len(places) * prod(slots.shape) * jnp.dtype(slots.dtype).itemsize
            free = shutil.disk_usage(output).free
            progress.say(f"pictures to come: {size / 1e6:,.1f} MB before compression; {free / 1e6:,.0f} MB are free")
        source, tokenizer = experiment.dataset.train, experiment.model.tokenizer
        columns = prepared_columns(source, places, experiment.reader, tokenizer, config.prepare.variants)
        if teacher is not None:
            columns = teacher.add_told(columns)
        if tower is not None:
            columns = tower.replace_pictures(columns)
        contents = _shown(map(to_bytes, columns), done, progress)
        for shard in missing:
            shard.write(islice(contents, len(shard.places)))


def _shown(contents: Iterator[bytes], done: int, progress: Progress) -> Iterator[bytes]:
    """The same, with rate and time to go on display."""
    start = shown = time.monotonic()
    for number, content in enumerate(contents, 1):
        now, left = time.monotonic(), progress.num_steps - done - number
        if now - shown >= SECONDS_BETWEEN_DISPLAYS or not left:
            shown, rate = now, number / max(now - start, 1e-9)
            progress.show(done + number, f"{rate:,.0f} records/s · {to_go(left / rate)}")
        yield content


# --- the tower --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrozenTower:
    """A run's tower on all local devices.

    batch_size: pictures that it sees at once. see: uint8[batch_size, 1, H, W, 3] -> [batch_size, 1, K, D], in the
    model's dtype. fingerprint: of its weights.
    """

    batch_size: int
    see: Callable[[Shaped[np.ndarray, "B 1 H W 3"]], Float[Array, "B 1 K D"]]
    fingerprint: str

    @classmethod
    def read(cls, config: Config, model: Model) -> "FrozenTower":
        """From its checkpoint, kept and computed with as training does."""
        kept = config.train.frozen_dtype
        floats = "compute" if kept == "int8" else kept
        abstract = jax.eval_shape(
            lambda rng: freeze(model, {"vision": init(model, rng)["vision"]}, floats), jax.random.key(0)
        )
        params = freeze(model, read_tower(model, named_checkpoints(config), abstract), kept)
        return cls.of(model, params, config.train.batch_size)

    @classmethod
    def of(cls, model: Model, params: Params, batch_size: int) -> "FrozenTower":
        """params: {"vision": ...}, as a run keeps them. batch_size: rounded up to what the devices can share."""
        parallel = make_parallel(ParallelConfig(strategy="mesh"))
        look = parallel.compile(lambda params, images, axis_name=None: apply(model, params, images, method="look"))
        state = parallel.put_state(params)
        return cls(
            -(-batch_size // parallel.num_devices) * parallel.num_devices,
            lambda images: look(state, parallel.put_batch(images)),
            weights_fingerprint(params["vision"]),
        )

    def replace_pictures(self, columns: Iterator[Columns]) -> Iterator[Columns]:
        """The records, in order, with features in place of pictures."""
        waiting: tuple[list[Columns], Any] | None = None
        while batch := list(islice(columns, self.batch_size)):
            started = batch, self._start([picture for record in batch for picture in record["images"]])
            if waiting:  # one batch late, so that the device has work while pictures are read and features written
                yield from _joined(*waiting)
            waiting = started
        if waiting:
            yield from _joined(*waiting)

    def _start(self, pictures: Sequence[np.ndarray]) -> list[Float[Array, "B 1 K D"]]:
        """The last batch is filled up with repetitions, so that all have one shape."""
        parts = (np.stack(pictures[at : at + self.batch_size]) for at in range(0, len(pictures), self.batch_size))
        return [self.see(np.resize(part, (self.batch_size, *part.shape[1:]))[:, None]) for part in parts]


def _joined(batch: list[Columns], parts: list[Float[Array, "B 1 K D"]]) -> Iterator[Columns]:
    features = (picture[0] for part in parts for picture in np.asarray(part))
    for record in batch:
        own = list(islice(features, len(record["images"])))
        yield record | ({"images": np.stack(own)} if own else {})


# --- what it is worth -------------------------------------------------------------------------------------------------


def _measure(
    experiment: Experiment, tower: FrozenTower | None, teacher: SpeakingTeacher | None, prepared: Prepared
) -> dict[str, Any]:
    """Milliseconds a record, medians: to read and make it from the data set, for the models, and to read it back; and
    the bytes of what a teacher says of one visit, the mean.

    One after the other, in one thread, and from the operating system's cache, so that they can be compared.
    """
    places = np.linspace(0, len(prepared) - 1, min(MEASURED_RECORDS, len(prepared))).astype(int).tolist()
    alone = replace(experiment.reader, data=replace(experiment.config.data, num_threads=0, num_workers=0))
    # One variant, as a visit makes it.
    columns = prepared_columns(experiment.dataset.train, places, alone, experiment.model.tokenizer, variants=1)
    made, seconds = zip(*(_timed(partial(next, columns)) for _ in places), strict=True)
    found = {"records": len(places), "make_ms": _median_ms(seconds)}
    if tower is not None:
        pictures = np.stack([picture for record in made for picture in record["images"]])
        batch = np.resize(pictures, (tower.batch_size, *pictures.shape[1:]))[:, None]
        seconds = [_timed(lambda: jax.block_until_ready(tower.see(batch)))[1] / tower.batch_size for _ in range(4)]
        devices = jax.local_devices()
        found |= {"tower_ms": _median_ms(seconds[1:]), "device": f"{len(devices)} x {devices[0].device_kind}"}
    if teacher is not None:
        batch = list(islice(made, teacher.batch_size))
        seconds = [_timed(lambda: list(teacher.add_told(iter(batch))))[1] / len(batch) for _ in range(4)]
        size = np.mean([record[name].nbytes for record in teacher.add_told(iter(batch)) for name in TOLD]) * len(TOLD)
        found |= {"teacher_ms": _median_ms(seconds[1:]), "teacher_bytes": round(float(size))}
    _, seconds = zip(*(_timed(partial(prepared.__getitem__, place)) for place in places), strict=True)
    return found | {"read_ms": _median_ms(seconds)}


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _median_ms(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.median(seconds))


def _tell(prepared: Prepared, console: Console) -> None:
    about, size = prepared.about, prepared.num_bytes
    lines = [
        f"{prepared.directory}: {len(prepared):,} records of {about.store}, {size / 1e6:,.1f} MB, "
        f"{size / max(len(prepared), 1) / 1e3:,.1f} kB each",
        f"a record, medians of {about.measured['records']} in one thread: {about.gain}",
        f"train on it with --config.data.prepared={prepared.directory}",
    ]
    if about.teacher:
        lines.insert(
            1,
            f"the {about.teacher['top_k']} largest probabilities of {about.teacher['name']}: "
            f"{about.measured['teacher_bytes'] / 1e3:,.1f} kB a visit, before compression",
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

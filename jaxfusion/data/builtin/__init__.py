"""Data that comes with the package: made on this machine by TFDS builders, with no download and no TensorFlow.

source = prepare("digit_scenes", data_dir).as_data_source("train")   # len(source), source[i] -> dict
"""

import contextlib
import difflib
import importlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxfusion.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Name -> where its TFDS builder class lives; imported only when it is asked for.
BUILTIN = {
    "digit_choices": "jaxfusion.data.builtin.digit_choices:DigitChoices",
    "digit_dialogues": "jaxfusion.data.builtin.digit_dialogues:DigitDialogues",
    "digit_scenes": "jaxfusion.data.builtin.digit_scenes:DigitScenes",
    "guest_reviews": "jaxfusion.data.builtin.guest_reviews:GuestReviews",
    "handwritten_digits": "jaxfusion.data.builtin.handwritten_digits:HandwrittenDigits",
    "moving_digits": "jaxfusion.data.builtin.moving_digits:MovingDigits",
    "restaurant_reviews": "jaxfusion.data.builtin.restaurant_reviews:RestaurantReviews",
    "written_signs": "jaxfusion.data.builtin.written_signs:WrittenSigns",
}


def builder(name: str, data_dir: str | os.PathLike | None = None) -> "tfds.core.DatasetBuilder":
    """Return the TFDS builder of a built-in data set, whether its data is there already or not.

    `data_dir` is the folder that holds data sets; None is TFDS's own (`~/tensorflow_datasets`). Raises `UserError` on
    an unknown name.
    """
    if name not in BUILTIN:
        near = difflib.get_close_matches(name, BUILTIN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(BUILTIN)}"
        raise UserError(f"no built-in data set is called {name!r}; {hint}")
    module, _, cls = BUILTIN[name].partition(":")
    with _quiet():
        return getattr(importlib.import_module(module), cls)(data_dir=data_dir)


def prepare(name: str, data_dir: str | os.PathLike | None = None) -> "tfds.core.DatasetBuilder":
    """Return the builder of a built-in data set with its data in place, making it first where it is missing.

    Safe to call from several processes at once: one makes the data, the others wait for it. A run that was killed on
    the way leaves nothing that is taken for data, and the next one clears what it left. Raises `UserError` on an
    unknown name or a folder that can't be written.
    """
    made = builder(name, data_dir)
    if made.data_path.exists():
        return made
    from filelock import FileLock
    from rich.console import Console

    target = Path(made.data_dir)
    console = Console(stderr=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"), tempfile.TemporaryDirectory() as no_downloads:
            made = builder(name, data_dir)
            if made.data_path.exists():
                return made
            # Whoever left these is dead: a living maker would hold the lock.
            for abandoned in target.parent.glob(f"incomplete.*_{target.name}"):
                shutil.rmtree(abandoned)
            start = time.monotonic()
            with console.status(f"making the data set {name} ..."), _quiet():
                made.download_and_prepare(file_format="array_record", download_dir=no_downloads)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"can't write the data set {name} to {target}: {reason}; choose another data_dir") from error
    console.print(f"made the data set {name} in {time.monotonic() - start:.0f} s: {target}", soft_wrap=True)
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the prints, warnings and progress bars of TFDS to itself."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)

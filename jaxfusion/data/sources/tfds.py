"""Built-in data sets, and any that TFDS has prepared."""

import difflib
from collections.abc import Sequence
from typing import Any

from jaxfusion.config.run import DataConfig
from jaxfusion.data import builtin
from jaxfusion.data.sources.joined import Record, Renamed, names_of
from jaxfusion.errors import UserError


def open_splits(
    config: DataConfig, section: str = "config.data"
) -> tuple[Sequence[Record], Sequence[Record], tuple[str, ...]]:
    """The train and the test split and the names of the classes; a built-in data set is prepared where it is missing.

    section: of the whole config, for errors.
    Raises UserError where there is no such data set, or split, or it is not prepared.
    """
    import tensorflow_datasets as tfds

    from jaxfusion.data.sources import FORMATS

    data_dir = config.data_dir or None
    if config.name in builtin.BUILTIN:
        builder = builtin.prepare(config.name, data_dir)
    else:
        try:
            builder = tfds.builder(config.name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:
            near = difflib.get_close_matches(config.name, (*builtin.BUILTIN, *FORMATS), n=1)
            known = f"built in are {', '.join(builtin.BUILTIN)}, and formats of files are {', '.join(FORMATS)}"
            hint = f"did you mean {near[0]!r}?" if near else known
            raise UserError(f"{section}.name: there is no data set {config.name!r}; {hint}") from None
        except ImportError as error:  # some of TFDS's own builders are written with TensorFlow
            try:  # what they have prepared can be read without them
                builder = tfds.core.read_only_builder.builder_from_files(config.name, data_dir=data_dir)
            except tfds.core.DatasetNotFoundError:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"{section}.name: TFDS cannot prepare {config.name} here ({reason}); "
                    f"prepare it where TensorFlow is installed, and give the directory as {section}.data_dir"
                ) from error
        if not builder.data_path.exists():
            raise UserError(
                f"{section}.name: {config.name} is not prepared in {builder.data_path}; run `tfds build {config.name}"
                f" --file_format=array_record` or set {section}.data_dir"
            )
    features = builder.info.features
    pictures = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    decoders = {name: tfds.decode.SkipDecoding() for name in pictures} or None
    sources = []
    for key in ("train_split", "test_split"):
        split = getattr(config, key)
        if split.split("[")[0] not in builder.info.splits:
            known = ", ".join(builder.info.splits)
            raise UserError(f"{section}.{key}: {config.name} has no split {split!r}; choose from {known}")
        try:
            source = builder.as_data_source(split, decoders=decoders)
        except (ValueError, NotImplementedError) as error:  # a wrong slice, or files that are not array_record
            reason = " ".join(str(error).split())
            raise UserError(f"{section}.{key}: cannot read {split!r} of {config.name} ({reason}); change it") from error
        source = source if "image_id" in features else Numbered(source, f"{config.name} {split}")
        names = names_of(config.fields, f"{section}.fields")
        sources.append(Renamed(source, names) if names else source)
    # A plain number has no names; config.data.labels gives them then.
    classes = getattr(features[config.label], "names", ()) if config.label in features else ()
    return *sources, tuple(classes)


class Numbered(Sequence):
    """Records that are known by their number in the split, having no image_id."""

    def __init__(self, source: Sequence[Any], name: str) -> None:
        self.source, self.name = source, name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int) -> Record:
        return self.source[place] | {"origin": f"{self.name}:{place}"}

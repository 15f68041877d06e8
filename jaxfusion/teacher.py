"""The frozen teacher of a run: where it comes from, whether the model can learn from it, and that it stays the same."""

import json
from dataclasses import replace
from pathlib import Path

from jaxfusion.config import Config
from jaxfusion.config.model import ModelConfig, Network, Vision
from jaxfusion.data.tokenise import Layout
from jaxfusion.errors import UserError
from jaxfusion.files import write_json
from jaxfusion.models.vlm import Model, Params, build
from jaxfusion.pretrained.checkpoint import family_of, open_checkpoint
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.load import load, open_family_tokenizer
from jaxfusion.provenance import vocabulary_fingerprint, weights_fingerprint
from jaxfusion.text.tokenizer import Tokenizer, open_tokenizer
from jaxfusion.training.distillation import Distillation
from jaxfusion.workdir import has_checkpoint, is_run, read_workdir_config

# Whose probabilities a run learns from.
TEACHER = "teacher.json"


def teacher_tokenizer(name: str) -> Tokenizer:
    """The teacher's, which its student needs as well. Raises UserError, which names the setting, where it has none."""
    try:
        if is_run(Path(name)):
            return open_tokenizer(name)
        checkpoint = open_checkpoint(name)
        family = family_of(checkpoint, FAMILIES)
        config = family.read_config(checkpoint.config)
        found = open_family_tokenizer(checkpoint.home, family, config) if isinstance(config, ModelConfig) else None
    except UserError as error:
        raise UserError(f"config.distil.teacher: {error}") from error
    if found is None:
        raise UserError(f"config.distil.teacher: {name} has no tokenizer, so it does not generate text; name another")
    return found


def open_teacher(config: Config, student: Model, *, features: bool = False) -> tuple[Distillation, Params] | None:
    """The teacher and its parameters, in the student's compute dtype; None where the run has none.

    config: with all sizes settled. features: whether the run sees a tower's features in place of pictures.
    Raises UserError for one that is missing, and where the student's batches or vocabulary are not the teacher's.
    """
    name = config.distil.teacher
    if not name:
        return None
    try:
        teacher, params = load(name, dtype=config.model.dtype)
    except UserError as error:
        raise UserError(f"config.distil.teacher: {error}") from error
    _check_fits(config, teacher.config)
    if teacher.tokenizer is None or vocabulary_fingerprint(teacher.tokenizer) != vocabulary_fingerprint(
        student.tokenizer
    ):
        raise UserError(
            f"config.distil.teacher: {name} has another vocabulary than the run; name a teacher with the run's "
            "tokenizer, or begin a new run"
        )
    if features:
        raise UserError(
            "config.distil.teacher: it sees pictures, and config.data.prepared holds another tower's features; prepare "
            "the data with config.prepare.store = 'pixels'"
        )
    return Distillation(teacher, config.distil.temperature, config.distil.weight), params


def abstract_teacher(config: Config) -> Distillation | None:
    """The teacher without its parameters, from its config alone.

    Raises UserError as `open_teacher` does, as far as that can be told without its tokenizer.
    """
    name = config.distil.teacher
    if not name:
        return None
    try:
        if is_run(Path(name)):
            found = read_workdir_config(Path(name)).model
        else:
            checkpoint = open_checkpoint(name)
            found = family_of(checkpoint, FAMILIES).read_config(checkpoint.config)
    except UserError as error:
        raise UserError(f"config.distil.teacher: {error}") from error
    _check_fits(config, found)
    teacher = build(replace(found, dtype=config.model.dtype))
    return Distillation(teacher, config.distil.temperature, config.distil.weight)


def keep_teacher(config: Config, teacher: tuple[Distillation, Params] | None, workdir: Path) -> None:
    """Notes in the workdir whose probabilities the run learns from. Raises UserError where it goes on with another's.

    The parameters decide, not their place: a teacher may be moved, and one that has been trained on is another.
    """
    kept, name = workdir / TEACHER, config.distil.teacher
    if teacher is None and not kept.exists():
        return
    here = weights_fingerprint(teacher[1]) if teacher else None
    if not has_checkpoint(workdir):
        kept.unlink(missing_ok=True)
        if teacher:
            write_json(kept, {"teacher": name, "fingerprint": here})
        return
    began = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"teacher": "", "fingerprint": None}
    if began["fingerprint"] != here:
        theirs, ours = (f"the teacher {at}" if at else "no teacher" for at in (began["teacher"], name))
        changed = ", whose weights are others now" if began["teacher"] == name else ""
        raise UserError(
            f"config.distil.teacher: the run in {workdir} began with {theirs}, and here it is {ours}{changed}; go on "
            "as it began, or choose another --workdir"
        )


def _check_fits(config: Config, theirs: ModelConfig | Vision) -> None:
    """Raises UserError unless a batch of the student's, and what it is to say, mean the same to the teacher."""
    ours = config.model

    def refuse(what: str, mend: str) -> None:
        raise UserError(f"config.distil.teacher: {config.distil.teacher} {what}; {mend}")

    if not isinstance(theirs, ModelConfig) or Layout.of(theirs).predict != "next":
        kind = theirs.decoder.kind if isinstance(theirs, ModelConfig) else "vision tower"
        refuse(f"does not generate text (it is a {kind})", "name a run or checkpoint of a language model")
    if Layout.of(ours).predict != "next":
        refuse(f"generates text, and config.model.decoder is a {ours.decoder.kind}", "use a transformer")
    if ours.text_embedding.vocab_size not in (0, size := theirs.text_embedding.vocab_size):
        refuse(f"has {size} rows in its vocabulary", f"set config.model.text_embedding.vocab_size to {size}")
    need = min(config.data.row_length, ours.text_embedding.max_positions)
    if (context := theirs.text_embedding.max_positions) < need:
        refuse(f"has a context of {context}, and rows have {need} positions", "lower config.data.row_length")
    if ours.vision is None:
        return
    if theirs.vision is None:
        refuse("sees no images, and the model does", "name one that sees, or set config.model.vision to None")
    for what, mend, of in (
        ("kind", "choose the same kind", lambda c: "network" if isinstance(c.vision, Network) else c.vision.kind),
        ("image_size", "choose a vision room of that size", lambda c: getattr(c.vision, "image_size", 0)),
    ):
        if of(theirs) != of(ours):
            refuse(f"has vision.{what} = {of(theirs)!r}, and here it is {of(ours)!r}", mend)
    if theirs.fusion.kind != ours.fusion.kind:
        refuse(f"has fusion {theirs.fusion.kind!r}", f"set config.model.fusion to {theirs.fusion.kind!r}")
    takes, wanted = (Layout.of(model).positions_per_image for model in (theirs, ours))
    if takes != wanted:
        refuse(f"gives an image {takes} positions, and here it has {wanted}", "choose a projector with as many")

"""The frozen teacher of a run: where it comes from, whether the model can learn from it, and that it stays the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from jaxfusion.config import Config
from jaxfusion.config.model import ModelConfig, Network, Vision
from jaxfusion.data.prepared import ABOUT, About, Prepared
from jaxfusion.data.tokenise import Layout
from jaxfusion.errors import UserError
from jaxfusion.files import write_json
from jaxfusion.models.vlm import Model, Params, build
from jaxfusion.parallel import Parallel
from jaxfusion.pretrained.checkpoint import family_of, open_checkpoint
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.load import Shardings, load, open_family_tokenizer, with_room_for
from jaxfusion.pretrained.table import flatten, unflatten
from jaxfusion.provenance import check_told, vocabulary_fingerprint, weights_fingerprint
from jaxfusion.text.tokenizer import Tokenizer, open_tokenizer
from jaxfusion.training.distillation import Distillation, FromTopK
from jaxfusion.workdir import has_checkpoint, is_run, read_workdir_config

# Whose probabilities a run learns from.
TEACHER = "teacher.json"

# What `train` asks for a teacher.
Asked = Callable[[Parallel], tuple[Distillation | FromTopK, Params | None]]


def teacher_tokenizer(name: str) -> Tokenizer:
    """The teacher's, which its student needs as well. Raises UserError, which names the setting, where it has none."""
    found = _describe(name)[1]
    if found is None:
        raise UserError(f"config.distil.teacher: {name} has no tokenizer, so it does not generate text; name another")
    return found


def with_teachers_rows(config: Config, workdir: Path) -> Config:
    """The config with as many rows in its vocabulary as the teacher has in its own, where it leaves them open (0).

    They may be more than the tokenizer's. Once the run has begun, its workdir tells.
    """
    if config.model.text_embedding.vocab_size or not config.distil.teacher:
        return config
    if has_checkpoint(workdir):
        rows = read_workdir_config(workdir).model.text_embedding.vocab_size
    elif told := _told(config):
        rows = told["rows"]
    else:
        found = _describe(config.distil.teacher)[0]
        rows = found.text_embedding.vocab_size if isinstance(found, ModelConfig) else 0
    text = replace(config.model.text_embedding, vocab_size=rows)
    return replace(config, model=replace(config.model, text_embedding=text))


def teacher_of(config: Config, student: Model, workdir: Path, prepared: Prepared | None = None) -> Asked | None:
    """What `train` asks for the run's teacher, which is read there and then; None where the run has none.

    config: with all sizes settled. prepared: what the run trains on, where that is prepared data; it may hold all that
    the teacher says. Asked, or here, it raises UserError as `open_teacher` does, and where the run in the workdir began
    with another one.
    """
    if not config.distil.teacher:
        keep_teacher(config, None, workdir)
        return None
    if prepared is not None and prepared.about.teacher:
        return partial(_listen, config, workdir, prepared)
    if prepared is not None and prepared.features:
        raise UserError(
            "config.distil.teacher: it sees pictures, and config.data.prepared holds another tower's features; prepare "
            "the data with config.prepare.store = 'pixels', or with config.prepare.teacher_top_k"
        )
    return partial(_take, config, student, workdir)


def _listen(config: Config, workdir: Path, prepared: Prepared, parallel: Parallel) -> tuple[FromTopK, None]:
    check_told(prepared, config)
    told = prepared.about.teacher
    keep_teacher(config, f"{told['fingerprint']}, top {told['top_k']}", workdir)
    return FromTopK(told["top_k"], config.distil.temperature, config.distil.weight), None


def _take(config: Config, student: Model, workdir: Path, parallel: Parallel) -> tuple[Distillation, Params]:
    """The only copy of the parameters is the one that is placed."""
    distillation, params = open_teacher(config, student, parallel.place)
    keep_teacher(config, weights_fingerprint(params), workdir)
    leaves = flatten(params)
    del params
    for path in leaves:
        leaves |= parallel.put_state({path: leaves[path]})  # and what it was is gone
    return distillation, unflatten(leaves)


def open_teacher(config: Config, student: Model, shardings: Shardings = None) -> tuple[Distillation, Params]:
    """The teacher and its parameters, in the student's compute dtype.

    config: with all sizes settled, and a teacher. shardings: as in `load`.
    Raises UserError for one that is missing, and where the student's batches or vocabulary are not the teacher's.
    """
    name = config.distil.teacher
    _check_fits(config, _describe(name)[0])  # before any weight is read
    try:
        teacher, params = load(name, dtype=config.model.dtype, shardings=shardings)
    except UserError as error:
        raise UserError(f"config.distil.teacher: {error}") from error
    if teacher.tokenizer is None or vocabulary_fingerprint(teacher.tokenizer) != vocabulary_fingerprint(
        student.tokenizer
    ):
        raise UserError(
            f"config.distil.teacher: {name} has another vocabulary than the run; name a teacher with the run's "
            "tokenizer, or begin a new run"
        )
    return _distillation(config, teacher), params


def abstract_teacher(config: Config) -> tuple[Distillation | FromTopK, int] | None:
    """The teacher without its parameters, and the rows of its vocabulary, from its config alone.

    Raises UserError as `open_teacher` does, as far as that can be told without its tokenizer.
    """
    if not config.distil.teacher:
        return None
    if told := _told(config):
        return FromTopK(told["top_k"], config.distil.temperature, config.distil.weight), told["rows"]
    found, _ = _describe(config.distil.teacher)
    _check_fits(config, found)
    teacher = build(replace(found, dtype=config.model.dtype))
    return _distillation(config, teacher), found.text_embedding.vocab_size


def _distillation(config: Config, teacher: Model) -> Distillation:
    settings = config.distil
    return Distillation(teacher, settings.temperature, settings.weight, settings.features)


def _told(config: Config) -> dict:
    """What prepared.json notes of a teacher; empty where nothing was prepared, or without one."""
    return About.read(Path(config.data.prepared) / ABOUT).teacher if config.data.prepared else {}


def _describe(name: str) -> tuple[ModelConfig | Vision, Tokenizer | None]:
    """The config that `load` gives the teacher, and its tokenizer. Raises UserError, which names the setting."""
    try:
        if is_run(Path(name)):
            return read_workdir_config(Path(name)).model, open_tokenizer(name)
        checkpoint = open_checkpoint(name)
        family = family_of(checkpoint, FAMILIES)
        config = family.read_config(checkpoint.config)
        if not isinstance(config, ModelConfig):
            return config, None
        tokenizer = open_family_tokenizer(checkpoint.home, family, config)
    except UserError as error:
        raise UserError(f"config.distil.teacher: {error}") from error
    if tokenizer is not None and (tokenizer.image_id or 0) >= config.text_embedding.vocab_size:
        config = with_room_for(tokenizer, config)
    return config, tokenizer


def keep_teacher(config: Config, fingerprint: str | None, workdir: Path) -> None:
    """Notes in the workdir whose probabilities the run learns from. Raises UserError where it goes on with another's.

    fingerprint: of the teacher's parameters, which decide, and not their place: a teacher may be moved, and one that
    has been trained on is another. None: the run has no teacher.
    """
    kept, name = workdir / TEACHER, config.distil.teacher
    if not has_checkpoint(workdir):
        kept.unlink(missing_ok=True)
        if fingerprint:
            write_json(kept, {"teacher": name, "fingerprint": fingerprint})
        return
    began = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"teacher": "", "fingerprint": None}
    if began["fingerprint"] != fingerprint:
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
    if (known := getattr(theirs.vision, "num_images", 0)) < (wanted := getattr(ours.vision, "num_images", 0)):
        refuse(f"knows {known} images, and the model's table has {wanted}", "lower config.model.vision.num_images")
    if theirs.fusion.kind != ours.fusion.kind:
        refuse(f"has fusion {theirs.fusion.kind!r}", f"set config.model.fusion to {theirs.fusion.kind!r}")
    takes, wanted = (Layout.of(model).positions_per_image for model in (theirs, ours))
    if takes != wanted:
        refuse(f"gives an image {takes} positions, and here it has {wanted}", "choose a projector with as many")

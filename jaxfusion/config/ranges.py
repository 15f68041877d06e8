"""Numbers that a run's settings must not fall below, checked before anything starts."""

import math
from operator import attrgetter
from typing import Any

from jaxfusion.errors import UserError

LEAST = {
    "prepare.teacher_top_k": 0,
    "train.num_steps": 1,
    "train.batch_size": 1,
    "train.accumulate": 1,
    "train.warmup_steps": 0,
    "train.learning_rate": 0.0,
    "train.weight_decay": 0.0,
    "train.clip_norm": 0.0,
    "train.z_loss": 0.0,
    "train.label_smoothing": 0.0,
    "train.seed": 0,
    "train.checkpoint_every": 0,
    "train.log_every": 0,
    "train.max_skipped": 0,
    "train.warn_stalled": 0.0,
    "train.keep_every": 0,
    "data.row_length": 1,
    "data.images_per_row": 0,
    "data.frames": 1,
    "data.episodes.ways": 0,
    "data.episodes.shots": 1,
    "data.episodes.held_out": 0,
    "data.episodes.own_names": 1,
    "data.max_bad_records": 0,
    "data.weight": 0.0,
    "data.epochs": 0.0,
    "data.temperature": 1.0,
    "data.num_threads": 0,
    "data.num_workers": 0,
    "evaluate.every": 0,
    "evaluate.full_every": 0,
    "evaluate.num_examples": 0,
    "evaluate.batch_size": 1,
    "evaluate.support_records": 0,
    "parallel.data": 0,
    "parallel.fsdp": 1,
    "parallel.tensor": 1,
    "prepare.variants": 1,
    "generate.max_new_tokens": 1,
    "generate.seed": 0,
    "generate.num_beams": 1,
    "generate.batch_size": 1,
    "generate.num_positions": 1,
    "generate.prefix_bytes": 0,
    "serve.port": 0,
    "serve.num_rows": 1,
    "serve.num_positions": 2,
    "serve.prefix_bytes": 0,
    "serve.max_waiting": 1,
    "serve.max_images": 1,
    "serve.max_image_bytes": 1,
    "serve.max_image_pixels": 1,
    "serve.max_request_bytes": 1,
    "serve.timeout": 1.0,
    "serve.shutdown_seconds": 0,
}


def check_ranges(config: Any) -> None:
    """Raises UserError, by the setting's full name, for a number that means nothing."""
    for name, least in LEAST.items():
        _check(name, attrgetter(name)(config), least)
    if config.data.fps <= 0:
        raise UserError(f"config.data.fps: {config.data.fps} is no rate; use more than 0 frames a second")
    train, evaluate = config.train, config.evaluate
    if train.keep_every and (not train.checkpoint_every or train.keep_every % train.checkpoint_every):
        raise UserError(
            f"config.train.keep_every: {train.keep_every} is no multiple of checkpoint_every "
            f"({train.checkpoint_every}); make it one, or 0"
        )
    if train.keep_best and not (evaluate.every or evaluate.full_every):
        raise UserError(
            f"config.train.keep_best: there is no {train.keep_best} before training ends; set config.evaluate.every"
        )
    for index, rule in enumerate(config.train.rules):
        if not rule.globs:
            raise UserError(f"config.train.rules[{index}].globs: there is none; say what it is for, as in 'vision/*'")
        for name, value in vars(rule).items():
            if value is not None and (least := LEAST.get(f"train.{name}")) is not None:
                _check(f"train.rules[{index}].{name}", value, least)
    for index, other in enumerate(config.data.others):
        for name in ("weight", "epochs"):
            _check(f"data.others[{index}].{name}", getattr(other, name), LEAST[f"data.{name}"])
    for name in ("b1", "b2"):
        value = getattr(config.train, name)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"config.train.{name}: {value} is no share; use 0 or more, and less than 1")
    if not 0 < config.distil.temperature < math.inf:
        raise UserError(f"config.distil.temperature: {config.distil.temperature} is no temperature; use more than 0")
    if not 0 <= config.distil.weight <= 1:
        raise UserError(f"config.distil.weight: {config.distil.weight} is no share; use 0 to 1")
    if not 0 <= config.distil.features < math.inf:
        raise UserError(f"config.distil.features: {config.distil.features} is no weight; use 0 or more")
    if config.train.eps is not None:
        _check("train.eps", config.train.eps, 0.0)


def _check(name: str, value: float, least: float) -> None:
    if value < least:
        raise UserError(f"config.{name}: {value} is too small; use {least} or more")

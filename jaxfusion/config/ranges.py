"""Numbers that a run's settings must not fall below, checked before anything starts."""

from operator import attrgetter
from typing import Any

from jaxfusion.errors import UserError

LEAST = {
    "train.num_steps": 1,
    "train.batch_size": 1,
    "train.warmup_steps": 0,
    "train.learning_rate": 0.0,
    "train.weight_decay": 0.0,
    "train.clip_norm": 0.0,
    "train.z_loss": 0.0,
    "train.label_smoothing": 0.0,
    "train.seed": 0,
    "train.checkpoint_every": 0,
    "train.log_every": 0,
    "data.row_length": 1,
    "data.num_threads": 0,
    "data.num_workers": 0,
    "evaluate.every": 0,
    "evaluate.num_examples": 0,
    "evaluate.batch_size": 1,
    "generate.max_new_tokens": 1,
    "generate.temperature": 0.0,
}


def check_ranges(config: Any) -> None:
    """Raises UserError, by the setting's full name, for a number that means nothing."""
    for name, least in LEAST.items():
        value = attrgetter(name)(config)
        if value < least:
            raise UserError(f"config.{name}: {value} is too small; use {least} or more")

"""The plan of a run, from its config alone: neither data nor weights are read."""

from dataclasses import replace

import jax
import numpy as np

from jaxfusion.config import Config
from jaxfusion.planning.full_rows import full_rows
from jaxfusion.planning.step import StepPlan, plan_step
from jaxfusion.teacher import abstract_teacher


def plan_run(config: Config, rows: int = 0) -> StepPlan:
    """Compiles the run's step, of full rows, for `config.plan`'s hardware.

    rows: a step's, over all cards; 0: train.batch_size.
    Raises UserError as `plan_step`, `full_rows` and `abstract_teacher` do.
    """
    teacher, vocab = abstract_teacher(config) or (None, config.data.vocab_size)
    config, rows = _settled(config, vocab), rows or config.train.batch_size
    batch = jax.tree.map(lambda x: np.broadcast_to(x, (rows, *x.shape[1:])), full_rows(config, 1))
    hardware, topology = config.plan.hardware, config.plan.topology
    return plan_step(config.model, config.train, batch, hardware, topology, teacher, config.parallel)


def _settled(config: Config, vocab: int) -> Config:
    """Sizes that the data would settle. vocab: how many tokens there are, or may be at most, and as many classes."""
    model = config.model
    if not model.text_embedding.vocab_size:
        model = replace(model, text_embedding=replace(model.text_embedding, vocab_size=vocab))
    if getattr(model.decoder, "num_classes", None) == 0:
        model = replace(model, decoder=replace(model.decoder, num_classes=vocab))
    return replace(config, model=model)

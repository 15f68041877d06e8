"""Few-shot evaluation: a task's metrics behind each of several numbers of solved examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from jaxfusion.config import Config
from jaxfusion.config.model import AddFusionConfig
from jaxfusion.config.run import EvaluateConfig
from jaxfusion.data.messages import Sample
from jaxfusion.data.tokenise import Layout
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import Evaluation, evaluate
from jaxfusion.evaluation.support import TASKS, check_pictured, check_tower
from jaxfusion.generation.answer import Answer
from jaxfusion.models.vlm import Model, Params


def shots_of(config: Config) -> tuple[int, ...]:
    """Behind how many examples of each class held-out episodes are asked."""
    return config.evaluate.shots or (config.data.episodes.shots,)


def check_shots(config: Config) -> None:
    """Raises UserError where examples before a question would be none, or of no use; config: with sizes settled."""
    shots, task, episodes = config.evaluate.shots, config.data.task, config.data.episodes.ways
    if not shots and not episodes:
        return _check_unused(config.evaluate, "there are none; set config.evaluate.shots")
    layout, kind = Layout.of(config.model), config.model.decoder.kind
    if episodes:
        if layout.predict != "next":
            raise UserError(f"config.data.episodes: a {kind} reads no examples; use a transformer")
        _check_unused(config.evaluate, "episodes have their own; set config.data.episodes.ways to 0")
    pictured = config.model.vision is not None and "image" in config.data.modalities
    if pictured and layout.fusion == AddFusionConfig.kind and (episodes or max(shots) > 0):
        raise UserError(
            "config.model.fusion: add takes one image a sample, and examples have their own; use place, or no examples"
        )
    if not shots:
        return None
    if min(shots) < 0 or len(set(shots)) < len(shots):
        raise UserError(f"config.evaluate.shots: {shots} are no numbers of examples; use 0 and more, each once")
    if task not in TASKS:
        raise UserError(
            f"config.evaluate.shots: solved examples are shown for the tasks {', '.join(TASKS)}, not for {task!r}"
        )
    if layout.predict != "next":
        raise UserError(f"config.evaluate.shots: a {kind} reads no examples; use a transformer")
    if config.evaluate.support == "rices":
        check_pictured(config)
        if config.evaluate.rices_vision:
            check_tower(config.evaluate.rices_vision)
    elif config.evaluate.rices_vision:
        raise UserError(
            "config.evaluate.rices_vision: it tells what is alike, which 'random' does not ask; set "
            "config.evaluate.support to 'rices', or take it away"
        )


def _check_unused(evaluated: EvaluateConfig, why: str) -> None:
    """Raises UserError for settings of examples that nothing would read."""
    for name in ("support", "support_records", "rices_vision"):
        if getattr(evaluated, name) != getattr(EvaluateConfig, name):
            raise UserError(
                f"config.evaluate.{name}: it is of examples from the train split, and {why}, or take it away"
            )


def evaluate_shots(
    config: Config,
    model: Model,
    params: Params,
    asked: Mapping[int, list[Sample]],
    labels: Sequence[str],
    tell: Callable[[Answer], None] = lambda answer: None,
) -> Evaluation:
    """As `evaluate`, of the samples behind each number of examples: metrics are called as in `answer_accuracy_4_shots`.

    asked: the same samples by numbers of examples. The result's samples are all of them, one number after the other;
    its confusion is that of the last.
    """
    found = {number: evaluate(config, model, params, samples, labels, tell) for number, samples in asked.items()}
    names = dict.fromkeys(name for result in found.values() for name in result.metrics)
    last = list(found.values())[-1]
    return replace(
        last,
        metrics={f"{name}_{k}_shots": result.metrics[name] for name in names for k, result in found.items()},
        intervals={
            f"{name}_{k}_shots": result.intervals[name]
            for name in names
            for k, result in found.items()
            if name in result.intervals
        },
        samples=[sample for result in found.values() for sample in result.samples],
        predictions=[text for result in found.values() for text in result.predictions],
        references=[texts for result in found.values() for texts in result.references],
        shots=[number for number, samples in asked.items() for _ in samples],
    )

"""Few-shot evaluation: a task's metrics behind each of several numbers of solved examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from jaxfusion.config import Config
from jaxfusion.data.messages import Sample
from jaxfusion.data.tokenise import Layout
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import Evaluation, evaluate
from jaxfusion.evaluation.support import TASKS
from jaxfusion.generation.answer import Answer
from jaxfusion.models.vlm import Model, Params


def shots_of(config: Config) -> tuple[int, ...]:
    """Behind how many examples of each class held-out episodes are asked."""
    return config.evaluate.shots or (config.data.episodes.shots,)


def check_shots(config: Config) -> None:
    """Raises UserError where examples before a question would be none, or of no use."""
    shots, task = config.evaluate.shots, config.data.task
    if not shots:
        return
    if min(shots) < 0 or len(set(shots)) < len(shots):
        raise UserError(f"config.evaluate.shots: {shots} are no numbers of examples; use 0 and more, each once")
    if task not in TASKS:
        raise UserError(f"config.evaluate.shots: the task {task!r} asks nothing alone; they are for {', '.join(TASKS)}")
    if Layout.of(config.model).predict != "next":
        raise UserError(f"config.evaluate.shots: a {config.model.decoder.kind} reads no examples; use a transformer")


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

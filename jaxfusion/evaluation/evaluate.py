"""Evaluation on held-out samples: test loss and accuracy, and what the model says against what is true."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from jaxfusion.batch import Batch
from jaxfusion.config import Config
from jaxfusion.config.run import GenerateConfig
from jaxfusion.data.loader import Reader
from jaxfusion.data.messages import Sample
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import Layout, Segment, pieces, tokenise
from jaxfusion.errors import UserError
from jaxfusion.evaluation.bootstrap import Interval, Statistic, mean_of
from jaxfusion.evaluation.metrics import confusion_matrix, perplexity_statistic
from jaxfusion.evaluation.scores import Answered, classes_said, score
from jaxfusion.generation.answer import Answer
from jaxfusion.generation.beams import Beams
from jaxfusion.generation.decode import decoding_params
from jaxfusion.generation.generate import answer_segments, prompt_segment, search_segments
from jaxfusion.generation.sampling import Sampling
from jaxfusion.models.vlm import Model, Params, forward
from jaxfusion.parallel import Parallel, make_parallel
from jaxfusion.text.postprocess import postprocess
from jaxfusion.training.cross_entropy import LossSums, logits_loss


@dataclass(frozen=True)
class Evaluation:
    """metrics: names to numbers, the headline first. intervals: of 95 %, for those metrics that have one.
    predictions: one text a sample, beside `samples`. references: all that are right, in the form that is compared.
    confusion: counts by true and predicted class, for classification; a last column, if needed, of what is no class.
    shots: of each sample, behind how many examples it was asked, where these were counted."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    samples: list[Sample]
    predictions: list[str]
    references: list[tuple[str, ...]]
    confusion: np.ndarray | None = None
    shots: list[int] = field(default_factory=list)


def sampling_of(config: GenerateConfig) -> Sampling | Beams:
    """How answers are chosen. Raises UserError, by the setting's full name, for a value that means nothing."""
    if config.max_new_tokens < 1:
        raise UserError(f"config.generate.max_new_tokens: {config.max_new_tokens} was given; an answer has 1 at least")
    try:
        sampling = Sampling(**{own.name: getattr(config, own.name) for own in fields(Sampling)})
    except UserError as error:
        raise UserError(f"config.generate.{error}") from None
    if config.num_beams == 1:
        return sampling
    for own in fields(Sampling):
        if getattr(sampling, own.name) != own.default:
            raise UserError(
                f"config.generate.{own.name}: beams are not sampled; leave it at {own.default}, "
                "or set config.generate.num_beams to 1"
            )
    return Beams(num_beams=config.num_beams, length_penalty=config.length_penalty)


def held_out_samples(source: Sequence[Any], reader: Reader, limit: int) -> list[Sample]:
    """The first samples of a split, record by record; limit 0 is all of them. Raises UserError where there is none."""
    samples: list[Sample] = []
    for index in range(len(source)):
        samples += [replace(sample, record=index) for sample in reader.read(source, index)]
        if limit and len(samples) >= limit:
            return samples[:limit]
    if not samples:
        raise UserError(f"config.data.test_path: {reader.data.name} has no held-out record that is whole; mend them")
    return samples


def check_samples(config: Config, model: Model, samples: Sequence[Sample]) -> None:
    """Raises UserError, by name, for a sample that the model's context cannot hold together with a whole answer."""
    _segments(config, model, samples)
    if config.data.task != "text" and Layout.of(model.config).predict == "next":
        _prompts(config, model, samples)


def _segments(config: Config, model: Model, samples: Sequence[Sample]) -> tuple[list[Segment], list[int]]:
    """One a sample; of a document as many as it takes. And the place of each one's sample.

    Raises UserError, by name, for a sample beyond the model's context, where positions would mean nothing."""
    segments, places, layout = [], [], Layout.of(model.config)
    context = model.config.text_embedding.max_positions
    for place, sample in enumerate(samples):
        segment = tokenise(sample, model.tokenizer, layout)
        parts = pieces(segment, config.data.row_length) if len(sample.messages) == 1 else [segment]
        if (length := max(part.size[0] for part in parts)) > context:
            shown = _has_examples(sample)
            raise UserError(
                f"config.{'evaluate.shots' if shown else 'model.text_embedding.max_positions'}: sample {sample.id}"
                f"{' behind its examples' if shown else ''} needs {length} positions, images included, and the model's "
                f"context is {context}; {'ask behind fewer' if shown else 'raise it'}, or leave the sample out"
            )
        segments += parts
        places += [place] * len(parts)
    return segments, places


def evaluate(
    config: Config,
    model: Model,
    params: Params,
    samples: list[Sample],
    labels: Sequence[str],
    tell: Callable[[Answer], None] = lambda answer: None,
) -> Evaluation:
    """Loss, accuracy and predictions on the samples.

    tell: called with each answer as it ends, where samples are answered by an engine.
    Metrics: the task's headline, the share of samples that are right as a whole, and the field's own metrics of the
    task (`jaxfusion.evaluation.scores`), over all and for each group (language); for "fill", masked_accuracy over the
    hidden tokens alone; test_accuracy and test_loss (nats) over all positions that carry loss, and for language models
    its exponential. Of several references the loss is of the last message's.
    """
    layout = Layout.of(model.config)
    segments, places = _segments(config, model, samples)
    parallel, size, params = _shared(config, params)
    of_segments, argmax = _read_all(model, params, _batches(segments, size, layout), parallel)
    sums = jax.tree.map(lambda rows: np.bincount(places, rows), of_segments)
    more: dict[str, Statistic] = {}
    if config.data.task == "text":  # nothing is asked
        predictions = [""] * len(samples)
    elif layout.predict == "next":
        predictions = _generated(config, model, params, samples, parallel, size, tell)
    elif layout.predict == "class":
        predictions = [labels[int(row[len(segment.tokens) - 1])] for row, segment in zip(argmax, segments, strict=True)]
    else:
        rows = [row[: len(segment.tokens)] for row, segment in zip(argmax, segments, strict=True)]
        predictions = [model.tokenizer.decode(row[1:-1]) for row in rows]
        hidden = [segment.tokens == model.tokenizer.mask_id for segment in segments]
        right = [row == segment.targets for row, segment in zip(rows, segments, strict=True)]
        found = [np.sum(r[h]) for r, h in zip(right, hidden, strict=True)]
        more["masked_accuracy"] = mean_of(found, [np.sum(h) for h in hidden])
    references = [sample.references for sample in samples]
    if config.evaluate.postprocess:
        predictions = [postprocess(text) for text in predictions]
        references = [tuple(postprocess(text) for text in texts) for texts in references]
        labels = [postprocess(label) for label in labels]
    more |= {"test_accuracy": mean_of(sums.correct, sums.weight), "test_loss": mean_of(sums.loss, sums.weight)}
    if layout.predict == "next":
        more["perplexity"] = perplexity_statistic(sums.loss, sums.weight)
    answered = Answered(samples, predictions, references, labels)
    metrics, intervals = score(config.data.task, answered, more)
    confusion = None
    if config.data.task == "classify":
        confusion = confusion_matrix([sample.label for sample in samples], classes_said(answered), len(labels))
    return Evaluation(metrics, intervals, samples, predictions, references, confusion)


def held_out_losses(config: Config, model: Model, params: Params, samples: list[Sample]) -> dict[str, float]:
    """test_loss and test_accuracy alone, quick enough to be taken during training."""
    layout = Layout.of(model.config)
    segments, _ = _segments(config, model, samples)
    parallel, size, params = _shared(config, params)
    sums, _ = _read_all(model, params, _batches(segments, size, layout), parallel)
    weight = sums.weight.sum()
    return {"test_loss": float(sums.loss.sum() / weight), "test_accuracy": float(sums.correct.sum() / weight)}


def _batches(segments: list[Segment], size: int, layout: Layout) -> Iterator[tuple[Batch, int]]:
    """Batches of one shape, the last one filled up with rows that carry no loss, and how many rows are real."""
    row_length = max(len(segment.tokens) for segment in segments)
    for start in range(0, len(segments), size):
        part = segments[start : start + size]
        empty = part[0]._replace(loss_weights=np.zeros_like(part[0].loss_weights))
        rows = [[segment] for segment in part + [empty] * (size - len(part))]
        yield pack(rows, row_length, layout.tokens_per_image), len(part)


def _shared(config: Config, params: Params) -> tuple[Parallel, int, Params]:
    """A mesh to share rows over, whatever training did (jit needs no other code for it), and the batch size, rounded
    up to what the devices can share: batches are filled up anyway."""
    parallel = make_parallel(replace(config.parallel, strategy="mesh"))
    size = -(-config.evaluate.batch_size // parallel.row_shares) * parallel.row_shares
    return parallel, size, parallel.put_state(params)


def _read_all(
    model: Model, params: Params, batches: Iterable[tuple[Batch, int]], parallel: Parallel
) -> tuple[LossSums, list[np.ndarray]]:
    """Each real row's loss sums, as float64[N], and its most probable ids."""
    sums, argmax = [], []
    for batch, num_real in batches:
        part, ids = _read(model, parallel.mesh.abstract_mesh, params, parallel.put_batch(batch))
        sums.append(jax.tree.map(lambda rows, n=num_real: np.asarray(rows, np.float64)[:n], part))
        argmax += list(np.asarray(ids)[:num_real])
    return jax.tree.map(lambda *parts: np.concatenate(parts), *sums), argmax


@partial(jax.jit, static_argnums=(0, 1))
def _read(model: Model, mesh: AbstractMesh, params: Params, batch: Batch) -> tuple[LossSums, jax.Array]:
    with jax.sharding.use_abstract_mesh(mesh):
        logits = forward(model, params, batch)
        return jax.vmap(logits_loss)(logits, batch.targets, batch.loss_weights), logits.argmax(axis=-1)


def _has_examples(sample: Sample) -> bool:
    return any(message.role == "assistant" and not message.learned for message in sample.messages)


def _prompts(config: Config, model: Model, samples: Sequence[Sample]) -> list[Segment]:
    """Raises UserError where the context does not hold one and the longest answer."""
    new, context = config.generate.max_new_tokens, model.config.text_embedding.max_positions
    segments = [prompt_segment(model, sample.messages[:-1]) for sample in samples]
    for sample, segment in zip(samples, segments, strict=True):
        if (length := segment.size[0]) + new > context:
            fewer = " or config.evaluate.shots" if _has_examples(sample) else ""
            raise UserError(
                f"config.generate.max_new_tokens: the prompt of sample {sample.id} takes {length} positions (images "
                f"included), which with {new} new tokens is more than the model's context of {context}; lower it"
                f"{fewer}, or leave the sample out"
            )
    return segments


def _generated(
    config: Config,
    model: Model,
    params: Params,
    samples: list[Sample],
    parallel: Parallel,
    size: int,
    tell: Callable[[Answer], None],
) -> list[str]:
    wanted, sampling = config.generate, sampling_of(config.generate)
    segments = _prompts(config, model, samples)
    params = decoding_params(params, wanted.weights)
    settings = {"max_new_tokens": wanted.max_new_tokens, "stop": wanted.stop, "cache_dtype": wanted.cache_dtype}
    if not isinstance(sampling, Beams):
        seeds = range(wanted.seed, wanted.seed + len(segments))
        devices = None if parallel.shares_state else jax.local_devices()
        settings |= {"num_rows": size, "prefix_bytes": wanted.prefix_bytes, "devices": devices}
        return answer_segments(model, params, segments, sampling, seeds, tell=tell, **settings)
    predictions = []
    for start in range(0, len(segments), size):  # in batches of one size
        part = segments[start : start + size]
        filled = part + segments[:1] * (size - len(part))
        found = search_segments(model, params, filled, sampling, put_batch=parallel.put_batch, **settings)
        predictions += found[: len(part)]
    return predictions

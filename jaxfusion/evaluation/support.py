"""Solved examples to stand before a held-out question: the same for all, at random, or for each the most similar ones.

The second is RICES, retrieval of in-context examples by similarity (Yang et al. 2022), as OpenFlamingo takes it: by the
cosine of pictures' features, the most similar example last.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped

from jaxfusion.config import Config
from jaxfusion.config.model import Network
from jaxfusion.data.loader import Reader
from jaxfusion.data.messages import Sample, with_examples
from jaxfusion.data.sources.mixture import Mixture
from jaxfusion.errors import UserError
from jaxfusion.models.tower import Tower, see
from jaxfusion.models.vlm import Model, Params, apply
from jaxfusion.workdir import is_run

# Of the draws of records to choose from, and of their order, the same for all runs.
SEED = 2022

# What sees pictures: uint8[B, 1, H, W, 3], of the run's size, to features.
Look = Callable[[Shaped[np.ndarray, "B 1 H W 3"]], Float[jax.Array, "B 1 K E"]]

# Tasks whose samples are a question and an answer.
TASKS = ("caption", "question_answer", "classify")


def candidates(source: Sequence[Any], reader: Reader, limit: int) -> dict[str, list[Sample]]:
    """By group (language) what examples are chosen from, in random order: one sample a record, of so many; 0: all."""
    source = source.parts[0] if isinstance(source, Mixture) else source
    rng = np.random.default_rng(SEED)
    found: dict[str, list[Sample]] = {}
    for place in rng.permutation(len(source))[: limit or None].tolist():
        by_group: dict[str, list[Sample]] = {}
        for sample in reader.read(source, place):
            by_group.setdefault(sample.group, []).append(sample)
        for group, samples in by_group.items():
            found.setdefault(group, []).append(samples[int(rng.integers(len(samples)))])
    return found


def alike(a: Sample, b: Sample) -> bool:
    """Whether two samples show the same pictures, or, where there are none, ask the same: then one may be the other, by
    whatever name."""
    ours, theirs = ([image.value for message in sample.messages for image in message.images] for sample in (a, b))
    if not ours and not theirs:
        return a.prompt == b.prompt
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def first_ones(sample: Sample, ranked: Sequence[Sample], number: int) -> list[Sample]:
    """The first so many that are not the sample itself. Raises UserError where there are not so many."""
    found: list[Sample] = []
    for other in ranked:
        if len(found) == number:
            break
        if not alike(sample, other):
            found.append(other)
    if len(found) < number:
        raise UserError(
            f"config.evaluate.shots: {number} examples are wanted, and there are {len(found)} to choose from; lower "
            "it, or raise config.evaluate.support_records"
        )
    return found


def most_similar(
    samples: Sequence[Sample], pool: Sequence[Sample], number: int, features: Callable[[Sequence[Sample]], np.ndarray]
) -> list[list[Sample]]:
    """For each sample its examples, the most similar first by the cosine of their features; of those as similar the
    first in the pool."""
    ours, theirs = features(samples), features(pool)
    found = []
    for sample, similarity in zip(samples, ours @ theirs.T, strict=True):
        ranked = (pool[place] for place in np.argsort(-similarity, kind="stable"))
        found.append(first_ones(sample, ranked, number))
    return found


def with_support(
    config: Config,
    model: Model,
    params: Params,
    samples: Sequence[Sample],
    pools: dict[str, list[Sample]],
    shots: Sequence[int],
) -> dict[int, list[Sample]]:
    """For each number of solved examples the samples, in order, each behind so many of its own group, of which only its
    own answer carries loss.

    params: of the model, whose vision tells what is similar, unless `config.evaluate.rices_vision` names a checkpoint.
    Raises UserError for what has no pictures, where these are compared, and where there are too few examples.
    """
    most, chosen = max(shots), {}
    features = image_features(config, model, params) if config.evaluate.support == "rices" and most else None
    for group in {sample.group for sample in samples}:
        places = [place for place, sample in enumerate(samples) if sample.group == group]
        own, pool = [samples[place] for place in places], pools.get(group, [])
        if features is None:
            found = [first_ones(sample, pool, most) for sample in own]
        else:
            found = most_similar(own, pool, most, features)
        chosen |= dict(zip(places, found, strict=True))

    def behind(place: int, number: int) -> Sample:
        sample, others = samples[place], chosen[place][:number]
        others = others if features is None else others[::-1]  # the most similar is the last
        return replace(sample, messages=with_examples(sample.messages, [other.messages for other in others]))

    return {number: [behind(place, number) for place in range(len(samples))] for number in shots}


def image_features(
    config: Config, model: Model, params: Params
) -> Callable[[Sequence[Sample]], Float[np.ndarray, "N E"]]:
    """Of each sample its pictures' mean visual token, before the projector, of length 1.

    Raises UserError where there is no network to look with.
    """
    look, pixels = _look(config, model, params)
    size, known = config.evaluate.batch_size, {}

    def features(samples: Sequence[Sample]) -> Float[np.ndarray, "N E"]:
        pictures = {id(image): image.value for sample in samples for image in _pictures(sample)}
        new = [key for key in pictures if key not in known]
        for start in range(0, len(new), size):
            part = new[start : start + size]
            batch = np.stack([pixels(pictures[key]) for key in part])
            tokens = look(np.resize(batch, (size, *batch.shape[1:]))[:, None])  # filled up: batches have one shape
            means = np.asarray(tokens, np.float64).reshape(size, -1, tokens.shape[-1]).mean(1)
            known.update(zip(part, means, strict=False))
        vectors = np.stack([np.mean([known[id(image)] for image in _pictures(sample)], axis=0) for sample in samples])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    return features


def check_pictured(config: Config) -> None:
    """Raises UserError where there are no pictures to compare."""
    vision = config.model.vision if "image" in config.data.modalities else None
    if not isinstance(vision, Network):
        kind = vision.kind if vision else "none"
        raise UserError(f"config.evaluate.support: the run's vision ({kind}) sees no pictures; use 'random'")


def check_tower(name: str) -> None:
    """Raises UserError, before any weight is read, where `config.evaluate.rices_vision` names no vision tower."""
    from jaxfusion.pretrained.checkpoint import family_of, open_checkpoint
    from jaxfusion.pretrained.families import FAMILIES

    if not is_run(Path(name)):
        try:
            room = family_of(open_checkpoint(name), FAMILIES).room
        except UserError as error:
            raise UserError(f"config.evaluate.rices_vision: {error}") from error
        if room == "vision":
            return
    raise UserError(f"config.evaluate.rices_vision: {name} is no vision tower; name the checkpoint of one")


def _pictures(sample: Sample) -> list[Any]:
    images = sample.messages[-2].images
    if not images:
        raise UserError(f"config.evaluate.support: sample {sample.id} has no picture to compare; use 'random'")
    return images


def _look(config: Config, model: Model, params: Params) -> tuple[Look, Callable[[np.ndarray], np.ndarray]]:
    """What sees a batch of pictures, and what a picture, as the run has it, becomes for it."""
    check_pictured(config)
    name = config.evaluate.rices_vision
    if not name:
        compiled = jax.jit(lambda vision, images: apply(model, {"vision": vision}, images, method="look"))
        return lambda images: compiled(params["vision"], images), lambda picture: picture
    from jaxfusion.data.images import resize_image
    from jaxfusion.pretrained.load import load

    tower, weights = load(name)
    if not isinstance(tower, Tower):
        raise UserError(f"config.evaluate.rices_vision: {name} is more than a vision tower; name one that is not")
    compiled = jax.jit(see, static_argnums=0)
    pixels = tower.pixels or (lambda picture: resize_image(picture, tower.config.image_size))
    return lambda images: compiled(tower, weights, images), pixels

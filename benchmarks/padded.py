"""A batch as those have it who do not pack: each sample in a row of its own, padded to the longest."""

from dataclasses import dataclass

import numpy as np

from jaxfusion.batch import Batch


@dataclass(frozen=True)
class Padded:
    """tokens: int64[N, L], in which the image token stands where a visual token will. real, prompt: bool[N, L].
    labels: int64[N, L], -100 where nothing is learned: `tokens` themselves for a model that shifts them, else targets.
    images: float32[N, M, H, W, 3], normalised, or None."""

    tokens: np.ndarray
    real: np.ndarray
    prompt: np.ndarray
    labels: np.ndarray
    images: np.ndarray | None


def pad(batch: Batch, image_token: int | None, *, shifted: bool, mean: tuple, std: tuple) -> Padded:
    """The batch's segments in their order. A batch that is not packed keeps its rows and their length.

    image_token: None where images take no position.
    shifted: labels stand at the token that is to be said, not at the position before it.
    """
    samples = [
        (row, np.flatnonzero(batch.segment_ids[row] == segment), segment)
        for row in range(len(batch.tokens))
        for segment in range(1, batch.segment_ids[row].max() + 1)
    ]
    length = max(len(where) for _, where, _ in samples) if batch.packed else batch.tokens.shape[1]
    tokens, real, prompt, labels = (np.zeros((len(samples), length), np.int64) for _ in range(4))
    labels[:] = -100
    images = []
    for sample, (row, where, segment) in enumerate(samples):
        own = slice(0, len(where))
        tokens[sample, own] = batch.tokens[row, where]
        if image_token is not None:
            tokens[sample, where[batch.visual_index[row, where] >= 0] - where[0]] = image_token
        real[sample, own], prompt[sample, own] = 1, batch.prompt_mask[row, where]
        targets = np.where(batch.loss_weights[row, where] > 0, batch.targets[row, where], -100)
        if shifted:
            labels[sample, 1 : len(where)] = targets[:-1]
        else:
            labels[sample, own] = targets
        if batch.images is not None:
            images.append(batch.images[row, batch.image_segment_ids[row] == segment])
    pixels = None if batch.images is None else ((np.stack(images) / 255 - mean) / std).astype(np.float32)
    return Padded(tokens, real.astype(bool), prompt.astype(bool), labels, pixels)

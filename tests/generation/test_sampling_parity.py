"""What the settings leave of the logits, against transformers' own processors in their own order."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from jaxfusion.generation.sampling import Sampling, Samplings, filtered, penalised

CASES = [
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_k=9),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=0.9, min_p=0.1),
    Sampling(temperature=0.8, repetition_penalty=1.4),
    Sampling(temperature=1.2, top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=0.8),
]


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_the_same_tokens_stay_with_the_same_logits(sampling):
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((4, 57)).astype(np.float32)
    said = rng.integers(0, 57, (4, 12))
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    theirs.append(TemperatureLogitsWarper(sampling.temperature))
    theirs += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    theirs += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    theirs += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    expected = theirs(torch.tensor(said), torch.tensor(logits)).numpy()

    seen = np.zeros((4, 57), bool)
    np.put_along_axis(seen, said, True, axis=1)
    rows = Samplings.of([sampling] * 4)
    np.testing.assert_allclose(filtered(penalised(logits, seen, rows), rows), expected, rtol=1e-5)


def test_the_names_are_theirs():
    assert set(vars(Sampling())) <= set(GenerationConfig().to_dict())

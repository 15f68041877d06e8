"""Likelihoods of given answers against the logits themselves."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxfusion
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import Layout, tokenise_prompt
from jaxfusion.errors import UserError
from jaxfusion.generation.generate import user_messages
from jaxfusion.generation.score import answered, score
from tests.generation.test_generate import make
from tests.models.test_vlm import random_params

DECODER = {"kind": "transformer", "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def model_and_params():
    model, _ = make(DECODER)
    return model, random_params(model)


@pytest.mark.parametrize("ends", [True, False])
def test_a_score_is_the_sum_of_its_tokens_log_probabilities(model_and_params, ends):
    model, params = model_and_params
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    prompts, images, candidates = ["what?", "x"], [picture, None], [["yes", "not at all"], ["b"]]
    scores = score(model, params, prompts, images, candidates=candidates, ends=ends, batch_size=2)
    assert [len(row) for row in scores] == [2, 1]
    layout = Layout.of(model.config)
    for row, message, answers in zip(scores, user_messages(model, prompts, images), candidates, strict=True):
        prompt = tokenise_prompt((message,), model.tokenizer, layout)
        for found, text in zip(row, answers, strict=True):
            ids = model.tokenizer.encode(text) + ([model.tokenizer.stop_ids[0]] if ends else [])
            whole = pack([[answered(prompt, ids, layout)]], 48, layout.tokens_per_image)
            logprobs = np.asarray(jax.nn.log_softmax(jaxfusion.forward(model, params, whole)[0]))
            start = len(prompt.tokens) - 1
            expected = sum(logprobs[start + place, token] for place, token in enumerate(ids))
            assert found == pytest.approx(expected, abs=1e-4)


def test_probabilities_of_all_answers_of_one_token_sum_to_one(model_and_params):
    model, params = model_and_params
    letters = [text for text in map(chr, range(32, 127)) if len(model.tokenizer.encode(text)) == 1]
    (scores,) = score(model, params, ["x"], candidates=[letters], ends=False)
    assert 0 < np.exp(scores).sum() < 1  # there are other tokens
    assert len(set(scores.tolist())) > len(letters) / 2


def test_what_cannot_be_scored_is_refused(model_and_params):
    with pytest.raises(UserError, match="1 entries for 2 prompts"):
        score(*model_and_params, ["a", "b"], candidates=[["x"]])
    with pytest.raises(UserError, match="'' is no text"):
        score(*model_and_params, ["a"], candidates=[[""]])
    with pytest.raises(UserError, match="prompts: a list of texts is wanted"):
        score(*model_and_params, "a", candidates=[["x"]])
    with pytest.raises(UserError, match="the model has no tokenizer"):
        score(replace(model_and_params[0], tokenizer=None), model_and_params[1], ["a"], candidates=[["x"]])
    with pytest.raises(UserError, match="context of|context has"):
        score(*model_and_params, ["word " * 20], candidates=[["x"]])

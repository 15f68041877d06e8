"""Cached decoding against the plain forward pass, one token at a time; rows of any length side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfusion
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError
from jaxfusion.generation import decode
from jaxfusion.generation.decode import decoding_params
from jaxfusion.generation.sampling import Sampling
from jaxfusion.training.compilations import counted_compilations
from tests.models.test_vlm import CASES, make_model, random_params, random_segment

GENERATING = [name for name in CASES if make_model(**CASES[name]).config.decoder.kind == "transformer"]
NEW = 5


def prompts(model, seed=0):
    """Three rows of different lengths with one image each."""
    rng = np.random.default_rng(seed)
    segments = [random_segment(rng, model, model.config.fusion.kind, 1) for _ in range(3)]
    segments = [segment._replace(prompt_mask=np.ones_like(segment.prompt_mask)) for segment in segments]
    longest = max(len(segment.tokens) for segment in segments)
    return segments, pack([[segment] for segment in segments], longest + 2, model.config.tokens_per_image)


def continued(segment: Segment, token: int, visual: int) -> Segment:
    """The segment with one more token, which is part of the answer."""
    return segment._replace(
        tokens=np.append(segment.tokens, np.int32(token)),
        targets=np.append(segment.targets, np.int32(0)),
        loss_weights=np.append(segment.loss_weights, np.float32(0)),
        prompt_mask=np.append(segment.prompt_mask, False),
        visual_index=np.append(segment.visual_index, np.int32(visual)),
    )


@pytest.mark.parametrize("name", GENERATING)
def test_greedy_tokens_are_those_of_the_forward_pass(name):
    model = make_model(**CASES[name])
    params = random_params(model)
    segments, batch = prompts(model)
    tokens = np.asarray(jaxfusion.generate_tokens(model, params, batch, max_new_tokens=NEW))
    assert tokens.shape == (3, NEW)
    forward = jax.jit(jaxfusion.forward, static_argnums=0)
    for row, segment in enumerate(segments):
        for step in range(NEW):
            length = len(segment.tokens)
            whole = pack([[segment]], 32, model.config.tokens_per_image)
            logits = np.asarray(forward(model, params, whole))[0, length - 1]
            assert tokens[row, step] == logits.argmax(), (row, step)
            seen = 0 if model.config.fusion.kind == "add" else -1
            segment = continued(segment, tokens[row, step], seen)


def test_a_row_gets_the_same_tokens_alone_and_among_others():
    model = make_model()
    params = random_params(model)
    _, batch = prompts(model)
    together = jaxfusion.generate_tokens(model, params, batch, max_new_tokens=NEW)
    for row in range(3):
        alone = jaxfusion.generate_tokens(
            model, params, jax.tree.map(lambda x, row=row: x[row : row + 1], batch), max_new_tokens=NEW
        )
        np.testing.assert_array_equal(alone[0], together[row])


def test_after_its_first_eos_a_row_holds_only_eos():
    model = make_model()
    params = random_params(model)
    _, batch = prompts(model)
    free = np.asarray(jaxfusion.generate_tokens(model, params, batch, max_new_tokens=NEW))
    eos = int(free[0, 1])
    ended = np.asarray(jaxfusion.generate_tokens(model, params, batch, max_new_tokens=NEW, eos_token_id=eos))
    for row in range(3):
        first = list(free[row]).index(eos) if eos in free[row] else NEW
        assert ended[row].tolist() == free[row, :first].tolist() + [eos] * (NEW - first)


def test_any_of_several_ids_ends_a_row_and_the_first_fills_it():
    model = make_model()
    params = random_params(model)
    _, batch = prompts(model)
    free = np.asarray(jaxfusion.generate_tokens(model, params, batch, max_new_tokens=NEW))
    stop = (22, int(free[0, 1]), int(free[1, 2]))
    ended = np.asarray(jaxfusion.generate_tokens(model, params, batch, max_new_tokens=NEW, eos_token_id=stop))
    for row in range(3):
        last = next((place for place in range(NEW) if free[row, place] in stop), NEW)
        assert ended[row].tolist() == [*free[row, : last + 1], *[22] * (NEW - last - 1)]


def test_an_answer_depends_on_its_own_seed_and_settings_alone():
    model = make_model()
    params = decoding_params(random_params(model))
    _, batch = prompts(model)
    hot = Sampling(temperature=2.0, top_k=15, repetition_penalty=1.3)
    samplings, seeds = [hot, Sampling(), Sampling(temperature=1.0, top_p=0.9, min_p=0.02)], [7, 8, 9]

    def answers(rows, samplings, seeds):
        part = jax.tree.map(lambda leaf: leaf[np.array(rows)], batch)
        return jaxfusion.generate_tokens(model, params, part, max_new_tokens=9, sampling=samplings, seed=seeds)

    together = answers([0, 1, 2], samplings, seeds)
    np.testing.assert_array_equal(answers([2, 0, 1], [samplings[i] for i in (2, 0, 1)], [9, 7, 8]), together[[2, 0, 1]])
    np.testing.assert_array_equal(answers([0, 0, 0], [hot, samplings[2], hot], [7, 9, 3])[0], together[0])
    assert (answers([0, 1, 2], samplings, [70, 80, 90]) != together).any(axis=1).tolist() == [True, False, True]


def test_blocks_do_not_show_in_the_answer(monkeypatch):
    model = make_model()
    params = random_params(model)
    _, batch = prompts(model)
    whole = jaxfusion.generate_tokens(model, params, batch, max_new_tokens=NEW)
    monkeypatch.setattr(decode, "BLOCK", 2)
    np.testing.assert_array_equal(jaxfusion.generate_tokens(model, params, batch, max_new_tokens=NEW), whole)


def test_a_row_ends_at_its_own_limit_and_keeps_its_log_probabilities():
    model = make_model()
    params = random_params(model)
    segments, batch = prompts(model)
    wanted = decode.Wanted.of([Sampling()] * 3, [0] * 3, [1, 3, 4])
    first, state = decode.prefill(model, 64, (), params, jax.tree.map(jnp.asarray, batch), wanted)
    later, state = decode.decode_block(model, 8, (), decoding_params(params), state)
    assert state.ended.all() and state.count.tolist() == [1, 3, 4]
    segment = segments[2]
    for step in range(3):
        token, logprob = ((first, later)[step > 0][k][2, max(step - 1, 0)] for k in range(2))
        whole = pack([[segment]], 32, model.config.tokens_per_image)
        logits = np.asarray(jaxfusion.forward(model, params, whole))[0, len(segment.tokens) - 1]
        np.testing.assert_allclose(logprob, jax.nn.log_softmax(logits)[token], atol=1e-4)
        segment = continued(segment, int(token), -1)


def test_what_cannot_be_generated_is_refused():
    model = make_model(text_embedding={"vocab_size": 23, "max_positions": 16})
    params = random_params(model)
    _, batch = prompts(model)
    with pytest.raises(UserError, match="the model's context has 16"):
        jaxfusion.generate_tokens(model, params, batch, max_new_tokens=64)
    tagger = make_model(encoder="bilstm", decoder="token-classifier")
    with pytest.raises(UserError, match=r"config\.model\.decoder: a token-classifier does not generate"):
        jaxfusion.generate_tokens(tagger, params, batch, max_new_tokens=1)
    with pytest.raises(ValueError, match="packed=False"):
        jaxfusion.generate_tokens(model, params, batch.replace(packed=True), max_new_tokens=1)


def test_there_is_one_program_for_all_answers_of_a_bucket():
    decoder = {"kind": "transformer", "num_layers": 1, "num_heads": 2, "scan_layers": False}
    model = make_model(vision=None, decoder=decoder)
    params = decoding_params(random_params(model))
    batch = pack([[random_segment(np.random.default_rng(0), model, "place", 0)]] * 2, 20, 0)

    def compiled(new: int) -> int:
        with counted_compilations() as count:
            jaxfusion.generate_tokens(model, params, batch, max_new_tokens=new, seed=new)
            return count()

    # Prompts and blocks have a program each, whose caches of 32 positions are enough for up to 12 tokens.
    assert compiled(3) >= 2
    assert [compiled(new) for new in (1, 5, 12)] == [0, 0, 0]

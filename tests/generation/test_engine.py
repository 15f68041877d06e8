"""Continuous batching against each request alone: whoever stands beside it, whenever it joins."""

import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxfusion
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import PER_POSITION, Segment
from jaxfusion.errors import UserError
from jaxfusion.generation.answer import Request
from jaxfusion.generation.engine import BusyError, ClosedError, Engine
from jaxfusion.generation.sampling import Sampling
from jaxfusion.training.compilations import counted_compilations
from tests.generation.test_decode import continued
from tests.models.test_vlm import CASES, make_model, random_params, random_segment

EOS, LONGEST = (5, 7), 40
SETTINGS = (
    Sampling(),
    Sampling(temperature=1.5, top_k=12),
    Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.2),
)


def random_request(rng, model, max_images=1) -> Request:
    segment = random_segment(rng, model, model.config.fusion.kind, int(rng.integers(0, max_images + 1)))
    return Request(
        segment=segment._replace(prompt_mask=np.ones_like(segment.prompt_mask)),
        sampling=SETTINGS[rng.integers(len(SETTINGS))],
        seed=int(rng.integers(100)),
        limit=int(rng.integers(1, LONGEST)),
    )


def alone(model, params, request: Request) -> list[int]:
    segment = request.segment
    batch = pack([[segment]], 32, model.config.tokens_per_image)
    settings = {"max_new_tokens": LONGEST, "sampling": request.sampling, "seed": request.seed}  # one program for all
    tokens = jaxfusion.generate_tokens(model, params, batch, eos_token_id=EOS, **settings)[0, : request.limit].tolist()
    ends = [place for place, token in enumerate(tokens) if token in EOS]
    return tokens[: ends[0] + 1] if ends else tokens


@pytest.mark.parametrize("name", ["prefix", "cross-attention", "add"])
def test_an_answer_is_what_its_request_gets_alone(name):
    model = make_model(**CASES[name])
    params, rng = random_params(model), np.random.default_rng(0)
    engine = Engine(model, params, num_rows=3, num_positions=80, max_images=2, eos=EOS)
    requests = [random_request(rng, model, 1 if name == "add" else 2) for _ in range(9)]
    assert name == "add" or max(len(request.segment.images) for request in requests) == 2
    answers = []
    for request in requests:
        answers.append(engine.submit(request))
        if rng.random() < 0.4:
            engine.turn()
    while engine.turn():
        pass
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == alone(model, params, request)
        assert len(answer.logprobs) == len(answer.tokens) <= request.limit
        assert answer.end == ("stop" if answer.tokens[-1] in EOS else "length")
    assert {answer.end for answer in answers} == {"stop", "length"}


@pytest.fixture(scope="module")
def small():
    model = make_model(vision=None)
    return model, random_params(model)


def test_nothing_is_compiled_but_for_the_first_prompt_of_a_bucket(small):
    rng, engine = np.random.default_rng(1), Engine(*small, num_rows=2, num_positions=104, eos=EOS)

    def compiled(requests: list[Request]) -> int:
        with counted_compilations() as count:
            answers = [engine.submit(request) for request in requests]
            while engine.turn():
                pass
            assert all(answer.end for answer in answers)
            return count()

    def of_length(length: int) -> Request:
        request = random_request(rng, small[0], 0)
        columns = request.segment._asdict()
        columns |= {name: np.resize(columns[name], length) for name in PER_POSITION}
        return replace(request, segment=Segment(**columns))

    for _ in range(2):  # the second one joins beside the first
        engine.submit(random_request(rng, small[0], 0))
        engine.turn()
    assert compiled([random_request(rng, small[0], 0) for _ in range(6)]) == 0
    # Prompts are read in rows of 32 positions, of 64 and so on.
    assert [length for length in (1, 32, 33, 50, 64) if compiled([of_length(length)])] == [33]


def test_the_most_probable_tokens_are_those_of_the_forward_pass_and_cost_no_program(small):
    """Of whoever asks, however many, beside those who do not; and nobody's answer is another for it."""
    rng, engine = np.random.default_rng(6), Engine(*small, num_rows=2, num_positions=64, eos=EOS)
    requests = [random_request(rng, small[0], 0) for _ in range(5)]
    without = [engine.submit(request) for request in requests]
    while engine.turn():
        pass
    with counted_compilations() as count:
        before, numbers = count(), (20, 0, 3, 0, 1)
        asked = [
            engine.submit(replace(request, top_logprobs=number))
            for request, number in zip(requests, numbers, strict=True)
        ]
        while engine.turn():
            pass
        assert count() == before
    for request, one, other, number in zip(requests, without, asked, numbers, strict=True):
        assert (one.tokens, one.logprobs) == (other.tokens, other.logprobs)
        assert [len(place) for place in other.top] == [number] * len(other.tokens) and not any(one.top)
        segment = request.segment
        for token in other.tokens:
            segment = continued(segment, token, -1)
        logprobs = jax.nn.log_softmax(jaxfusion.forward(*small, pack([[segment]], 64, 0))[0])
        exact = np.asarray(logprobs)[len(request.segment.tokens) - 1 : len(segment.tokens) - 1]
        for place, told in zip(exact, other.top, strict=True):
            np.testing.assert_allclose([logprob for _, logprob in told], np.sort(place)[::-1][:number], atol=1e-5)
            np.testing.assert_allclose(place[[token for token, _ in told]], [x for _, x in told], atol=1e-5)


def test_who_cancels_makes_room_for_who_waits(small):
    rng, engine = np.random.default_rng(2), Engine(*small, num_rows=1, num_positions=200, max_waiting=2, eos=())
    request = random_request(rng, small[0], 0)
    long = Request(segment=request.segment, limit=150)
    first = engine.submit(long)
    engine.turn()
    second, third = engine.submit(long), engine.submit(request)
    with pytest.raises(BusyError, match="2 requests are waiting already"):
        engine.submit(request)
    assert 0 < len(first.tokens) < 150 and not second.tokens
    first.cancel()
    second.cancel()
    while engine.turn():
        pass
    assert (first.end, second.end, second.tokens) == ("cancelled", "cancelled", [])
    assert third.end == "length" and len(third.tokens) == request.limit


def test_threads_read_as_tokens_come_and_none_is_lost(small):
    rng, engine = np.random.default_rng(3), Engine(*small, num_rows=4, num_positions=64, eos=EOS)
    requests = [random_request(rng, small[0], 0) for _ in range(12)]
    read: dict[int, list[int]] = {}

    def client(number: int) -> None:
        read[number] = [token for new in engine.submit(requests[number]) for token in new]

    server = threading.Thread(target=engine.run)
    server.start()
    clients = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(timeout=120)
    engine.close()
    server.join(timeout=60)
    assert not server.is_alive()
    for number, request in enumerate(requests):
        assert read[number] == alone(*small, request)
    with pytest.raises(UserError, match="the engine is closed"):
        engine.submit(requests[0])


def test_what_does_not_fit_is_refused(small):
    engine = Engine(*small, num_positions=32, eos=())
    segment = random_request(np.random.default_rng(4), small[0], 0).segment
    with pytest.raises(UserError, match=r"the prompt takes \d+ positions .* more than the 32"):
        engine.submit(Request(segment=segment, limit=32))
    with pytest.raises(UserError, match="limit: 0"):
        engine.submit(Request(segment=segment, limit=0))
    with pytest.raises(UserError, match="seed: "):
        engine.submit(Request(segment=segment, limit=1, seed=2**70))
    with pytest.raises(UserError, match="top_logprobs: 21 was given; use 0 to 20"):
        engine.submit(Request(segment=segment, limit=1, top_logprobs=21))
    with pytest.raises(UserError, match="top_k: "):
        Sampling(top_k=2**40)
    assert not engine.turn()  # and none of them has stayed


@pytest.mark.parametrize("name", ["num_rows", "num_positions", "max_images", "max_waiting"])
def test_an_engine_of_nothing_is_refused(small, name):
    with pytest.raises(UserError, match=f"{name}: 0"):
        Engine(*small, eos=(), **{name: 0})


def test_rows_are_no_longer_than_the_models_context(small):
    engine = Engine(*small, num_positions=10**6, eos=())
    assert engine._state.cache.layers[0].key.shape[1] == small[0].config.text_embedding.max_positions


def test_a_failure_ends_every_answer(small, monkeypatch):
    engine = Engine(*small, num_rows=1, num_positions=64, eos=())
    segment = random_request(np.random.default_rng(5), small[0], 0).segment
    answers = [engine.submit(Request(segment=segment, limit=30)) for _ in range(2)]
    engine.turn()

    def fails(*_, **__):
        raise MemoryError

    def run() -> None:
        with pytest.raises(MemoryError):
            engine.run()

    monkeypatch.setattr("jaxfusion.generation.engine.decode_block", fails)
    server = threading.Thread(target=run)
    server.start()
    assert all(answer.wait(timeout=60) for answer in answers)
    server.join(timeout=60)
    assert [answer.end for answer in answers] == ["failed", "failed"] and len(answers[0].tokens) == 17
    with pytest.raises(UserError, match="the engine is closed"):
        engine.submit(Request(segment=segment, limit=1))


def test_who_has_left_the_queue_makes_room_in_it_and_is_told_apart(small):
    request, news = random_request(np.random.default_rng(5), small[0], 0), []
    engine = Engine(*small, num_rows=1, num_positions=64, max_waiting=1, eos=EOS)
    first, second = (engine.submit(request, lambda: news.append(len(first.tokens))) for _ in range(2))
    with pytest.raises(BusyError):
        engine.submit(request)
    second.cancel()
    assert news == [0] and (engine.num_waiting, engine.num_busy, engine.num_rows) == (1, 0, 1)
    third = engine.submit(request)
    engine.turn()
    assert first.since(1) == (first.tokens[1:], first.logprobs[1:], first.top[1:], first.end)
    assert news[1] == len(first.tokens) > 0
    while engine.turn():
        pass
    assert first.tokens == third.tokens and not second.tokens
    engine.close()
    with pytest.raises(ClosedError):
        engine.submit(request)

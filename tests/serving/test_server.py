"""OpenAI's own client talks to a real server, whose answers are those of `jaxfusion.generate`."""

import threading
import time
import urllib.request
from dataclasses import replace

import numpy as np
import openai
import pytest

import jaxfusion
from jaxfusion.generation.sampling import Sampling
from jaxfusion.models.int8 import has_int8
from tests.serving.running import data_url, png, saved, serving, user

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
DRAWN = {"temperature": 1.2, "seed": 3}


def chat(client, messages, **settings):
    return client.chat.completions.create(model="tiny", messages=messages, **settings)


def make_client(running):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)


def streamed(client, messages, **settings):
    """A stream's text, tokens, and end, of each choice."""
    texts, tokens, ends = {}, {}, {}
    for chunk in chat(client, messages, stream=True, **settings):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            tokens.setdefault(choice.index, []).extend(choice.logprobs.content if choice.logprobs else [])
            ends[choice.index] = choice.finish_reason
    return texts, tokens, ends


def test_a_chat_about_two_pictures_is_answered_as_by_generate(client, served):
    urls = [data_url(png(PICTURES[0])), data_url(saved(PICTURES[1], "WEBP", lossless=True), "image/jpeg")]
    reply = chat(client, user(*urls, "which is redder?"), max_completion_tokens=20, logprobs=True, **DRAWN)
    settings = {"max_new_tokens": 20, "sampling": Sampling(temperature=1.2), "seed": 3}
    (expected,) = jaxfusion.generate(served.model, served.params, ["which is redder?"], [list(PICTURES)], **settings)
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected)
    assert reply.usage.prompt_tokens == 2 + 2 * 4 + len("which is redder?")
    assert reply.usage.completion_tokens <= 20 and choice.finish_reason in ("stop", "length")
    swapped = chat(client, user(*urls[::-1], "which is redder?"), max_completion_tokens=20, logprobs=True, **DRAWN)
    assert swapped.choices[0].logprobs != choice.logprobs


def test_a_conversation_goes_on(client):
    first = user("a")
    reply = chat(client, first, max_tokens=5, **DRAWN).choices[0].message
    second = chat(client, [*first, reply, *user("b")], max_tokens=5, **DRAWN)
    assert second.usage.prompt_tokens > 5


@pytest.mark.parametrize("stop", [None, ["no such"], "found"])
def test_a_stream_says_the_same(client, stop):
    settings = {"max_tokens": 40, "logprobs": True, **DRAWN}
    if stop == "found":
        said = chat(client, user("hello"), **settings).choices[0].message.content
        stop = said[len(said) // 2 :][:3]
        assert len(stop) == 3
    reply = chat(client, user("hello"), stop=stop, **settings).choices[0]
    texts, tokens, ends = streamed(client, user("hello"), stop=stop, **settings)
    assert texts[0] == reply.message.content
    assert tokens[0] == reply.logprobs.content
    assert ends[0] == reply.finish_reason
    if isinstance(stop, str):
        assert (reply.message.content, ends[0]) == (said[: said.index(stop)], "stop")


def test_log_probabilities_are_of_the_tokens_that_were_chosen(client, served):
    reply = chat(client, user("hello"), max_tokens=30, logprobs=True, **DRAWN).choices[0]
    told = reply.logprobs.content
    assert 0 < len(told) <= 30 and all(-20 < token.logprob < 0 for token in told)
    assert b"".join(bytes(token.bytes) for token in told).decode().rstrip() == reply.message.content
    assert "".join(token.token for token in told).rstrip() == reply.message.content
    cold = chat(client, user("hello"), max_tokens=30, logprobs=True).choices[0].logprobs.content
    assert np.mean([token.logprob for token in cold]) > np.mean([token.logprob for token in told])


def test_the_most_probable_tokens_are_told_beside_each(client):
    """Greedy ones are the first of them; drawn ones are whatever they are."""
    settings = {"max_tokens": 30, "logprobs": True}
    plain = chat(client, user("hello"), **settings).choices[0]
    cold = chat(client, user("hello"), top_logprobs=20, **settings).choices[0]
    assert cold.message == plain.message and all(token.top_logprobs == [] for token in plain.logprobs.content)
    for token, told in zip(plain.logprobs.content, cold.logprobs.content, strict=True):
        assert (told.token, told.logprob) == (token.token, token.logprob)
        numbers = [one.logprob for one in told.top_logprobs]
        assert len(numbers) == 20 and numbers == sorted(numbers, reverse=True) and sum(np.exp(numbers)) < 1
        assert (told.top_logprobs[0].token, numbers[0]) == (token.token, token.logprob)
        assert all(bytes(one.bytes).decode() == one.token for one in told.top_logprobs)
    drawn = settings | DRAWN | {"top_logprobs": 3}
    whole = chat(client, user("hello"), **drawn).choices[0].logprobs.content
    assert {len(token.top_logprobs) for token in whole} == {3}
    assert any(token.logprob < token.top_logprobs[-1].logprob for token in whole)
    assert streamed(client, user("hello"), **drawn)[1][0] == whole


def test_completions_tell_the_most_probable_tokens_and_the_chosen_one(client):
    settings = {"model": "tiny", "prompt": "bc", "max_tokens": 20, "logprobs": 4, **DRAWN}
    told = client.completions.create(**settings).choices[0].logprobs
    assert len(told.top_logprobs) == len(told.tokens) > 0
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert token in top and len(top) <= 5 and max(top.values()) >= logprob
        assert top[token] >= logprob  # more where a more probable one has the same text
    assert any(len(top) == 5 for top in told.top_logprobs)
    assert client.completions.create(**settings | {"logprobs": 0}).choices[0].logprobs.top_logprobs is None
    stream = [chunk.choices[0].logprobs for chunk in client.completions.create(**settings, stream=True)]
    assert [top for part in stream if part for top in part.top_logprobs] == told.top_logprobs


def test_several_answers_are_those_of_the_seeds_that_follow(client):
    settings = {"temperature": 1.2, "max_tokens": 12}
    together = chat(client, user("x"), n=3, seed=5, **settings)
    alone = [chat(client, user("x"), seed=5 + place, **settings).choices[0].message.content for place in range(3)]
    assert [choice.message.content for choice in together.choices] == alone
    assert len(set(alone)) == 3
    assert list(streamed(client, user("x"), n=3, seed=5, **settings)[0].values()) == alone


def test_a_stream_ends_with_its_usage_if_asked(client):
    *_, last = chat(client, user("x"), stream=True, max_tokens=4, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


def test_completions_of_several_prompts_are_those_of_generate(client, served):
    reply = client.completions.create(model="tiny", prompt=["a", "bc"], max_tokens=9, logprobs=0, **DRAWN)
    expected = [
        jaxfusion.generate(
            served.model, served.params, [prompt], max_new_tokens=9, sampling=Sampling(temperature=1.2), seed=3
        )[0]
        for prompt in ("a", "bc")
    ]
    assert [choice.text for choice in reply.choices] == expected
    told = reply.choices[1].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) > 0
    stream = client.completions.create(model="tiny", prompt="bc", max_tokens=9, stream=True, **DRAWN)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected[1]


def test_what_a_request_leaves_open_is_as_the_config_says(client):
    """Greedy, and 64 tokens, or as many as there is room for."""
    replies = [chat(client, user("x" * length)) for length in (5, 5, 120)]
    assert replies[0].choices == replies[1].choices
    assert replies[2].usage.total_tokens <= 160


@pytest.mark.parametrize(
    ("settings", "kind", "message", "param", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "there is no model 'other'", "model", "model_not_found"),
        ({"temperature": 3}, openai.BadRequestError, "less than or equal to 2", "temperature", None),
        ({"max_tokens": 500}, openai.BadRequestError, "has 160 positions", None, "context_length_exceeded"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs: they come with logprobs", "top_logprobs", None),
        ({"top_logprobs": 21}, openai.BadRequestError, "less than or equal to 20", "top_logprobs", None),
        ({"tools": []}, openai.BadRequestError, "tools: this server knows no such field", "tools", None),
        ({"presence_penalty": 1}, openai.BadRequestError, "less than or equal to 0", "presence_penalty", None),
        (
            {"messages": user("https://localhost/a.png")},
            openai.BadRequestError,
            "give the picture as data:image/png",
            "messages.0.content.0.image_url.url",
            None,
        ),
        (
            {"messages": [{"role": "system", "content": "be brief"}, *user("x")]},
            openai.BadRequestError,
            "has learned no system messages",
            "messages",
            None,
        ),
        (
            {"messages": [*user("x"), {"role": "assistant", "content": "y"}]},
            openai.BadRequestError,
            "the last one has to be the user's",
            "messages",
            None,
        ),
    ],
)
def test_errors_are_of_the_types_that_the_client_knows(client, settings, kind, message, param, code):
    with pytest.raises(kind, match=message) as error:
        client.chat.completions.create(**{"model": "tiny", "messages": user("x")} | settings)
    assert (error.value.param, error.value.code) == (param, code)


def test_a_wrong_key_is_refused(tiny, monkeypatch):
    monkeypatch.setenv("JAXFUSION_API_KEYS", "second, third")
    with serving(*tiny, api_keys=("first",)) as running:
        for key, right in {"first": True, "third": True, "firs": False, "thir": False}.items():
            headers = {"Authorization": f"Bearer {key}"}
            with make_client(running) as client:
                if right:
                    assert client.models.list(extra_headers=headers).data[0].id == "tiny"
                else:
                    with pytest.raises(openai.AuthenticationError, match="a wrong API key, or none"):
                        client.models.list(extra_headers=headers)
        assert urllib.request.urlopen(f"{running.url}/health").status == 200


def test_more_than_can_wait_are_told_to_come_again(tiny):
    """Of eight at once two are taken, one of which waits for the other's row."""
    outcomes = []

    def ask(client):
        try:
            outcomes.append(chat(client, user("x"), max_tokens=150, temperature=0.0).choices[0].finish_reason)
        except openai.RateLimitError as error:
            outcomes.append(error.response.headers["retry-after"])

    with serving(*tiny, num_rows=1, max_waiting=1) as running, make_client(running) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 8 and "1" in outcomes and set(outcomes) & {"stop", "length"}
        with pytest.raises(openai.RateLimitError, match="[12] requests are waiting already"):
            chat(client, user("x"), n=3, max_tokens=150)
        assert chat(client, user("x"), max_tokens=1).choices


def test_health_models_and_metrics(client, served):
    assert urllib.request.urlopen(f"{served.url}/health").read() == b'{"status":"ok"}'
    (card,) = client.models.list().data
    assert (card.id, card.owned_by) == ("tiny", "jaxfusion")
    chat(client, user("x"), max_tokens=3)
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)
    lines = urllib.request.urlopen(f"{served.url}/metrics").read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['jaxfusion_requests_total{path="/v1/chat/completions",status="200"}']) > 0
    assert float(values['jaxfusion_requests_total{path="other",status="404"}']) > 0
    assert float(values["jaxfusion_answer_tokens_total"]) > 0 and float(values["jaxfusion_prompt_tokens_total"]) > 0
    assert (values["jaxfusion_rows"], values["jaxfusion_requests_waiting"]) == ("4.0", "0.0")
    assert float(values["jaxfusion_first_token_seconds_count"]) > 0


def test_a_second_question_about_a_picture_finds_its_keys_and_values(client, served):
    def numbers() -> dict[str, float]:
        lines = urllib.request.urlopen(f"{served.url}/metrics").read().decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("jaxfusion_prefix"))
        return {name: float(value) for name, value in values.items()}

    picture, before = data_url(png(np.full((8, 8, 3), 201, np.uint8))), numbers()
    first, _, again = (
        chat(client, user(picture, text), max_tokens=4).choices[0].message.content for text in ("who?", "why?", "who?")
    )
    grown = {name: value - before[name] for name, value in numbers().items()}
    assert first == again
    assert (grown["jaxfusion_prefix_hits_total"], grown["jaxfusion_prefix_misses_total"]) == (2, 1)
    positions = 1 + served.model.config.tokens_per_image  # <bos> and the picture
    assert grown["jaxfusion_prefix_positions_total"] == 2 * positions and grown["jaxfusion_prefix_bytes"] > 0


def test_keys_values_and_weights_may_be_in_8_bits(tiny):
    with serving(*tiny, generate={"cache_dtype": "int8", "weights": "int8"}) as running, make_client(running) as client:
        engine = running.server.engine
        assert engine._state.cache.layers[0].key.values.dtype == np.int8 and has_int8(engine._params)
        reply = chat(client, user(data_url(png(PICTURES[0])), "which?"), max_tokens=4, temperature=0).choices[0]
        assert reply.finish_reason in ("stop", "length")


def test_a_failing_engine_fails_its_answers_and_another_takes_its_place(tiny, monkeypatch):
    def fails(*_, **__):
        raise MemoryError

    with serving(*tiny) as running, make_client(running) as client:
        with monkeypatch.context() as patch:
            patch.setattr("jaxfusion.generation.engine.decode_block", fails)
            with pytest.raises(openai.InternalServerError, match="the server failed; its log says how") as error:
                chat(client, user("x"), max_tokens=30)
            assert error.value.status_code == 500
            with pytest.raises(openai.APIError, match="the server failed; its log says how|takes no requests"):
                list(chat(client, user("x"), max_tokens=30, stream=True))
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                answered = chat(client, user("x"), max_tokens=30).choices
                break
            except openai.InternalServerError as error:  # it is not there yet
                assert error.status_code == 503
        assert answered and urllib.request.urlopen(f"{running.url}/health").status == 200


def test_an_answer_that_takes_too_long_is_broken_off(tiny):
    """By a clock that has run out before it began; whole, and as a stream."""
    with serving(*tiny) as running, make_client(running) as client:
        reader = running.server.reader
        running.server.reader = replace(reader, settings=replace(reader.settings, timeout=0.0))
        with pytest.raises(openai.InternalServerError, match="took too long") as error:
            chat(client, user("x"), max_tokens=100)
        assert (error.value.status_code, error.value.code) == (504, "timeout")
        with pytest.raises(openai.APIError, match="took too long"):
            list(chat(client, user("x"), max_tokens=100, stream=True))
        running.server.reader = reader
        assert chat(client, user("x"), max_tokens=1).choices

"""What evaluation harnesses send, as they send it: none of them is needed here. See docs/harness.md.

Bodies are as lmms-eval 0.7.3 (models/chat/openai.py, async_openai.py) and lm-eval 0.4.13 (models/openai_completions.py,
models/api_models.py, utils.py's RemoteTokenizer) make them; both were run against a server.
"""

import asyncio
import http.client
import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from jaxfusion.data.packing import pack
from jaxfusion.generation.engine import ClosedError
from jaxfusion.generation.told import _read, document, tell
from jaxfusion.models.vlm import forward
from jaxfusion.serving.echo import Teller, Telling
from jaxfusion.serving.text import AnswerText
from tests.serving.running import data_url, png, serving

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
IMAGE = {"type": "image_url", "image_url": {"url": data_url(png(PICTURE))}}
TEXT = {"type": "text", "text": "How many digits are there?"}


def send(served, path, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(served.url + path, data, {"Content-Type": "application/json"} | headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


@pytest.mark.parametrize(
    "body",
    [
        # lmms-eval's openai and async_openai
        {"messages": [{"role": "user", "content": [IMAGE, TEXT]}], "max_tokens": 8, "temperature": 0},
        {"messages": [{"role": "user", "content": [TEXT, IMAGE]}], "max_tokens": 8, "temperature": 0.0}
        | {"top_p": 1.0, "seed": 3, "presence_penalty": 0, "frequency_penalty": 0.0, "n": 1},
        # lm-eval's local-chat-completions
        {"messages": [{"role": "user", "content": "How many?"}], "max_tokens": 8, "temperature": 0}
        | {"stop": ["\n\n"], "seed": 1234},
        {
            "messages": [
                {"role": "user", "content": [IMAGE | {"image_url": IMAGE["image_url"] | {"detail": "auto"}}, TEXT]}
            ]
        }
        | {"max_tokens": 8, "temperature": 0, "stop": [], "seed": 1234},
    ],
)
def test_chats_of_harnesses_are_answered(served, body):
    reply = send(served, "/v1/chat/completions", body | {"model": "tiny"}, Authorization="Bearer EMPTY")
    (choice,) = reply["choices"]
    assert isinstance(choice["message"]["content"], str) and choice["finish_reason"] in ("stop", "length")
    assert reply["usage"]["completion_tokens"] <= 8


def likelihood(served, prompt, **more):
    """As lm-eval's local-completions asks for the log-likelihood of an answer."""
    settings = {"model": "tiny", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    return send(served, "/v1/completions", settings | {"prompt": prompt} | more)["choices"]


def expected(served, ids):
    """log P of each token but the first, by the model's own logits."""
    segment, begins = document(ids, served.model.tokenizer)
    batch = pack([[segment]], len(segment.tokens), 4)
    logits = np.asarray(forward(served.model, served.params, batch))[0].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[begins:-1], logprobs[np.arange(begins, len(segment.tokens) - 1), segment.tokens[begins + 1 :]]


def test_a_prompts_tokens_are_told_with_their_log_probabilities(served):
    ids = send(served, "/tokenize", {"prompt": "one or two", "add_special_tokens": False})["tokens"]
    (choice,) = likelihood(served, [ids])
    told = choice["logprobs"]
    everything, logprobs = expected(served, ids)
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert len(told["token_logprobs"]) == len(ids) + 1  # and the one that came
    np.testing.assert_allclose(told["token_logprobs"][1:-1], logprobs, atol=1e-4)
    best = [max(top.values()) for top in told["top_logprobs"][1:-1]]
    np.testing.assert_allclose(best, everything.max(-1), atol=1e-4)
    assert choice["text"].startswith("one or two") and "".join(told["tokens"][: len(ids)]) == "one or two"
    assert told["text_offset"][: len(ids)] == np.cumsum([0, *map(len, told["tokens"][: len(ids) - 1])]).tolist()
    # lm-eval's reading: an answer is greedy where no token is less probable than the best one there.
    greedy = likelihood(served, [*ids, int(everything[-1].argmax())])[0]["logprobs"]
    assert len(greedy["tokens"]) == len(ids) + 2


def test_prompts_are_texts_or_tokens_and_one_or_several(served):
    texts = ["one or two", "a"]
    ids = [send(served, "/tokenize", {"prompt": text})["tokens"] for text in texts]
    several = likelihood(served, ids)
    assert [c["logprobs"] for c in likelihood(served, texts)] == [c["logprobs"] for c in several]
    assert [c["logprobs"] for text in texts for c in likelihood(served, text)] == [c["logprobs"] for c in several]
    nothing = likelihood(served, ids[0], max_tokens=0)[0]
    assert nothing["text"] == "one or two" and nothing["finish_reason"] == "length"
    assert nothing["logprobs"]["token_logprobs"] == several[0]["logprobs"]["token_logprobs"][:-1]
    assert likelihood(served, ids[0], logprobs=None)[0]["logprobs"] is None
    generated = {"model": "tiny", "prompt": ids[0], "max_tokens": 4, "temperature": 0, "stop": ["\n"], "seed": 1234}
    (choice,) = send(served, "/v1/completions", generated)["choices"]
    assert choice["text"].strip() == likelihood(served, ids[0], max_tokens=4)[0]["text"][len("one or two") :].strip()


def test_an_answer_goes_on_where_its_prompt_ends(served, monkeypatch):
    """Word for word, so that texts and places fit together; prompts of tokens are gone on with in the same way."""
    went_on = []
    monkeypatch.setattr(
        "jaxfusion.serving.server.AnswerText", lambda *given: went_on.append(given[2]) or AnswerText(*given)
    )
    ids = send(served, "/tokenize", {"prompt": "one or two"})["tokens"]
    settings = {"temperature": 1.2, "max_tokens": 12}
    told, of_tokens, _ = (
        likelihood(served, prompt, echo=echo, **settings)[0]
        for prompt, echo in ((ids, True), (ids, False), ("one or two", False))
    )
    begun = [served.model.tokenizer.bos_id, *ids]
    assert went_on == [begun, begun, None]  # text is laid out, and answered
    assert told["text"] == "one or two" + of_tokens["text"]
    tokens = told["logprobs"]["tokens"]
    assert "".join(tokens).rstrip() == told["text"].rstrip()
    assert told["logprobs"]["text_offset"] == np.cumsum([0, *map(len, tokens)])[:-1].tolist()


def test_tokens_stand_behind_what_begins_a_text_unless_they_bring_it(served):
    tokenizer = served.model.tokenizer
    ids = tokenizer.encode("one")
    replies = [
        send(served, "/v1/completions", {"prompt": prompt, "max_tokens": 1})
        for prompt in (ids, [tokenizer.bos_id, *ids])
    ]
    assert [reply["usage"]["prompt_tokens"] for reply in replies] == [len(ids) + 1] * 2
    assert replies[0]["choices"] == replies[1]["choices"]


@pytest.mark.parametrize("prefix", [(), None])
def test_an_empty_prompt_is_answered_from_what_begins_a_text(tiny, prefix):
    """Of a tokenizer that puts nothing before a text (GPT-2's) too."""
    model, _ = tiny
    tokenizer = copy(model.tokenizer)
    tokenizer.prefix = prefix
    segment, begins = document([], tokenizer)
    assert (segment.tokens.tolist(), begins) == ([tokenizer.bos_id], 1)
    assert document([5], tokenizer)[0].tokens.tolist() == ([5] if prefix == () else [tokenizer.bos_id, 5])


def test_an_empty_prompt_is_told(served):
    (choice,) = likelihood(served, "", max_tokens=2)
    assert len(choice["logprobs"]["tokens"]) <= 2
    (choice,) = likelihood(served, "", max_tokens=0)
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("", [])


def test_few_programs_are_compiled_whatever_is_asked(served):
    likelihood(served, [5] * 40, max_tokens=0)
    before = _read._cache_size()
    for length in (63, 50, 34):
        for logprobs in range(6):
            (choice,) = likelihood(served, [5] * length, max_tokens=0, logprobs=logprobs)
            top = choice["logprobs"]["top_logprobs"]
            assert top is None if logprobs == 0 else all(len(one) <= logprobs + 1 for one in top[1:])
    assert _read._cache_size() == before


class Slow:
    """Tells as `tell` does, once it may go on."""

    def __init__(self) -> None:
        self.begun, self.going_on, self.read = threading.Event(), threading.Event(), 0

    def __call__(self, *given):
        self.read += 1
        self.begun.set()
        assert self.going_on.wait(60)
        return tell(*given)


@pytest.fixture
def slow(monkeypatch):
    slow = Slow()
    monkeypatch.setattr("jaxfusion.serving.echo.tell", slow)
    yield slow
    slow.going_on.set()


def test_a_deadline_ends_the_telling_and_nobody_else_waits_for_it(served, slow, monkeypatch):
    """At the next prompt, and what had been taken behind it is not begun."""
    reader = served.server.reader
    soon = replace(reader, settings=replace(reader.settings, timeout=1.0))
    with monkeypatch.context() as patched, ThreadPoolExecutor(8) as threads:
        patched.setattr(served.server, "reader", soon)
        asked = [threads.submit(likelihood, served, ["one", "two", "three"], max_tokens=0) for _ in range(8)]
        assert slow.begun.wait(60)
        assert send(served, "/tokenize", {"prompt": "one"})["count"] == 3  # more wait than there are readers
        for one in asked:
            with pytest.raises(urllib.error.HTTPError, match="504"):
                one.result(60)
    slow.going_on.set()
    (choice,) = likelihood(served, "one", max_tokens=0)
    assert choice["text"] == "one" and slow.read == 2


def test_so_does_a_client_that_leaves(served, slow, monkeypatch):
    cancelled, cancel = threading.Event(), Telling.cancel
    monkeypatch.setattr(Telling, "cancel", lambda telling: cancel(telling) or cancelled.set())
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)
    asked = {"prompt": ["one", "two", "three"], "echo": True, "logprobs": 1, "max_tokens": 0}
    connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
    assert slow.begun.wait(60)
    connection.close()
    assert cancelled.wait(60)
    slow.going_on.set()
    (choice,) = likelihood(served, "one", max_tokens=0)
    assert choice["text"] == "one" and slow.read == 2


def test_so_does_the_end_of_the_server(tiny, slow):
    teller = Teller(*tiny, 3)
    found = [document([5, 6], tiny[0].tokenizer)] * 3

    async def ask():
        asked = asyncio.create_task(teller.echoes(Telling(), found, 1))
        await asyncio.to_thread(slow.begun.wait, 60)
        teller.close()
        slow.going_on.set()
        await asked

    with pytest.raises(ClosedError):
        asyncio.run(ask())
    assert slow.read == 1


def test_prompts_that_wait_to_be_told_are_counted(tiny, slow):
    with serving(*tiny, num_rows=2, max_waiting=2) as running, ThreadPoolExecutor(1) as threads:
        first = threads.submit(likelihood, running, ["one", "two", "three"], max_tokens=0)
        assert slow.begun.wait(60)
        with pytest.raises(urllib.error.HTTPError, match="429"):
            likelihood(running, ["one", "two"], max_tokens=0)
        slow.going_on.set()
        assert len(first.result(60)) == 3
        assert len(likelihood(running, ["one", "two", "three", "four"], max_tokens=0)) == 4


def test_tokens_there_and_back(served):
    info = send(served, "/tokenizer_info")
    assert info == {"eos_token": None, "bos_token": None, "pad_token": None, "chat_template": None}
    found = send(served, "/tokenize", {"prompt": "数 5, ok", "add_special_tokens": False})
    assert found["tokens"] == served.model.tokenizer.encode("数 5, ok") and found["count"] == len(found["tokens"])
    assert send(served, "/detokenize", {"tokens": found["tokens"]}) == {"prompt": "数 5, ok"}


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/completions", {"prompt": [5, 10**6]}, "holds the token 1000000"),
        ("/v1/completions", {"prompt": [5] * 500, "echo": True}, "context has 160 positions"),
        ("/v1/completions", {"prompt": "a", "echo": True, "stream": True}, "echo: a prompt is not told in a stream"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, "max_tokens: 0 leaves nothing to tell"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True, "n": 2}, "n: 2 times the same prompt"),
        ("/v1/completions", {"prompt": ["a" * 100] * 30, "echo": True}, "echo tells 2560 at once"),
        ("/v1/completions", {"prompt": ["a" * 100] * 10, "echo": True, "n": 3}, "3 times, and echo tells 2560 at once"),
        ("/v1/completions", {"prompt": [], "echo": True}, "prompt"),
        ("/v1/completions", {"prompt": [-1]}, "prompt"),
        ("/v1/completions", {"prompt": "a", "echo": True, "model": "other"}, "there is no model 'other'"),
        ("/detokenize", {"tokens": [10**6]}, "tokens: 1000000 is none"),
        ("/tokenize", {"prompt": "a" * 10**5}, "100,000 characters"),
    ],
)
def test_what_is_wrong_with_them_is_told(served, path, body, told):
    with pytest.raises(urllib.error.HTTPError) as error:
        send(served, path, body)
    assert error.value.code in (400, 404) and told in json.load(error.value)["error"]["message"]


def test_tokenising_asks_for_the_key_too(tiny):
    with serving(*tiny, api_keys=("secret",)) as running:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/tokenizer_info", None)):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                send(running, path, body)
            assert send(running, path, body, Authorization="Bearer secret")

"""From messages to prompts, by a checkpoint's chat template and without one."""

from dataclasses import replace

import pytest

from jaxfusion.config.run import GenerateConfig, ServeConfig
from jaxfusion.data.messages import Message
from jaxfusion.data.tokenise import Layout, tokenise_prompt
from jaxfusion.serving.errors import ApiError
from jaxfusion.serving.prompts import Reader
from jaxfusion.serving.protocol import ChatRequest
from jaxfusion.text.pretrained import load_tokenizer
from tests.checkpoint_tokenizers import qwen

TALK = [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "what is "}, {"type": "text", "text": "there?"}]},
    {"role": "assistant", "content": "a large red 3", "refusal": None},
    {"role": "user", "content": "where?"},
]


def make_reader(model, **settings):
    limits = {"settings": ServeConfig(), "defaults": GenerateConfig(), "num_positions": 160}
    return Reader(model=model, **limits | settings)


def messages(talk):
    return ChatRequest.model_validate({"messages": talk}).messages


def test_a_system_message_stands_where_the_checkpoints_template_puts_it(tiny, tmp_path):
    tokenizer = load_tokenizer(qwen(tmp_path))
    model, _ = tiny
    sizes = replace(model.config.text_embedding, vocab_size=tokenizer.vocab_size)
    model = replace(model, config=replace(model.config, text_embedding=sizes), tokenizer=tokenizer)
    segment = make_reader(model).chat(messages(TALK))
    text = tokenizer.text(segment.tokens)
    assert text == "system\nbe brief\nuser\nwhat is there?\nassistant\na large red 3\nuser\nwhere?\nassistant\n"


def test_what_people_write_is_prepared_as_the_run_was_trained(tiny):
    model, _ = tiny
    segment = make_reader(model, prepare=str.upper).chat(messages(TALK[1:]))
    said = (("user", "WHAT IS THERE?"), ("assistant", "a large red 3"), ("user", "WHERE?"))
    expected = tuple(Message(role, (text,)) for role, text in said)
    assert (
        segment.tokens.tolist() == tokenise_prompt(expected, model.tokenizer, Layout.of(model.config)).tokens.tolist()
    )


def test_a_model_that_sees_nothing_is_shown_nothing(tiny):
    model, _ = tiny
    blind = make_reader(replace(model, config=replace(model.config, vision=None)))
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    with pytest.raises(ApiError, match="the model sees no pictures"):
        blind.chat(messages([{"role": "user", "content": [picture]}]))

"""A prompt's words: what a task asks is put in its place once, and what cannot be said is refused by its setting."""

import pytest

from jaxfusion.config.run import DataConfig
from jaxfusion.data.request import as_asked, check_prompt, request
from jaxfusion.errors import UserError


def test_what_is_asked_stands_in_its_place_with_its_own_braces():
    config = DataConfig(task="question_answer", prompt="Q: {question}\nA: in {a word}, {question}")
    assert request("is {question} {x} odd?", config) == (
        "Q: is {question} {x} odd?\nA: in {a word}, is {question} {x} odd?",
    )
    assert request("a?", DataConfig()) == ("a?",)
    assert request("", DataConfig()) == ()
    assert request("", DataConfig(prompt="Describe the picture.")) == ("Describe the picture.",)


def test_a_persons_own_words_go_there_or_stand_alone():
    asks = DataConfig(task="question_answer", prompt="{question} Answer briefly.")
    assert as_asked("How many?", asks) == "How many? Answer briefly."
    describes = DataConfig(prompt="Describe the picture.")
    assert as_asked("", describes) == "Describe the picture."
    assert as_asked("How many?", describes) == "How many?"
    assert as_asked("", DataConfig()) == ""


@pytest.mark.parametrize(
    ("task", "prompt", "message"),
    [
        ("caption", "Describe {image}", "{image} is nothing of the task 'caption'; it has no placeholder"),
        ("caption", "Describe {}", "{} is nothing of the task 'caption'"),
        ("question_answer", "{questoin}", "{questoin} is nothing of the task 'question_answer'; it has {question}"),
        ("question_answer", "Answer.", "asks by it; put {question} where its question is to stand"),
        ("summarize", "Summarise.", "asks by it; put {document} where"),
        ("summarize", "{text}", "{text} is nothing of the task 'summarize'; it has {document}"),
        ("dialogue", "x", "the task 'dialogue' asks nothing in words of its own"),
        ("text", "x", "asks nothing in words"),
    ],
)
def test_prompts_that_cannot_be_said_are_refused(task, prompt, message):
    with pytest.raises(UserError) as error:
        check_prompt(DataConfig(task=task, prompt=prompt), "config.data.prompt")
    assert str(error.value).startswith("config.data.prompt: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        ("caption", "Describe the picture as {'a': 1}."),
        ("classify", "Good or bad?"),
        ("classify", "Good or bad? {text}"),
        ("summarize", "{document}\nIn short:"),
        ("dialogue", ""),
    ],
)
def test_prompts_that_can_be_said_are_taken(task, prompt):
    check_prompt(DataConfig(task=task, prompt=prompt), "config.data.prompt")

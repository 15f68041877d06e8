"""A conversation in the terminal, of a tiny random model."""

import _thread
import io

import pytest
from rich.console import Console

from jaxfusion.chat import chat
from jaxfusion.config import Config, from_dict
from jaxfusion.data.messages import answer, ask
from jaxfusion.generation.generate import answer_messages
from tests.serving.running import tiny_model


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


class Interrupting(io.StringIO):
    """Presses Ctrl-C as soon as an answer's first tokens are shown."""

    pressed = False

    def write(self, text: str) -> int:
        if not self.pressed and not text.startswith("/") and text.strip(" >\n"):
            self.pressed = True
            _thread.interrupt_main()
        return super().write(text)


def talk(tiny, monkeypatch, lines: list[str], out: io.StringIO, **generate) -> list[str]:
    """What the terminal shows."""
    config = from_dict(Config, {"generate": generate})
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    chat(*tiny, config, console=Console(file=out, width=200))
    return out.getvalue().split("\n")


def shown(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def test_a_conversation_goes_on_until_it_is_too_long_or_begun_anew(tiny, monkeypatch):
    """The second answer knows the first question and answer."""
    out, settings = io.StringIO(), {"max_new_tokens": 8}
    talk(tiny, monkeypatch, ["ab", "cd", "x" * 200, "/reset", "ab"], out, **settings)
    (first,) = answer_messages(*tiny, [(ask("ab"),)], **settings)
    (second,) = answer_messages(*tiny, [(ask("ab"), answer(first), ask("cd"))], **settings)
    text = out.getvalue()
    assert text.count(shown(first)) >= 2 and shown(second) in text
    assert "positions of 160; /reset begins anew" in text
    assert text.count("tokens/s") == 3


def test_ctrl_c_during_an_answer_does_not_end_the_conversation(tiny, monkeypatch):
    out = Interrupting()
    lines = talk(tiny, monkeypatch, ["ab", "cd"], out, max_new_tokens=24)  # there is room for two whole ones
    assert out.pressed
    counts = [int(line.split()[0]) for line in lines if "tokens/s" in line]
    assert len(counts) == 2  # how far the first one comes depends on how busy the machine is

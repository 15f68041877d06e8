"""`--mode chat`: a conversation in the terminal, whose answers are shown as they grow."""

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from rich.console import Console

from jaxfusion.config import Config
from jaxfusion.data.messages import Image, Message, answer, ask
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import sampling_of
from jaxfusion.generation.answer import Answer, Request
from jaxfusion.generation.decode import decoding_params
from jaxfusion.generation.engine import Engine
from jaxfusion.generation.generate import check_prompts, prompt_segment, read_images
from jaxfusion.generation.sampling import Sampling
from jaxfusion.models.vlm import Model, Params
from jaxfusion.serving.text import AnswerText

HELP = "/image PATH shows a picture, /reset begins anew, /quit ends; Ctrl-C ends an answer"


def chat(
    model: Model,
    params: Params,
    config: Config,
    *,
    prepare: Callable[[str], str] = lambda text: text,
    console: Console | None = None,
) -> None:
    """Reads lines until there are no more. prepare: applied to what people write.

    An empty line asks about new pictures without words. `config.generate` says how answers are chosen, and
    `config.serve` how much room there is.
    Raises UserError for a model or settings that cannot chat, and where the engine fails.
    """
    console = console or Console()
    check_prompts(model, [])
    sampling = sampling_of(config.generate)
    if not isinstance(sampling, Sampling):
        raise UserError(f"config.generate.num_beams: {config.generate.num_beams} is not for --mode chat; set it to 1")
    room = {name: getattr(config.serve, name) for name in ("num_positions", "prefix_bytes")}
    room |= {"max_images": config.serve.max_images, "cache_dtype": config.generate.cache_dtype}
    engine = Engine(model, decoding_params(params, config.generate.weights), num_rows=1, **room)
    talk = Talk(model, config, sampling, engine, prepare, console)
    # Of its own, so that Ctrl-C stops what is said and not the engine.
    thread = Thread(target=engine.run, name="engine", daemon=True)
    thread.start()
    console.print(HELP, style="dim", markup=False, highlight=False, soft_wrap=True)
    try:
        while (line := _read(console)) is not None and line != "/quit":
            try:
                talk.hear(line)
            except UserError as error:
                if not thread.is_alive():
                    raise
                console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
    finally:
        engine.close()
        thread.join()


@dataclass
class Talk:
    """What has been said, and the pictures that the next question is about."""

    model: Model
    config: Config
    sampling: Sampling
    engine: Engine
    prepare: Callable[[str], str]
    console: Console
    said: tuple[Message, ...] = ()
    pictures: list[Any] = field(default_factory=list)

    def hear(self, line: str) -> None:
        """Raises UserError, and stays as it was, for what cannot be done."""
        command, _, rest = line.partition(" ")
        if command == "/image":
            self.pictures += read_images(self.model, _path(rest))
            count = len(self.pictures)
            told = f"{count} pictures go with what you write next" if count > 1 else "it goes with what you write next"
            self.console.print(told, style="dim", highlight=False)
        elif line == "/reset":
            self.said, self.pictures = (), []
        elif line.startswith("/"):
            raise UserError(f"{command} is no command; {HELP}")
        elif line or self.pictures:
            self._ask(line)

    def _ask(self, line: str) -> None:
        said = (*self.said, ask(*map(Image, self.pictures), self.prepare(line)))
        segment, found = prompt_segment(self.model, said), self.engine.prefixes.positions
        room = self.engine.num_positions - segment.size[0]
        if room < 1:
            raise UserError(
                f"the conversation takes {segment.size[0]} positions of {self.engine.num_positions}; /reset begins anew"
            )
        limit = min(self.config.generate.max_new_tokens, room)
        growing = self.engine.submit(
            Request(segment=segment, sampling=self.sampling, seed=self.config.generate.seed, limit=limit)
        )
        start = time.perf_counter()
        text, first, count = self._show(growing)
        if growing.end == "failed":
            raise UserError("the engine has failed, as it tells above; start again")
        seconds, reused = time.perf_counter() - start, self.engine.prefixes.positions - found
        speed = f"{count} tokens in {seconds:.2f} s ({count / seconds:,.1f} tokens/s), the first after {first:.2f} s"
        told = f"{speed}; {reused} of the prompt's {segment.size[0]} positions were kept"
        self.console.print(told, style="dim", markup=False, highlight=False, soft_wrap=True)
        self.said, self.pictures = (*said, answer(text)), []

    def _show(self, growing: Answer) -> tuple[str, float, int]:
        """The text, seconds to its first tokens, and how many tokens there are; it ends early at a Ctrl-C."""
        text, start, first = AnswerText(self.model.tokenizer, self.config.generate.stop), time.perf_counter(), 0.0
        whole, given = [], 0
        try:
            for tokens in growing:
                first = first or time.perf_counter() - start
                text.add(tokens, growing.since(given)[1][: len(tokens)])
                given += len(tokens)
                whole.append(text.take()[0])
                self._print(whole[-1])
                if text.stopped:
                    break
        except KeyboardInterrupt:
            pass
        growing.cancel()
        text.finish()
        whole.append(text.take()[0])
        with suppress(KeyboardInterrupt):  # there is nothing left to end
            self._print(whole[-1])
        self.console.print()
        return "".join(whole), first, text.count

    def _print(self, text: str) -> None:
        shown = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")  # no escape sequences
        self.console.print(shown, end="", markup=False, highlight=False, soft_wrap=True)


def _path(text: str) -> str:
    """What stands after /image, as a shell would read it."""
    try:
        (path,) = shlex.split(text)
    except ValueError:
        path = text.strip()
    if not path:
        raise UserError("/image: none was named; write /image PATH")
    return path


def _read(console: Console) -> str | None:
    """None where there are no more lines, or Ctrl-C ends it."""
    try:
        return console.input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None

"""From a request's messages to what the engine takes."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from jaxfusion.config.run import GenerateConfig, ServeConfig
from jaxfusion.data.messages import Image, Message, ask
from jaxfusion.data.tokenise import Segment
from jaxfusion.generation.answer import Request
from jaxfusion.generation.generate import as_seen, check_vocabulary, prompt_segment
from jaxfusion.generation.sampling import Sampling
from jaxfusion.models.vlm import Model
from jaxfusion.serving.echo import raw
from jaxfusion.serving.errors import ApiError
from jaxfusion.serving.pictures import read_picture
from jaxfusion.serving.protocol import ChatMessage, ImagePart, Sampled

# No vocabulary's tokens are that long on average, so what is longer needs no tokenising to be too long.
CHARACTERS = 32


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads requests for one model; it waits for what it reads, so not in an event loop.

    num_positions: of prompt and answer together. defaults: for what a request leaves open.
    prepare:       applied to what people write.
    """

    model: Model
    settings: ServeConfig
    defaults: GenerateConfig
    num_positions: int
    prepare: Callable[[str], str] = lambda text: text

    def chat(self, messages: Sequence[ChatMessage]) -> Segment:
        """Raises ApiError and UserError for a conversation that cannot be answered."""
        num_images = sum(isinstance(part, ImagePart) for message in messages for part in message.parts)
        if num_images and not hasattr(self.model.config.vision, "image_size"):
            raise ApiError(400, "messages: the model sees no pictures; leave them out", param="messages")
        if num_images > self.settings.max_images:
            limit = self.settings.max_images
            raise ApiError(400, f"messages: {num_images} pictures, and {limit} are allowed", param="messages")
        if messages[-1].role != "user":
            raise ApiError(400, "messages: the last one has to be the user's", param="messages")
        if self.model.tokenizer.chat_template is None and any(_role(m) == "system" for m in messages):
            raise ApiError(
                400, "messages: the model has learned no system messages; put it in the user's", param="messages"
            )
        self._check_length(sum(len(part.text) for m in messages for part in m.parts if not isinstance(part, ImagePart)))
        read = tuple(self._message(message, f"messages.{place}") for place, message in enumerate(messages))
        return prompt_segment(self.model, read)

    def text(self, prompt: str) -> Segment:
        """A lone prompt, as `jaxfusion.generate` lays it out."""
        self._check_length(len(prompt))
        return prompt_segment(self.model, (ask(self.prepare(prompt)),))

    def prompt(self, prompt: str | list[int]) -> Segment:
        """Text as `text` lays it out, and tokens as `raw` does."""
        return self.text(prompt) if isinstance(prompt, str) else self.raw(prompt)[0]

    def tokenise(self, text: str) -> list[int]:
        self._check_length(len(text))
        return self.model.tokenizer.encode(text)

    def detokenise(self, tokens: list[int]) -> str:
        size = self.model.tokenizer.vocab_size
        if (largest := max(tokens, default=0)) >= size:
            raise ApiError(400, f"tokens: {largest} is none; there are {size}", param="tokens")
        return self.model.tokenizer.text(tokens)

    def raw(self, prompt: str | list[int]) -> tuple[Segment, int]:
        """A text or its tokens without any layout, behind what begins a text, where they do not bring that, and how
        many tokens come so."""
        if isinstance(prompt, str):
            self._check_length(len(prompt))
        else:
            self._check_positions(len(prompt))
        segment, begins = raw(prompt, self.model)
        self._check_positions(len(segment.tokens))
        check_vocabulary(self.model, [segment])
        return segment, begins

    def requests(self, segment: Segment, body: Sampled) -> list[Request]:
        """As many as answers are wanted. Raises ApiError where prompt and answer exceed the context."""
        length = segment.size[0]
        room = self.num_positions - length
        limit = body.limit or min(self.defaults.max_new_tokens, room)
        if room < 1 or limit > room:
            asked = f" and the answer {body.limit}" if body.limit else ""
            raise self._too_long(f"the prompt takes {length} positions (images included){asked}")
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        settings = {
            field.name: getattr(self.defaults if getattr(body, field.name) is None else body, field.name)
            for field in fields(Sampling)
        }
        sampling = Sampling(**settings)
        return [
            Request(
                segment=segment,
                sampling=sampling,
                seed=(seed + place) % 2**32,
                limit=limit,
                top_logprobs=body.num_top,
            )
            for place in range(body.n or 1)
        ]

    def stops(self, body: Sampled) -> tuple[str, ...]:
        return self.defaults.stop if body.stops is None else body.stops

    def _message(self, message: ChatMessage, param: str) -> Message:
        role = _role(message)
        if role != "user" and any(isinstance(part, ImagePart) for part in message.parts):
            raise ApiError(400, f"{param}: pictures go in the user's messages", param=param)
        parts = []
        for place, part in enumerate(message.parts):
            if isinstance(part, ImagePart):
                picture = read_picture(part.image_url.url, self.settings, f"{param}.content.{place}.image_url.url")
                parts.append(Image(as_seen(self.model, picture)))
            else:
                parts.append(self.prepare(part.text) if role == "user" else part.text)
        return Message(role, tuple(parts))

    def _check_length(self, characters: int) -> None:
        if characters > CHARACTERS * self.num_positions:
            raise self._too_long(f"the prompt has {characters:,} characters")

    def _check_positions(self, number: int) -> None:
        if number > self.num_positions:
            raise self._too_long(f"the prompt takes {number} positions")

    def _too_long(self, what: str) -> ApiError:
        return ApiError(400, f"{what}; the context has {self.num_positions} positions", code="context_length_exceeded")


def _role(message: ChatMessage) -> str:
    return "system" if message.role == "developer" else message.role

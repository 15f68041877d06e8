"""What goes over the wire: OpenAI's requests and answers, as far as they are served."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# No request needs more, and each that is wrong makes an error to tell; of tokens the first one that is wrong is told.
MOST_FIELDS, MOST_ITEMS, MOST_PROMPTS, MOST_TOKENS = 100, 1000, 64, 2**17

FinishReason = Literal["stop", "length"]


def _characters(text: str) -> str:
    """Raises ValueError for half a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is no character") from None
    return text


Text = Annotated[str, AfterValidator(_characters)]
Stop = Annotated[str, Field(max_length=256)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=MOST_TOKENS, fail_fast=True)]


class Given(BaseModel):
    """A part of a request. Types are exact, a field that is not known is refused, and null is as good as left out."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if len(values) > MOST_FIELDS:
            raise ValueError(f"{len(values)} fields are more than there are")
        return {name: value for name, value in values.items() if value is not None}


class TextPart(Given):
    type: Literal["text"]
    text: Text


class ImageURL(Given):
    url: str  # a data URL, or one of a host that the server may ask
    detail: Literal["auto", "low", "high"] | None = None  # every picture is seen as the model takes it


class ImagePart(Given):
    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Given):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=MOST_ITEMS)]
    name: str | None = None  # no effect

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class StreamOptions(Given):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # no effect


class Sampled(Given):
    """How an answer is chosen; what is not given is as `config.generate` says."""

    model: str | None = Field(None, max_length=256)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: int | None = Field(None, ge=1, le=16)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # No effect.
    user: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=MOST_FIELDS)
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def num_top(self) -> int:
        """Most probable tokens that are to be told at each place."""
        raise NotImplementedError

    @property
    def stops(self) -> tuple[str, ...] | None:
        return (self.stop,) if isinstance(self.stop, str) else None if self.stop is None else tuple(self.stop)

    @property
    def usage_at_the_end(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampled):
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_ITEMS)
    max_completion_tokens: int | None = Field(None, ge=1)  # OpenAI's newer name of max_tokens
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_top(self) -> int:
        return self.top_logprobs or 0


class TextRequest(Sampled):
    # A text, or its tokens, which stand behind what begins a text; or several of either.
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    max_tokens: int | None = Field(None, ge=0)  # 0: with echo, where nothing but the prompt is to be told
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None
    best_of: Literal[1] | None = None

    @property
    def num_top(self) -> int:
        return self.logprobs or 0

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]  # the most probable first


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


class Reply(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: Reply
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]  # None: of a prompt's first token
    text_offset: list[int]
    top_logprobs: list[dict[str, float] | None] | None  # the chosen one among them, even if it is less probable


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Tokenised(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class TokeniseRequest(Given):
    model: str | None = Field(None, max_length=256)  # no effect
    prompt: Text
    add_special_tokens: bool | None = None  # no effect: of a text alone there are none


class DetokeniseRequest(Given):
    model: str | None = Field(None, max_length=256)  # no effect
    tokens: list[Token] = Field(max_length=MOST_TOKENS, fail_fast=True)


class Detokenised(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    """Special tokens have no text here: none of them comes out of any."""

    eos_token: None = None
    bos_token: None = None
    pad_token: None = None
    chat_template: None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["jaxfusion"] = "jaxfusion"
    max_model_len: int  # positions of prompt and answer together, images included


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail

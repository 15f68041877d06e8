"""The HTTP interface: which paths there are, and what they take."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from jaxfusion.config.model import AddFusionConfig
from jaxfusion.config.run import GenerateConfig, ServeConfig
from jaxfusion.generation.decode import decoding_params
from jaxfusion.generation.engine import Engine
from jaxfusion.generation.generate import check_prompts
from jaxfusion.models.vlm import Model, Params
from jaxfusion.serving.echo import Teller
from jaxfusion.serving.errors import ApiError, add_handlers
from jaxfusion.serving.limits import TOKENS, Limits
from jaxfusion.serving.metrics import CONTENT_TYPE, Measured
from jaxfusion.serving.page import page_routes
from jaxfusion.serving.prompts import Reader
from jaxfusion.serving.protocol import (
    ChatCompletion,
    ChatRequest,
    Detokenised,
    DetokeniseRequest,
    ErrorBody,
    Health,
    ModelCard,
    ModelList,
    TextCompletion,
    TextRequest,
    Tokenised,
    TokeniseRequest,
    TokenizerInfo,
)
from jaxfusion.serving.replies import ChatShape, TextShape
from jaxfusion.serving.server import Server

ERRORS = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", *TOKENS})


def make_app(
    model: Model,
    params: Params,
    *,
    name: str,
    settings: ServeConfig,
    defaults: GenerateConfig,
    keys: Sequence[str] = (),
    prepare: Callable[[str], str] = lambda text: text,
) -> FastAPI:
    """An ASGI app; its engine starts and ends with it, and is `app.state.server.engine`. Compiles what it needs.

    name:     of the model. keys: of whom may ask; none: everybody. prepare: see `Reader`.
    defaults: for what requests leave open.
    Raises UserError for a model that does not generate, or that has no tokenizer.
    """
    check_prompts(model, [])
    same = ("num_rows", "num_positions", "max_waiting", "prefix_bytes")
    engine_settings = {name: getattr(settings, name) for name in same}
    # Of a fusion that looks back at pictures every prompt has room for all; "add" takes one at most.
    engine_settings["max_images"] = 1 if model.config.fusion.kind == AddFusionConfig.kind else settings.max_images
    engine_settings["cache_dtype"] = defaults.cache_dtype
    decoded = decoding_params(params, defaults.weights)
    make_engine = partial(Engine, model, decoded, **engine_settings)
    num_positions = min(settings.num_positions, model.config.text_embedding.max_positions)
    reader = Reader(model=model, settings=settings, defaults=defaults, num_positions=num_positions, prepare=prepare)
    most = settings.num_rows + settings.max_waiting
    server = Server(reader, make_engine, Teller(model, decoded, most), name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server.running():
            yield

    page = page_routes()
    app = FastAPI(title="JaxFusion", lifespan=lifespan, docs_url=None, redoc_url=None, routes=page)
    app.state.server = server
    add_handlers(app)
    app.add_middleware(Limits, keys=keys, max_bytes=settings.max_request_bytes, max_requests=most)
    app.add_middleware(Measured, metrics=server.metrics, paths=PATHS | {route.path for route in page})
    _add_routes(app, server)
    return app


def _add_routes(app: FastAPI, server: Server) -> None:
    reader = server.reader

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERRORS)
    async def chat(body: ChatRequest, http: Request) -> Any:
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs: they come with logprobs; set that to true", param="top_logprobs")
        shape = ChatShape(server.name, bool(body.logprobs))
        return await server.answer(http, body, shape, lambda: [reader.chat(body.messages)])

    @app.post("/v1/completions", response_model=TextCompletion, responses=ERRORS)
    async def completions(body: TextRequest, http: Request) -> Any:
        if body.echo:
            return await server.echo(http, body)
        if body.max_tokens == 0:
            raise ApiError(400, "max_tokens: 0 leaves nothing to tell, unless echo is true", param="max_tokens")
        shape = TextShape(server.name, body.logprobs)
        are_tokens = not isinstance(body.prompts[0], str)
        return await server.answer(
            http, body, shape, lambda: [reader.prompt(prompt) for prompt in body.prompts], goes_on=are_tokens
        )

    # As vLLM has them, for harnesses that have to know where a prompt's tokens end.
    @app.get("/tokenizer_info", responses=ERRORS)
    async def tokenizer_info() -> TokenizerInfo:
        return TokenizerInfo()

    @app.post("/tokenize", responses=ERRORS)
    async def tokenize(body: TokeniseRequest) -> Tokenised:
        tokens = await server.in_reader(reader.tokenise, body.prompt)
        return Tokenised(tokens=tokens, count=len(tokens), max_model_len=reader.num_positions)

    @app.post("/detokenize", responses=ERRORS)
    async def detokenize(body: DetokeniseRequest) -> Detokenised:
        return Detokenised(prompt=await server.in_reader(reader.detokenise, body.tokens))

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> ModelList:
        card = ModelCard(id=server.name, created=server.created, max_model_len=reader.num_positions)
        return ModelList(data=[card])

    @app.get("/health", responses=ERRORS)
    async def health() -> Health:
        if not server.alive:
            raise ApiError(503, "the engine has stopped; start the server again")
        return Health()

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type=CONTENT_TYPE)

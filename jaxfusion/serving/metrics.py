"""What Prometheus is told."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxfusion.generation.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Of one server: several may live in a process."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        """engine: the one at work."""
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, what: str, value: Callable[[], float]) -> None:
            Gauge(f"jaxfusion_{name}", what, registry=registry).set_function(value)

        gauge("rows", "Answers that can grow at once", lambda: engine().num_rows)
        gauge("rows_busy", "Answers that grow", lambda: engine().num_busy)
        gauge("requests_waiting", "Requests without a row", lambda: engine().num_waiting)
        gauge("prefix_bytes", "Keys and values of prompts' beginnings", lambda: engine().prefixes.num_bytes)
        registry.register(_PrefixCounts(engine))
        self.requests = Counter("jaxfusion_requests", "Answered", ["path", "status"], registry=registry)
        self.prompt_tokens = Counter("jaxfusion_prompt_tokens", "Positions of prompts", registry=registry)
        self.answer_tokens = Counter("jaxfusion_answer_tokens", "Tokens of answers", registry=registry)
        self.seconds = Histogram(
            "jaxfusion_request_seconds", "To the end of the answer", ["path"], registry=registry, buckets=SECONDS
        )
        self.first_seconds = Histogram(
            "jaxfusion_first_token_seconds", "From the engine's taking a request", registry=registry, buckets=SECONDS
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _PrefixCounts(Collector):
    """What the engine has counted; an engine that takes the place of another counts from 0, as Prometheus expects."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily]:
        kept = self._engine().prefixes
        for name, what, value in (
            ("hits", "Parts of prompts whose keys and values were there", kept.hits),
            ("misses", "Parts of prompts that were computed, to be kept", kept.misses),
            ("positions", "Positions of prompts that were there", kept.positions),
        ):
            yield CounterMetricFamily(f"jaxfusion_prefix_{name}", what, value=value)


class Measured:
    """Around an app: counts its requests and takes their time. paths: others are all one."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in self._paths else "other"
        start, status = time.perf_counter(), 500

        async def told(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)

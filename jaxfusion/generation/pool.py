"""Many requests, by one engine or by one on each of several devices."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from itertools import islice, pairwise
from threading import Event, Lock
from typing import Any

import jax
import numpy as np

from jaxfusion.generation.answer import Answer, Request
from jaxfusion.generation.engine import Engine
from jaxfusion.models.vlm import Model, Params


def answer_requests(
    model: Model,
    params: Params,
    requests: Sequence[Request],
    *,
    num_rows: int,
    devices: Sequence[jax.Device] | None = None,
    complete: Callable[[Answer], bool] = lambda answer: False,
    tell: Callable[[Answer], None] = lambda answer: None,
    **settings: Any,
) -> list[Answer]:
    """Each request's answer, which is the one that it gets alone.

    params:   on one device, or shared out; with several `devices` the same on all.
    num_rows: answers that grow at once, on all devices together. Neighbours share a device, and what it keeps.
    devices:  that have an engine each; None: there is one, where the parameters are.
    complete: asked of each answer that grows after each block; True ends it there, as a stop text does.
    tell:     called with each answer that has ended, by one thread at a time.
    settings: of the engine on each device.
    Raises what an engine raises, `UserError` of a request for example, once the others have stopped too.
    """
    if not requests:
        return []
    places = [None] if devices is None else list(devices)[: len(requests)]
    lock, stopped = Lock(), Event()
    settings = {
        "num_positions": max(request.segment.size[0] + request.limit for request in requests),
        "max_images": max(1, *(request.segment.size[1] for request in requests)),
        **settings,
    }

    def answer(device: jax.Device | None, share: Sequence[Request]) -> list[Answer]:
        rows, answers = min(-(-num_rows // len(places)), len(share)), []
        with nullcontext() if device is None else jax.default_device(device):
            ours = params if device is None else jax.device_put(params, device)
            engine = Engine(model, ours, num_rows=rows, **settings)
            for ended in _rounds(engine, iter(share), answers, complete):
                with lock:
                    for one in ended:
                        tell(one)
                if stopped.is_set():
                    break
        return answers

    if len(places) == 1:
        return answer(places[0], requests)
    cuts = np.linspace(0, len(requests), len(places) + 1).round().astype(int).tolist()
    with ThreadPoolExecutor(len(places)) as threads:
        shares = [
            threads.submit(answer, device, requests[start:end])
            for device, (start, end) in zip(places, pairwise(cuts), strict=True)
        ]
        try:
            wait(shares, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()  # one has failed, or Ctrl-C came: the others need not go on
    return [one for share in shares for one in share.result()]


def _rounds(
    engine: Engine, waiting: Iterator[Request], answers: list[Answer], complete: Callable[[Answer], bool]
) -> Iterator[list[Answer]]:
    """What has ended at each turn, until all have. Requests are taken when there is a row for them, since an engine
    keeps the pictures of those that wait; their answers are added to `answers`."""
    growing: list[Answer] = []
    while True:
        for request in islice(waiting, engine.num_rows - len(growing)):
            growing.append(engine.submit(request))
            answers.append(growing[-1])
        if not growing:
            return
        engine.turn()
        for one in growing:
            if one.end is None and complete(one):
                one.cancel()
        yield [one for one in growing if one.end is not None]
        growing = [one for one in growing if one.end is None]

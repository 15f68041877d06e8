"""Many prompts at once, on all devices of this process: an engine on each of them, and every one has its share."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from jaxfusion.generation.engine import Answer, Engine, Request
from jaxfusion.models.vlm import Model, Params


def answer_all(
    model: Model, params: Params, requests: Sequence[Request], *, num_rows: int, **settings: Any
) -> list[Answer]:
    """Each request's answer, which is the one that it gets alone.

    params:   on one device, or the same on all.
    num_rows: answers that grow at once, on all devices together.
    settings: of the engine on each of them.
    Raises UserError as `Engine.submit` does.
    """
    if not requests:
        return []
    devices = jax.local_devices()[: len(requests)]
    num_positions = max(request.segment.size[0] + request.limit for request in requests)
    max_images = max(1, *(request.segment.size[1] for request in requests))

    def answer(place: int) -> list[Answer]:
        share = requests[place :: len(devices)]
        with jax.default_device(devices[place]):
            engine = Engine(
                model,
                jax.device_put(params, devices[place]),
                num_rows=min(-(-num_rows // len(devices)), len(share)),
                num_positions=num_positions,
                max_images=max_images,
                max_waiting=len(share),
                **settings,
            )
            answers = [engine.submit(request) for request in share]
            while engine.turn():
                pass
        return answers

    with ThreadPoolExecutor(len(devices)) as threads:
        shares = list(threads.map(answer, range(len(devices))))
    return [shares[index % len(devices)][index // len(devices)] for index in range(len(requests))]

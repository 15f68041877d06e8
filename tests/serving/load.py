"""Clients who come, listen, and leave when they please. `python -m tests.serving.load --seconds 120` for long."""

import argparse
import asyncio
import gc
import random
import resource
import time
from collections import Counter
from pathlib import Path

from openai import AsyncOpenAI

from jaxfusion.generation.answer import Answer
from tests.serving.running import Serving, data_url, png, serving, tiny_model, user

LENGTHS = (1, 7, 30, 90)


async def client(api: AsyncOpenAI, number: int, until: float, expected: dict[int, str], counts: Counter) -> None:
    """Asks again and again for answers that are known, and leaves one in two early."""
    rng = random.Random(number)
    while time.monotonic() < until:
        length = rng.choice(LENGTHS)
        settings = {"model": "tiny", "messages": question(length), "max_tokens": length}
        settings |= {"temperature": 1.0, "seed": length}
        match rng.choice(("whole", "stream", "leave", "give up")):
            case "whole":
                reply = await api.chat.completions.create(**settings)
                assert reply.choices[0].message.content == expected[length]
                counts["whole"] += 1
            case "stream":
                said = ""
                async for chunk in await api.chat.completions.create(**settings, stream=True):
                    said += chunk.choices[0].delta.content or ""
                assert said == expected[length]
                counts["streamed"] += 1
            case "leave":
                stream = await api.chat.completions.create(**settings, stream=True)
                for _ in range(rng.randrange(3)):
                    await anext(stream, None)
                await stream.close()
                counts["left a stream"] += 1
            case "give up":
                asked = asyncio.ensure_future(api.chat.completions.create(**settings))
                await asyncio.wait({asked}, timeout=0.2 * rng.random())
                counts["came first" if asked.done() else "gave up"] += 1
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)


def question(length: int) -> list[dict]:
    import numpy as np

    picture = np.full((8, 8, 3), length, np.uint8)
    return user(data_url(png(picture)), "?") if length == 30 else user("what" * (length // 7))


async def load(url: str, clients: int, seconds: float) -> Counter:
    """What became of all requests. Raises where one fails, or is answered otherwise than alone."""
    counts: Counter = Counter()
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60) as api:
        expected = {}
        for length in LENGTHS:
            settings = {"model": "tiny", "messages": question(length), "max_tokens": length}
            reply = await api.chat.completions.create(**settings, temperature=1.0, seed=length)
            expected[length] = reply.choices[0].message.content
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(api, number, until, expected, counts) for number in range(clients)))
    return counts


def left_behind(served: Serving, seconds: float = 10) -> tuple[int, int, int]:
    """Rows taken, requests waiting, and answers still in memory, once the server has noticed that all have gone."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        gc.collect()
        answers = sum(isinstance(thing, Answer) for thing in gc.get_objects())
        found = served.server.engine.num_busy, served.server.engine.num_waiting, answers
        if not any(found):
            break
        time.sleep(0.1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    args = parser.parse_args()
    with serving(*tiny_model()) as served:
        counts, parts = Counter(), 6
        for part in range(parts):
            counts += asyncio.run(load(served.url, args.clients, args.seconds / parts))
            print(f"after {(part + 1) * args.seconds / parts:.0f} s: {_memory():.0f} MB")
        print(dict(counts), "in all", sum(counts.values()))
        print("rows taken, waiting, answers in memory:", left_behind(served))


def _memory() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()

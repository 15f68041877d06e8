"""One side of `benchmarks.decode`, in a process of its own.

A question is [rows, times]: so many generations of a batch. They are timed, but for those of a new batch that compile.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.worker import Begun, answer, read_preset
from jaxfusion.errors import UserError

WARM_UP = 2  # generations: torch records its graphs in a second one
TOO_SMALL = "the device's memory is too small for"


def prepare(side: str, settings: dict[str, Any]) -> Callable[[], Begun]:
    """For `worker.answer`. settings: of `read_preset`, and text_tokens and new_tokens."""
    preset, sizes = read_preset(settings), (settings["text_tokens"], settings["new_tokens"])
    if side == "ours":
        from benchmarks.decode_ours import Ours as Side
    else:
        from benchmarks.decode_transformers import Theirs as Side

        sizes = (*sizes, side == "torch_compile")

    def begin() -> Begun:
        try:
            generation = Side(preset, *sizes)
        except Exception as error:
            if not _no_memory(error):
                raise
            raise UserError(f"--preset: {TOO_SMALL} the model of {side}; choose a smaller one") from None
        warm: set[int] = set()

        def ask(question: list[int]) -> dict[str, Any]:
            rows, times = question
            try:
                found = _generate(generation, rows, times, 0 if rows in warm else WARM_UP)
            except Exception as error:  # of many kinds, as compilers and their surroundings fail
                if not (reason := _reason(side, error)):
                    raise
                return {"failed": reason}
            warm.add(rows)
            return found

        return ask, generation.facts()

    return begin


def _generate(generation: Any, rows: int, times: int, warm_up: int) -> dict[str, Any]:
    generation.ready(rows)
    for _ in range(warm_up):
        generation.generate()
    tokens, prefill, decode = zip(*(generation.generate() for _ in range(times)), strict=True)
    found = {"tokens": tokens[0].tolist(), "prefill_seconds": prefill, "decode_seconds": decode}
    found["first_logprobs"] = np.asarray(generation.first_logprobs, np.float64).tolist()
    return found | ({"step_bytes": generation.read()} if hasattr(generation, "read") else {})


def _reason(side: str, error: Exception) -> str:
    """Why a batch cannot be generated; "" where that is nobody's limit but a mistake."""
    if _no_memory(error):
        return f"{TOO_SMALL} so many rows"
    if side == "torch_compile":
        return f"torch.compile failed ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return ""


def _no_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "RESOURCE_EXHAUSTED" in str(error)


if __name__ == "__main__":
    sys.exit(answer(prepare))

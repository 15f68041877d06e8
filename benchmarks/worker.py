"""One side of a comparison, in a process of its own: it makes its step ready, and times as many as it is told to.

It answers with lines of JSON. The first says that it is compiled, or imported. Then it is told by
lines on its input: to begin, for which it says what it is; then numbers of steps, for which it says each one's seconds.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from typing import Any

from benchmarks.ours import Ours, with_layers
from benchmarks.presets import PRESETS, Preset
from jaxfusion.errors import UserError

LAYERS = {"scanned": True, "unrolled": False}


def main() -> int:
    side, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        begin = _prepare(side, read_preset(settings), settings)
        print(json.dumps({"ready": True}), file=answers)
        if not sys.stdin.readline():
            return 0
        timed, facts = begin()
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return 2
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        print(json.dumps(timed.seconds(int(line))), file=answers)
    return 0


def read_preset(settings: dict[str, Any]) -> Preset:
    """The preset that is named, with what is set otherwise."""
    preset = PRESETS[settings["preset"]]
    of_model, of_preset = (
        {name: settings[name] for name in names if settings.get(name)}
        for names in (("dtype", "attention"), ("batch_size", "remat", "matmul"))
    )
    model = replace(preset.model, **of_model)
    if layers := settings.get("layers"):
        model = with_layers(model, scan=LAYERS[layers])
    return replace(preset, model=model, **of_preset)


def _prepare(side: str, preset: Preset, settings: dict[str, Any]) -> Callable[[], tuple[Any, dict[str, Any]]]:
    if side == "ours":
        from jaxfusion.parallel import use_cpu_cores

        use_cpu_cores(preset.batch_size)
        ours = Ours(preset, settings["strategy"], settings["count_flops"])

        def begin() -> tuple[Ours, dict[str, Any]]:
            ours.begin()
            return ours, ours.facts()

        return begin
    versions = {"torch": metadata.version("torch")}
    if side == "torch":
        from benchmarks.peer_torch import make_peer
    else:
        from benchmarks.peer_transformers import make_peer

        make_peer = partial(make_peer, compiled=side == "torch_compile")
        versions["transformers"] = metadata.version("transformers")
    return lambda: _begin(side, make_peer(preset), versions)


def _begin(side: str, peer: Any, versions: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    try:
        peer.warm_up()
    except Exception as error:  # of many kinds, as compilers and their surroundings fail
        if side != "torch_compile" or type(error).__name__ == "OutOfMemoryError":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--peer: torch.compile failed ({reason}); compare with transformers") from None
    return peer, versions | peer.facts()


if __name__ == "__main__":
    sys.exit(main())

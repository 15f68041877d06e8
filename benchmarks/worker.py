"""One side of a comparison, in a process of its own: it makes its step ready, and times as many as it is told to."""

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

# What answers questions, and the facts of the side.
Begun = tuple[Callable[[Any], Any], dict[str, Any]]


def answer(prepare: Callable[[str, dict[str, Any]], Callable[[], Begun]]) -> int:
    """A worker's life, in lines of JSON: the first one that it writes says that it is compiled, or imported. The first
    one that it reads has it begin, for which it says what it is; each further one is a question.

    prepare: makes the side that the command line names, of the settings there, ready to begin.
    """
    side, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        begin = prepare(side, settings)
        print(json.dumps({"ready": True}), file=answers)
        if not sys.stdin.readline():
            return 0
        ask, facts = begin()
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return 2
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        print(json.dumps(ask(json.loads(line))), file=answers)
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


def _prepare(side: str, settings: dict[str, Any]) -> Callable[[], Begun]:
    preset = read_preset(settings)
    if side == "ours":
        from jaxfusion.parallel import use_cpu_cores

        use_cpu_cores(preset.batch_size)
        ours = Ours(preset, settings["strategy"], settings["count_flops"])

        def begin() -> Begun:
            ours.begin()
            return ours.seconds, ours.facts()

        return begin
    versions = {"torch": metadata.version("torch")}
    if side == "torch":
        from benchmarks.peer_torch import make_peer
    else:
        from benchmarks.peer_transformers import make_peer

        make_peer = partial(make_peer, compiled=side == "torch_compile")
        versions["transformers"] = metadata.version("transformers")
    return lambda: _begin(side, make_peer(preset), versions)


def _begin(side: str, peer: Any, versions: dict[str, str]) -> Begun:
    try:
        peer.warm_up()
    except Exception as error:  # of many kinds, as compilers and their surroundings fail
        if side != "torch_compile" or type(error).__name__ == "OutOfMemoryError":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--peer: torch.compile failed ({reason}); compare with transformers") from None
    return peer.seconds, versions | peer.facts()


if __name__ == "__main__":
    sys.exit(answer(_prepare))

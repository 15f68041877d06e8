"""One side of a comparison, in a process of its own: it makes its step ready, and times as many as it is told to.

It is told by lines on its input, each a number of steps, and answers with a line of JSON: first what it is, then the
seconds of each step.
"""

import json
import os
import sys
from dataclasses import replace
from importlib import metadata
from typing import Any

from benchmarks.presets import PRESETS, Preset
from jaxfusion.errors import UserError


def main() -> int:
    side, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        timed, facts = _ready(side, read_preset(settings), settings)
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
    changes = {name: settings[name] for name in ("dtype", "attention") if settings.get(name)}
    batch_size = settings.get("batch_size") or preset.batch_size
    return replace(preset, model=replace(preset.model, **changes), batch_size=batch_size)


def _ready(side: str, preset: Preset, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if side == "ours":
        from benchmarks.ours import Ours
        from jaxfusion.parallel import use_cpu_cores

        use_cpu_cores(preset.batch_size)
        ours = Ours(preset, settings["strategy"])
        return ours, ours.facts()
    return _peer(side, preset)


def _peer(side: str, preset: Preset) -> tuple[Any, dict[str, Any]]:
    versions = {"torch": metadata.version("torch")}
    if side == "torch":
        from benchmarks.peer_torch import make_peer

        peer = make_peer(preset)
    else:
        from benchmarks.peer_transformers import make_peer

        peer = make_peer(preset, compiled=side == "torch_compile")
        versions["transformers"] = metadata.version("transformers")
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

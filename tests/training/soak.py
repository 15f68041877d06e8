"""A run that is killed over and over, also in the middle of a save, ends with the bits of an undisturbed one.

    python tests/training/soak.py --kills 100

A seed gives the same kind and number of steps of each life; the very moment is the machine's.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[2]))

# All is imported once, and each life is a fork, which begins JAX anew: a start is then a matter of a second.
import jax
import numpy as np

from jaxfusion.config import Config
from jaxfusion.config.model import TransformerDecoderConfig
from jaxfusion.models.vlm import build
from jaxfusion.training.checkpoint import Checkpoints
from jaxfusion.training.metrics import read_metrics
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from tests.training.test_loop import make_config, run

# A life gets no further than this, but for what it does while it is being killed.
MAX_STEPS = 12
STEPS_PER_KILL = 2 * MAX_STEPS
CHECKPOINT_EVERY = 4
SECONDS_FOR_A_LIFE = 300.0


def config_of(kills: int, layers: int) -> Config:
    """layers: of a decoder with dropout; 0: none, and no dropout, which begins in half the time."""
    decoder = TransformerDecoderConfig(num_layers=layers, num_heads=1, dropout=0.2) if layers else None
    steps = STEPS_PER_KILL * (kills + 1)
    return make_config(steps, checkpoint_every=CHECKPOINT_EVERY, log_every=1, decoder=decoder)


def start(config: Config, workdir: Path, cache: Path) -> int:
    """The run in a process of its own, whose id is returned."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    code = 1
    try:
        with (workdir.parent / f"{workdir.name}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        run(config, workdir)
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(process: int, until: Callable[[], bool]) -> int | None:
    """The exit code once the process has ended, as subprocess has it; None as soon as `until` holds before that."""
    deadline = time.monotonic() + SECONDS_FOR_A_LIFE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if until():
            return None
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    raise SystemExit(f"process {process} neither ended nor came as far as it should in {SECONDS_FOR_A_LIFE} seconds")


def rows(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_saving(workdir: Path) -> bool:
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def torment(config: Config, workdir: Path, cache: Path, kills: int, rng: random.Random) -> Counter[str]:
    """Starts the run and kills it, so many times; then lets it end. Returns how many kills there were of each kind."""
    kinds: Counter[str] = Counter()
    for _ in range(kills):
        number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        in_a_save, steps, delay = rng.random() < 0.5, rng.randint(0, MAX_STEPS), rng.uniform(0, 0.03)
        target = rows(workdir) + steps
        process = start(config, workdir, cache)
        code = wait(process, lambda target=target: rows(workdir) >= target)
        if code is None and in_a_save:
            code = wait(process, lambda: is_saving(workdir))
        if code is not None:
            raise SystemExit(f"the run ended by itself with code {code}; see {workdir}.log")
        time.sleep(delay)
        os.kill(process, number)
        code = wait(process, lambda: False)
        if code not in ((-number,) if number == signal.SIGKILL else (0, -number)):  # 0: it had saved; else: too early
            raise SystemExit(f"killed with {number.name} it ended with code {code}; see {workdir}.log")
        kinds[f"{number.name}{' in a save' if in_a_save else ''}"] += 1
    code = wait(start(config, workdir, cache), lambda: False)
    if code:
        raise SystemExit(f"the last life ended with code {code}; see {workdir}.log")
    return kinds


def compare(config: Config, ours: Path, theirs: Path) -> None:
    """Raises AssertionError where anything of the last checkpoints, or any loss, differs by a bit."""
    abstract = jax.eval_shape(
        partial(create_state, build(config.model), make_optimizer(config.train), jax.random.key(0))
    )
    restored = []
    for workdir in (ours, theirs):
        with Checkpoints(workdir, keep=9) as checkpoints:
            restored.append(checkpoints.restore_latest(abstract))
    (state, place), (expected, expected_place) = restored
    assert int(state.step) == config.train.num_steps
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert place == expected_place
    losses = [[(row["step"], row["loss"]) for row in read_metrics(workdir)] for workdir in (ours, theirs)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, config.train.num_steps + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--layers", type=int, default=1, help="of a decoder with dropout; 0 starts faster, without")
    parser.add_argument("--seed", type=int, default=None, help="another one each time unless it is given")
    parser.add_argument("--directory", type=Path, default=None, help="where both runs go; it is kept then")
    args = parser.parse_args()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    home = args.directory or Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {seed}, in {home}", flush=True)
    home.mkdir(parents=True, exist_ok=True)
    config, cache, begun = config_of(args.kills, args.layers), home / "compiled", time.monotonic()
    if code := wait(start(config, home / "undisturbed", cache), lambda: False):
        raise SystemExit(f"the undisturbed run ended with code {code}; see {home}/undisturbed.log")
    kinds = torment(config, home / "killed", cache, args.kills, random.Random(seed))
    compare(config, home / "killed", home / "undisturbed")
    result = {"equal": True, "kills": dict(kinds), "steps": config.train.num_steps}
    print(json.dumps(result | {"seconds": round(time.monotonic() - begun, 1)}))
    if args.directory is None:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()

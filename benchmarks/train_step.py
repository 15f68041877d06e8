"""How fast one training step is, how much memory it takes, and how much of its arithmetic the model needed.

python -m benchmarks.train_step --preset quickstart
"""

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.command_line import Parser, environment, positive, show
from benchmarks.presets import PRESETS, Preset
from benchmarks.synthetic import synthetic_batch
from jaxfusion.batch import Batch
from jaxfusion.config.model import BiLSTMEncoderConfig, ModelConfig, TransformerConfig, TransformerDecoderConfig
from jaxfusion.config.run import ParallelConfig, TrainConfig
from jaxfusion.errors import UserError
from jaxfusion.hardware import find_hardware
from jaxfusion.models.flops import count_flops
from jaxfusion.models.vlm import build
from jaxfusion.parallel import make_parallel, use_cpu_cores
from jaxfusion.planning import TARGETS, compile_for, make_plan
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import train_step

EPILOG = f"""\
presets:
{chr(10).join(f"  {name:<15}{preset.summary}" for name, preset in PRESETS.items())}

examples:
  python -m benchmarks.train_step --preset quickstart --json quickstart.json
  python -m benchmarks.train_step --preset vit-base-gpt --batch-size 32 --profile trace
  python -m benchmarks.train_step --preset 1b --plan h200 --devices 8   # needs no GPU
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        preset = _preset(args)
        if args.json is not None and not args.json.parent.is_dir():
            raise UserError(f"--json: {args.json.parent} is not a directory; make it first")
        if args.plan:
            jax.config.update("jax_platforms", "cpu")  # or JAX would look for the GPU that is not there
            result = {"plan": plan(preset, args.plan, args.devices)}
        else:
            use_cpu_cores(preset.batch_size)
            result = measure(preset, args.strategy, args.steps, args.profile)
    except UserError as error:
        return _refuse(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refuse("--batch-size: the device's memory is too small for this step; use fewer rows")
    command = shlex.join(["python", "-m", "benchmarks.train_step", *argv])
    result = {"command": command, "preset": args.preset, "environment": environment(), **result}
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _refuse(reason: Any) -> int:
    print(f"benchmarks.train_step: {reason}", file=sys.stderr)
    return 2


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(preset: Preset, strategy: str, steps: int, profile: Path | None = None) -> dict[str, Any]:
    """Compiles and runs the training step on all local devices; every number is for all of them together, but memory.

    The batch is on the devices already: reading and copying data is not in the step's time.
    """
    parallel = make_parallel(ParallelConfig(strategy=strategy))
    parallel.check_batch_size("--batch-size", preset.batch_size)
    model, optimizer = build(preset.model), make_optimizer(TrainConfig())
    host_batch = synthetic_batch(preset)
    batch = parallel.put_batch(host_batch)
    state = parallel.put_state(jax.jit(partial(create_state, model, optimizer))(jax.random.key(0)))
    parameters = sum(x.size for x in jax.tree.leaves(parallel.unreplicate(state.params)))

    start = time.perf_counter()
    lowered = parallel.compile(partial(train_step, model, optimizer), donate=True).lower(state, batch)
    traced = time.perf_counter()
    step = lowered.compile()
    compiled = time.perf_counter()

    seconds, metrics = _time_steps(step, state, batch, steps, profile)
    median = float(np.median(seconds))
    samples, tokens = _samples_and_tokens(host_batch)
    flops = flops_of(preset.model, host_batch)
    return {
        "strategy": strategy,
        "dtype": preset.model.dtype,
        "attention": preset.model.attention,
        "parameters": parameters,
        "batch": _batch_shape(preset, host_batch),
        "trace_seconds": traced - start,
        "compile_seconds": compiled - traced,
        "step_seconds": {
            "median": median,
            "lower_quartile": float(np.quantile(seconds, 0.25)),
            "upper_quartile": float(np.quantile(seconds, 0.75)),
            "steps": len(seconds),
        },
        "samples_per_second": samples / median,
        "real_tokens_per_second": tokens / median,
        "flops": flops,
        "mfu": _mfu(flops["model_needed"] / median, preset.model.dtype),
        "memory": _peak_memory(step),
        "loss": float(jax.device_get(parallel.unreplicate(metrics))["loss"]),
    }


def _time_steps(step: Any, state: Any, batch: Any, steps: int, profile: Path | None) -> tuple[list[float], Any]:
    """Seconds from one step's end to the next one's, and the last metrics. As in the training loop the host waits for
    a step after it has sent the next one, so that the device never waits for the host."""
    for _ in range(2):
        state, waiting = step(state, batch)
    ends = []
    with jax.profiler.trace(str(profile)) if profile else contextlib.nullcontext():
        for _ in range(steps + 1):
            state, metrics = step(state, batch)
            jax.block_until_ready(waiting)
            ends.append(time.perf_counter())
            waiting = metrics
        jax.block_until_ready(waiting)
    return np.diff(ends).tolist(), waiting


def flops_of(config: ModelConfig, batch: Batch) -> dict[str, Any]:
    """Operations of a training step: XLA's count of the program, and the model's own (`jaxfusion.models.flops`).

    XLA counts a loop's body once, however often it runs. So its count is taken of the same step with the layers laid
    out one after the other, before compilation, and with attention written out (a library call has no count); the
    model's count that belongs beside it is the dense one. `loops` says that XLA found others: then its count is short.
    """
    unrolled = _unroll(replace(config, attention="xla"))
    model, optimizer = build(unrolled), make_optimizer(TrainConfig())
    state = jax.eval_shape(partial(create_state, model, optimizer), jax.random.key(0))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    lowered = jax.jit(partial(train_step, model, optimizer)).lower(state, shapes)
    xla, dense = lowered.cost_analysis()["flops"], count_flops(config, batch, "dense").training
    return {
        "xla_unrolled": xla,
        "model_dense": dense,
        "model_needed": count_flops(config, batch).training,
        "xla_to_model_dense": xla / dense,
        "loops": "stablehlo.while" in lowered.as_text(),
    }


def _unroll(config: ModelConfig) -> ModelConfig:
    stacks = {name: getattr(config, name) for name in ("vision", "encoder", "decoder")}
    flat = {name: replace(stack, scan_layers=False) for name, stack in stacks.items() if hasattr(stack, "scan_layers")}
    return replace(config, **flat)


def _mfu(flops_per_second: float, dtype: str) -> float | None:
    """Model FLOP utilisation (Chowdhery et al. 2022); None where the peak for this device and type is not known."""
    card = find_hardware(jax.local_devices()[0].device_kind) if dtype == "bfloat16" else None
    return flops_per_second / (card.bf16_flops * jax.local_device_count()) if card else None


def _peak_memory(step: jax.stages.Compiled) -> dict[str, Any]:
    """Of one device."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return {"bytes": stats["peak_bytes_in_use"], "source": "the device's allocator"}
    return {"bytes": make_plan(step).total_bytes, "source": "XLA's plan of the step"}


def _samples_and_tokens(batch: Batch) -> tuple[int, int]:
    return int(batch.segment_ids.max(axis=1).sum()), int((batch.segment_ids > 0).sum())


def _batch_shape(preset: Preset, batch: Batch) -> dict[str, int]:
    samples, tokens = _samples_and_tokens(batch)
    return {
        "rows": preset.batch_size,
        "row_length": preset.row_length,
        "samples": samples,
        "images": 0 if batch.images is None else batch.images.shape[0] * batch.images.shape[1],
        "tokens": batch.tokens.size,
        "real_tokens": tokens,
    }


# --- planning ---------------------------------------------------------------------------------------------------------


def plan(preset: Preset, target: str, devices: int) -> dict[str, Any]:
    """The step compiled for GPUs that are only described, with each attention kernel that the preset may use."""
    if preset.batch_size % devices:
        raise UserError(f"--batch-size: {preset.batch_size} rows cannot be shared evenly by {devices} devices")
    batch, optimizer = synthetic_batch(preset), make_optimizer(TrainConfig())
    config = preset.model
    if isinstance(config.encoder, BiLSTMEncoderConfig):  # cuDNN's cannot be compiled without a GPU
        config = replace(config, encoder=replace(config.encoder, implementation="scan"))
    result = {"target": TARGETS[target].name, "devices": devices, "batch": _batch_shape(preset, batch)}
    for kernel in ("xla", "cudnn") if fused_attention_fits(preset) else ("xla",):
        model = build(replace(config, attention=kernel))
        state = jax.eval_shape(partial(create_state, model, optimizer), jax.random.key(0))
        step = partial(train_step, model, optimizer)
        found = make_plan(compile_for(step, state, batch, target=target, devices=devices))
        largest = dict(list(found.arrays.items())[:5])
        result[f"attention_{kernel}"] = vars(found) | {"total_bytes": found.total_bytes, "arrays": largest}
    return result


def fused_attention_fits(preset: Preset) -> bool:
    """Whether every attention of the model's Transformers is plain causal or full, in 16 bits, as cuDNN's wants it."""
    model = preset.model
    stacks = [stack for stack in (model.encoder, model.decoder) if isinstance(stack, TransformerConfig)]
    plain = all(not any(stack.windows) and not stack.attention_softcap for stack in stacks)
    if isinstance(model.decoder, TransformerDecoderConfig):
        plain &= not model.decoder.prefix_lm and model.decoder.image_attention == "causal"
    return bool(stacks) and plain and preset.segments_per_row == 1 and model.dtype != "float32"


# --- the command line -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.train_step",
        description="Time the training step of a preset on synthetic data, or plan it for a GPU that is not there.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", choices=PRESETS, required=True, help="a model and its batches; listed below")
    parser.add_argument("--strategy", choices=("mesh", "pmap"), default="mesh", help="default: mesh")
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="steps to time (default: 20)")
    parser.add_argument("--batch-size", type=positive, metavar="B", help="rows a step, over all devices")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation")
    parser.add_argument("--attention", choices=("auto", "xla", "cudnn"), default="auto", help="kernel (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found to FILE")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write a trace of the timed steps for XProf to DIR")
    parser.add_argument("--plan", choices=TARGETS, help="compile for this GPU, run nothing; needs no GPU")
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="GPUs to plan for (default: 1)")
    return parser


def _preset(args: argparse.Namespace) -> Preset:
    preset = PRESETS[args.preset]
    dtype = args.dtype or preset.model.dtype
    model = replace(preset.model, dtype=dtype, attention=args.attention)
    return replace(preset, model=model, batch_size=args.batch_size or preset.batch_size)


if __name__ == "__main__":
    sys.exit(main())

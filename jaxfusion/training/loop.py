"""The training loop: from the last checkpoint, or from nothing, to num_steps."""

import copy
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxfusion.config import Config
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import Model, Params
from jaxfusion.parallel import Parallel, make_parallel
from jaxfusion.parallel.sharding import check_rules
from jaxfusion.training.best import Best
from jaxfusion.training.checkpoint import Checkpoints
from jaxfusion.training.compilations import Recompilations, counted_compilations
from jaxfusion.training.distillation import Distillation, FromTopK
from jaxfusion.training.inventory import describe_run, describe_teacher
from jaxfusion.training.meters import Meters, peak_memory
from jaxfusion.training.metrics import MetricsLog, Window
from jaxfusion.training.optimizer import learning_rate_schedule, make_optimizer
from jaxfusion.training.prefetch import Prefetch
from jaxfusion.training.profile import Trace
from jaxfusion.training.progress import Progress
from jaxfusion.training.skipped import Names, SkippedUpdates
from jaxfusion.training.state import TrainState, create_state
from jaxfusion.training.step import make_step
from jaxfusion.training.trainable import trained_paths


def train(
    config: Config,
    model: Model,
    iterator: Any,
    workdir: Path,
    *,
    evaluate: Callable[[Params], Mapping[str, float]] | None = None,
    evaluate_fully: Callable[[Params], Mapping[str, float]] | None = None,
    init_params: Callable[[Parallel], Params] | None = None,
    teacher: Callable[[Parallel], tuple[Distillation | FromTopK, Params | None]] | None = None,
    names: Names | None = None,
    profile: Path | None = None,
) -> TrainState:
    """Trains up to train.num_steps, from workdir's newest checkpoint if it has one; returns the last state, one copy.

    iterator: gives batches of train.batch_size rows for ever; its get_state and set_state speak JSON-able dicts.
    evaluate: parameters to numbers for a row of metrics.jsonl, every evaluate.every steps (but not after the last one).
    evaluate_fully: in its place every evaluate.full_every steps.
    init_params: gives what a new run begins with, where that is not fresh parameters, where `Parallel.place` says; a
        run that goes on needs none.
    teacher: gives a frozen model to learn from, and its parameters as `Parallel.put_state` places them, or none for one
        that has spoken beforehand. It is asked once, at the beginning; no checkpoint has them.
    names: gives the names of the samples in the batch after a state of the iterator, to tell which spoil updates.
    profile: where a trace of five steps goes, once the run is warm.

    Raises UserError for settings that do not fit the devices, a glob that fits no parameter, a checkpoint that
    does not fit the model, data that end, more than train.max_skipped updates in a row whose loss or gradient is not
    finite, and a last step that could not be saved. SIGINT and SIGTERM end the run after the step in progress with a
    checkpoint and SystemExit, of code 130 and 0; a second one has its usual effect.
    """
    settings = config.train
    parallel = make_parallel(config.parallel)
    parallel.check_training(settings)
    optimizer = make_optimizer(settings)
    learning_rate = learning_rate_schedule(settings)
    kept = {"trainable": settings.trainable, "frozen_dtype": settings.frozen_dtype}
    distillation, told_by = teacher(parallel) if teacher else (None, None)
    kept["map_shape"] = distillation and distillation.map_shape(model)
    new_state = partial(create_state, model, optimizer, jax.random.key(settings.seed), **kept)
    step_fn = parallel.compile(make_step(model, optimizer, settings, distillation), donate=True)

    best = Best(workdir, settings.keep_best) if settings.keep_best else None
    with (
        Progress(settings.num_steps) as progress,
        Checkpoints(
            workdir, settings.keep_checkpoints, progress.say, every=settings.keep_every, best=best
        ) as checkpoints,
    ):
        shapes = parallel.abstract(jax.eval_shape(new_state))
        check_rules(shapes.params, config.parallel.rules)
        restored = checkpoints.restore_latest(shapes)
        if restored is None:
            places = jax.tree.map(lambda leaf: leaf.sharding, shapes)  # a large state is never whole on one device
            begin = jax.jit(new_state, donate_argnames="params", out_shardings=places)
            state = begin(params=init_params and init_params(parallel))
        else:
            state, iterator_state = restored
            iterator.set_state(iterator_state)
        first = int(state.step)
        if first >= settings.num_steps:
            progress.say(all_steps_done(workdir, first))
            return state
        if restored is not None:
            progress.say(f"continuing from step {first}")
        progress.say(describe_run(state.params, settings))
        if distillation is not None:
            progress.say(describe_teacher(distillation, model))
        state = parallel.put_state(state).replace(teacher=told_by)
        del told_by
        iterator_state = copy.deepcopy(iterator.get_state())

        with (
            stop_signals() as stopped,
            MetricsLog(workdir, last_step=first, tell=progress.say) as log,
            Prefetch(iterator, parallel.put_batch, warn_after=settings.warn_stalled, tell=progress.say) as batches,
            counted_compilations() as compilations,
            Trace(profile, first + 1, settings.num_steps) as trace,
        ):
            trained = trained_paths(state.params, settings.trainable)
            window = Window(log.seconds, Meters.of_devices(model.config, trained))
            recompilations = Recompilations()
            skipped = SkippedUpdates(workdir, settings.max_skipped, names, progress.say)

            def finish(step: int, metrics: Any, waited: float, before: dict[str, Any]) -> None:
                """Reads the metrics of a step, which waits for it, and writes the row that ends with it."""
                numbers = {name: float(x) for name, x in jax.device_get(parallel.unreplicate(metrics)).items()}
                checkpoints.look()
                skipped.note(step, numbers, before, checkpoints.latest_step)
                window.add(numbers, waited)
                progress.step(step)
                if _due(step, settings.log_every) or step == settings.num_steps:
                    row = window.close()
                    made = step - log.skipped_updates - row["skipped_updates"]  # schedules stand still where none is
                    row["learning_rate"] = float(learning_rate(max(made - 1, 0)))
                    row |= {"compilations": recompilations.count} | peak_memory()
                    log.write(step, row)
                    progress.row(step, row)

            if best:
                best.resume(log.rows, checkpoints.steps)

            def save(step: int) -> None:
                checkpoints.save(step, parallel.unreplicate(state.replace(teacher=None)), iterator_state)

            progress.step(first, "compiling")
            unread = None
            for step in range(first + 1, settings.num_steps + 1):
                busy = partial(_is_running, unread and unread[1])
                taken, waited = batches.take(busy)
                if taken is None:
                    raise UserError(
                        f"config.data: the training data end after step {step - 1}; let the iterator repeat them"
                    )
                before = iterator_state
                batch, iterator_state = taken
                trace.start_before(step)
                compiled_before = compilations()
                state, metrics = step_fn(state, batch)
                if warning := recompilations.note(step, batch, compilations() > compiled_before):
                    progress.say(warning)
                if unread is not None:
                    finish(*unread)  # one step late, so that the device never waits for the host
                unread = (step, metrics, waited, before)

                last = step == settings.num_steps or bool(stopped)
                traced = trace.is_over_after(step)
                is_due = last or _due(step, settings.checkpoint_every)
                test = None
                if not last:
                    full = evaluate_fully if _due(step, config.evaluate.full_every) else None
                    test = full or (evaluate if _due(step, config.evaluate.every) else None)
                if is_due or test or traced:
                    finish(*unread)  # before a save: a checkpoint's rows are written
                    unread = None
                if traced:
                    progress.say(trace.stop())
                    window.skip()
                if is_due:
                    save(step)
                if test:
                    numbers = test(parallel.unreplicate(state.params))
                    log.write(step, numbers)
                    if best and best.note(step, numbers, must_have=full is not None or not config.evaluate.full_every):
                        save(step)
                    window.skip()
                if last:
                    break

        checkpoints.wait()
        if checkpoints.failure:
            newest = checkpoints.latest_step
            raise UserError(
                f"{workdir}: step {step} could not be saved ({checkpoints.failure}); make room, or the directory "
                f"writable, and run the same command again, which goes on from step {newest or 0}"
            )
        if step < settings.num_steps:
            progress.say(f"stopped after step {step}, which is saved in {workdir}; run the same command again to go on")
            # A scheduler that takes the machine away sends SIGTERM, and would count another code as a failure.
            raise SystemExit(0 if stopped[0] == signal.SIGTERM else 128 + stopped[0])
    return parallel.unreplicate(state.replace(teacher=None))


def all_steps_done(workdir: Path, step: int) -> str:
    return f"{workdir} has all of its {step} steps; choose another workdir to train anew"


def _is_running(metrics: Any) -> bool:
    """Whether the step that gives these metrics, if any, is still to be finished."""
    return metrics is not None and not all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))


def _due(step: int, every: int) -> bool:
    """0 means never: at the end only."""
    return every > 0 and step % every == 0


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects a SIGINT or SIGTERM instead of acting on it; after the first one, both have their usual effect again.

    Only the main thread can do that; elsewhere the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        received.append(number)
        restore()

    usual = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()

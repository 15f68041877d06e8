"""`--mode generate --input PATH --output FILE`: every record answered once, by continuous batching.

Records are read and tokenised in threads while the engine works. A killed or interrupted job goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from jaxfusion.bulk.ahead import Ahead
from jaxfusion.bulk.inputs import Id, Input, Parse, open_input
from jaxfusion.bulk.output import Answers, open_answers, shard_path
from jaxfusion.bulk.record import conversation
from jaxfusion.config import Config, to_dict
from jaxfusion.config.run import GenerateConfig
from jaxfusion.data.frames import frames_of
from jaxfusion.data.prepared import Setting
from jaxfusion.data.request import as_asked
from jaxfusion.data.tasks import prepare_text
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import sampling_of
from jaxfusion.evaluation.meter import Meter
from jaxfusion.generation.answer import Answer, Request
from jaxfusion.generation.decode import decoding_params
from jaxfusion.generation.engine import Engine
from jaxfusion.generation.generate import prompt_segment, read_images, until_stop
from jaxfusion.generation.sampling import Sampling
from jaxfusion.models.vlm import Model, Params
from jaxfusion.provenance import weights_fingerprint
from jaxfusion.text.postprocess import postprocess
from jaxfusion.training.loop import stop_signals
from jaxfusion.training.progress import Progress
from jaxfusion.workdir import load_run

# How long to wait for input, where no row has work, before a look at whether the job is to stop.
POLL_SECONDS = 0.1

# Of `config.generate`, what no answer depends on.
FREE = ("batch_size", "num_positions")


def bulk_run(
    config: Config,
    workdir: Path,
    source: Path,
    output: Path,
    *,
    prompt: str = "",
    shard: tuple[int, int] | None = None,
    console: Console | None = None,
) -> None:
    """Answers the records of `source` with a trained workdir's model, and says how many there are.

    prompt: for records without one.
    shard:  (i, n): every n-th record from the i-th on, in a file of its own; None: this JAX process of all.
    Raises UserError for settings, an input or an output that cannot be used; a bad record becomes a line with an error.
    SIGINT and SIGTERM finish the answers that are growing, and raise SystemExit; a second one has its usual effect.
    """
    console = console or Console()
    sampling, (index, count) = _sampling(config), shard or (jax.process_index(), jax.process_count())
    records = open_input(source)
    path = shard_path(output, index, count)
    model, params = load_run(workdir)
    settings = {"--input": str(source.resolve()), "--prompt": prompt}
    settings |= {"the fingerprint of the model's weights": weights_fingerprint(params)}
    settings |= _settings_of(config.generate)
    settings |= {"config.evaluate.postprocess": config.evaluate.postprocess}
    if count > 1:  # or another process would have other records than before
        settings["the number of records"] = len(records.ids)
    params = decoding_params(params, config.generate.weights)
    job = Job(config, model, params, records, prompt, sampling)
    with open_answers(path, settings, _settings_of(GenerateConfig())) as answers:
        if len(jax.local_devices()) > 1:
            _say(console, f"1 of {len(jax.local_devices())} devices is used; start a process for each, with --shard")
        answer_all(job, range(index, len(records.ids), count), answers, console)


@dataclass(frozen=True)
class Job:
    """prompt: for records without one."""

    config: Config
    model: Model
    params: Params
    records: Input
    prompt: str
    sampling: Sampling

    def prepare(self, record: tuple[int, Parse]) -> "Asked | Refused":
        """What the engine is to answer. A record's seed goes by its place, so that neither order nor shards matter."""
        place, parse = record
        wanted, data, name = self.config.generate, self.config.data, self.records.ids[record[0]]
        try:
            messages = conversation(
                parse(),
                self.records.folder,
                self.prompt,
                prepare=lambda text: prepare_text(text, data.languages[0], data),
                see=partial(read_images, self.model),
                watch=lambda video, times: frames_of(
                    video, times, data, self.model.config, lambda frame: read_images(self.model, frame)[0], "video"
                ),
                asked=lambda text: as_asked(text, data),
            )
            segment = prompt_segment(self.model, messages)
        except UserError as error:
            return Refused(name, str(error))
        except Exception as error:  # whatever a library makes of an odd record, the others are still to be answered
            return Refused(name, f"{type(error).__name__}: {error}")
        request = Request(
            segment=segment, sampling=self.sampling, seed=wanted.seed + place, limit=wanted.max_new_tokens
        )
        return Asked(name, messages[-1].text, request)


class Asked(NamedTuple):
    id: Id
    prompt: str
    request: Request


class Refused(NamedTuple):
    id: Id
    error: str


def answer_all(job: Job, places: Sequence[int], answers: Answers, console: Console) -> None:
    """Adds a line for each of the records that has none; see `bulk_run`."""
    ids, stopped = job.records.ids, []
    left = [place for place in places if ids[place] not in answers.done]
    with Progress(len(places), console, unit="record") as progress:
        if len(left) < len(places):
            progress.say(f"{answers.path} has {len(places) - len(left):,} of {len(places):,} records already")
        if left:
            stopped = _answer(job, left, answers, Meter(progress, len(places) - len(left)))
    if answers.errors:
        text = f"{answers.path}: {answers.errors:,} records could not be answered and have a line with an error instead"
        _say(console, f"{text}; to try them again, mend them, delete these lines and run the same command")
    if missing := sum(ids[place] not in answers.done for place in left):
        _say(console, f"stopped with {missing:,} records to go; run the same command again to go on")
        raise SystemExit(128 + stopped[0])
    _say(console, f"{answers.path} has all of its {len(places):,} records")


def _answer(job: Job, places: Sequence[int], answers: Answers, meter: Meter) -> list[int]:
    """Returns the signals that came, after which no record was begun."""
    rows, stop = job.config.generate.batch_size, job.config.generate.stop
    engine, growing = _engine(job, rows), dict[Answer, Asked]()

    def write(id: Id, **row: str | int) -> None:
        answers.write(id, row)
        meter.add(row)

    def begin(record: Asked | Refused) -> None:
        try:
            if isinstance(record, Refused):
                raise UserError(record.error)
            growing[engine.submit(record.request)] = record
        except UserError as error:
            write(record.id, error=str(error))

    def finish(answer: Answer) -> None:
        """Writes the answer if it has ended, by itself or by a stop text."""
        whole = job.model.tokenizer.decode(answer.tokens)
        text = until_stop(whole, stop)
        end = answer.end if text == whole else "stop"
        if end:
            answer.cancel()
            asked = growing.pop(answer)
            text = postprocess(text) if job.config.evaluate.postprocess else text
            write(asked.id, prompt=asked.prompt, answer=text, end=end, num_tokens=len(answer.tokens))

    records, threads = job.records.read(places), max(1, job.config.data.num_threads)
    with stop_signals() as stopped, Ahead(records, job.prepare, threads, depth=max(rows, 2 * threads)) as ahead:
        while growing or not (ahead.ended or stopped):
            # Rows that have work go on where no record is ready.
            while len(growing) < rows and not (ahead.ended or stopped):
                taken = ahead.take(0 if growing else POLL_SECONDS)
                for record in taken:
                    begin(record)
                if growing and not taken:
                    break
            engine.turn()
            for answer in list(growing):
                if answer.end or stop:
                    finish(answer)
    return stopped


def _engine(job: Job, rows: int) -> Engine:
    wanted, context = job.config.generate, job.model.config.text_embedding.max_positions
    positions = min(wanted.num_positions, context)
    if wanted.max_new_tokens >= positions:
        raise UserError(
            f"config.generate.max_new_tokens: {wanted.max_new_tokens} leaves no room for a prompt among {positions} "
            "positions; lower it, or raise config.generate.num_positions as far as the model's context goes"
        )
    images = max(1, job.config.data.images_per_row)
    return Engine(
        job.model,
        job.params,
        num_rows=rows,
        num_positions=positions,
        max_images=images,
        max_waiting=rows,
        prefix_bytes=wanted.prefix_bytes,
        cache_dtype=wanted.cache_dtype,
    )


def _sampling(config: Config) -> Sampling:
    sampling = sampling_of(config.generate)
    if not isinstance(sampling, Sampling):
        raise UserError(f"config.generate.num_beams: {config.generate.num_beams} is not for --input; set it to 1")
    return sampling


def _settings_of(generate: GenerateConfig) -> dict[str, Setting]:
    """What answers depend on, as JSON has it."""
    told = {name: value for name, value in to_dict(generate).items() if name not in FREE}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}
    return {f"config.generate.{name}": value for name, value in plain.items()}


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

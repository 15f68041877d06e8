"""Text in, text out: prompts with images to the model's answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxfusion.batch import Batch
from jaxfusion.config.run import CacheDtype
from jaxfusion.data.messages import Image, Message, answer, ask, with_examples
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import Layout, Segment, tokenise_prompt
from jaxfusion.data.video import Video
from jaxfusion.errors import UserError
from jaxfusion.generation.answer import Answer, Request
from jaxfusion.generation.beams import Beams, beam_search
from jaxfusion.generation.decode import cache_length
from jaxfusion.generation.pool import answer_requests
from jaxfusion.generation.sampling import GREEDY, Sampling
from jaxfusion.models.vlm import Model, Params


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[str],
    images: Sequence[Any] | None = None,
    *,
    max_new_tokens: int = 64,
    sampling: Sampling | Beams = GREEDY,
    seed: int | Sequence[int] = 0,
    stop: Sequence[str] = (),
    cache_dtype: CacheDtype = "compute",
    examples: Sequence[tuple[Any, str]] = (),
) -> list[str]:
    """The model's answer to each prompt.

    A prompt is laid out by the checkpoint's chat template, or as the run was trained. A language model from a
    checkpoint without a chat template goes on with the text itself, as in transformers.

    prompts: texts; "" where the image alone is the prompt.
    images:  one entry a prompt: a path, encoded bytes, uint8[H, W, 3], None, or a list of these; None: no images. Or
             what `read_video` gives, whose frames' times the model is told; those of a list it is not.
    seed:    of what is drawn: one for all, of which each prompt's place makes its own, or one a prompt.
    stop:    texts before the first of which an answer ends.
    cache_dtype: of keys and values: "compute", the model's own; or "bfloat16" or "int8", which take less memory.
    examples: solved ones, which stand before each prompt and are asked as it is: images as for one, and the answer.
    Raises UserError for an unreadable image, a token that the model's table lacks, or a prompt longer than its context.
    """
    check_prompts(model, prompts)
    if not prompts:
        return []
    solved = [(_seen(model, entry), text) for entry, text in examples]
    messages = [
        with_examples((message,), [(ask(*seen, prompt), answer(text)) for seen, text in solved])
        for prompt, message in zip(prompts, user_messages(model, prompts, images), strict=True)
    ]
    settings = {"max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed, "stop": stop}
    return answer_messages(model, params, messages, cache_dtype=cache_dtype, **settings)


def check_prompts(model: Any, prompts: Any) -> None:
    """Raises UserError for what is no list of texts, and for what is no language model."""
    if isinstance(prompts, str):
        raise UserError(f"prompts: a list of texts is wanted; write [{prompts[:40]!r}]")
    if not isinstance(model, Model):
        raise UserError("model: a vision tower alone says nothing; look through it with jaxfusion.see")
    check_tokenizer(model)


def check_tokenizer(model: Model) -> None:
    if model.tokenizer is None:
        raise UserError("the model has no tokenizer; load it from a workdir, or give one to build(config, tokenizer)")


def check_vocabulary(model: Model, segments: Sequence[Segment]) -> None:
    """Raises UserError for a token that the model's table lacks."""
    vocab_size = model.config.text_embedding.vocab_size
    if beyond := {int(index) for segment in segments for index in segment.tokens if index >= vocab_size}:
        raise UserError(
            f"a text holds the token {min(beyond)}, of which the model's vocabulary of {vocab_size} knows nothing; "
            "use a chat template and texts without it"
        )


def user_messages(model: Model, prompts: Sequence[str], images: Sequence[Any] | None) -> list[Message]:
    """One message a prompt, its images first, as the model's vision takes them; see `generate`."""
    if images is not None and len(images) != len(prompts):
        raise UserError(f"images: {len(images)} entries for {len(prompts)} prompts; give one (or None) for each prompt")
    given = [None] * len(prompts) if images is None else images
    return [Message("user", (*_seen(model, entry), prompt)) for prompt, entry in zip(prompts, given, strict=True)]


def _seen(model: Model, entry: Any) -> list[Image]:
    """What `generate` takes for one prompt, as the model's vision takes it, frames with their times."""
    if isinstance(entry, Video):
        entry = [Image(frame, float(time)) for frame, time in zip(*entry, strict=True)]
    entries = entry if isinstance(entry, list | tuple) else [] if entry is None else [entry]
    times = [value.time if isinstance(value, Image) else None for value in entries]
    arrays = read_images(model, [value.value if isinstance(value, Image) else value for value in entries])
    return [Image(array, time) for array, time in zip(arrays, times, strict=True)]


def answer_messages(
    model: Model,
    params: Params,
    conversations: Sequence[tuple[Message, ...]],
    *,
    max_new_tokens: int,
    sampling: Sampling | Beams = GREEDY,
    seed: int | Sequence[int] = 0,
    stop: Sequence[str] = (),
    cache_dtype: CacheDtype = "compute",
) -> list[str]:
    """As `generate`, for conversations whose last message is the user's."""
    segments = [prompt_segment(model, messages) for messages in conversations]
    settings = {"max_new_tokens": max_new_tokens, "stop": stop, "cache_dtype": cache_dtype}
    if isinstance(sampling, Beams):
        return search_segments(model, params, segments, sampling, **settings)
    seeds = seed if not isinstance(seed, int) else [seed + place for place in range(len(segments))]
    return answer_segments(model, params, segments, sampling, seeds, **settings)


def answer_segments(
    model: Model,
    params: Params,
    segments: Sequence[Segment],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    num_rows: int = 0,
    **settings: Any,
) -> list[str]:
    """The answers to prompts, by an engine.

    num_rows: answers that grow at once; 0: all. settings: of `answer_requests`.
    Raises UserError for a prompt that with its answer is longer than the model's context.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens: {max_new_tokens} was given; an answer has 1 token at least")
    _check_context(model, segments, max_new_tokens)
    if len(seeds) != len(segments):
        raise UserError(f"seed: {len(seeds)} were given for {len(segments)} prompts; give one for all, or one a prompt")
    requests = [
        Request(segment=segment, sampling=sampling, seed=seed, limit=max_new_tokens)
        for segment, seed in zip(segments, seeds, strict=True)
    ]

    def says_stop(answer: Answer) -> bool:
        text = model.tokenizer.decode(answer.tokens) if stop else ""
        return until_stop(text, stop) != text

    rows = num_rows or len(requests)
    answers = answer_requests(model, params, requests, num_rows=rows, complete=says_stop, **settings)
    return [until_stop(model.tokenizer.decode(answer.tokens), stop) for answer in answers]


def search_segments(
    model: Model,
    params: Params,
    segments: Sequence[Segment],
    beams: Beams,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    cache_dtype: CacheDtype = "compute",
    put_batch: Callable[[Batch], Batch] = lambda batch: batch,
) -> list[str]:
    """The answers to prompts, by beam search in one batch. put_batch shares its rows out to devices.

    Raises UserError for a prompt that with its answer is longer than the model's context.
    """
    _check_context(model, segments, max_new_tokens)
    longest = max(len(segment.tokens) for segment in segments)
    row_length = min(cache_length(longest), model.config.text_embedding.max_positions - max_new_tokens)
    batch = pack([[segment] for segment in segments], row_length, model.config.tokens_per_image)
    settings = {"max_new_tokens": max_new_tokens, "eos_token_id": model.tokenizer.stop_ids, "cache_dtype": cache_dtype}
    tokens = beam_search(model, params, put_batch(batch), beams=beams, **settings)
    return [until_stop(model.tokenizer.decode(row), stop) for row in tokens]


def _check_context(model: Model, segments: Sequence[Segment], max_new_tokens: int) -> None:
    longest = max(segment.size[0] for segment in segments)
    context = model.config.text_embedding.max_positions
    if longest + max_new_tokens > context:
        raise UserError(
            f"a prompt takes {longest} positions (images included) and with {max_new_tokens} new tokens exceeds the "
            f"model's context of {context}; shorten the prompt or lower generate.max_new_tokens"
        )


def prompt_segment(model: Model, messages: tuple[Message, ...]) -> Segment:
    """A conversation whose last message is the user's, up to where the model is to answer.

    Raises UserError for a model without a tokenizer, or a token that its table lacks.
    """
    check_tokenizer(model)
    segment = tokenise_prompt(messages, model.tokenizer, Layout.of(model.config))
    check_vocabulary(model, [segment])
    return segment


def until_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings that it holds."""
    places = [text.find(string) for string in stop if string and string in text]
    return text[: min(places, default=len(text))]


def read_images(model: Model, entry: Any) -> list[np.ndarray]:
    """What the model's vision takes of a path, encoded bytes, an array, None, or a list of these."""
    from jaxfusion.data.images import read_image

    entries = entry if isinstance(entry, list | tuple) else [] if entry is None else [entry]
    if entries and model.config.vision is None:
        raise UserError("the model has no vision room and was given an image; leave the image out")
    if not hasattr(model.config.vision, "image_size"):
        if any(isinstance(value, str | Path | bytes) for value in entries):
            raise UserError(f"the model's vision is a {model.config.vision.kind} and reads no files; give it arrays")
        return [np.asarray(value) for value in entries]
    pictures = [read_image(value) if isinstance(value, str | Path | bytes) else np.asarray(value) for value in entries]
    return [as_seen(model, picture) for picture in pictures]


def as_seen(model: Model, picture: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of any size as the model's vision takes it."""
    from jaxfusion.data.images import resize_image

    return model.pixels(picture) if model.pixels else resize_image(picture, model.config.vision.image_size)

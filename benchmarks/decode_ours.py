"""Our generation, in two parts that are timed: prompts up to the first token, and the tokens after it."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command_line import environment
from benchmarks.presets import Preset
from benchmarks.synthetic import prompt_batch
from benchmarks.weights import random_params
from jaxfusion.generation.decode import (
    BLOCK,
    Wanted,
    cache_length,
    decode_block,
    decoding_params,
    empty_cache,
    prefill,
)
from jaxfusion.generation.sampling import GREEDY
from jaxfusion.models.vlm import Model, Params, build


class Ours:
    """A model on the device, its parameters in the type of the computation.

    text_tokens: of a prompt, beside its image. new_tokens: of an answer, which nothing ends before.
    first_logprobs: float[B], of the first token of each row that was generated last.
    """

    def __init__(self, preset: Preset, text_tokens: int, new_tokens: int) -> None:
        if preset.model.dtype == "float32":  # a GPU would take fewer bits, and other tokens might follow
            jax.config.update("jax_default_matmul_precision", "highest")
        self.preset, self.text_tokens, self.new_tokens = preset, text_tokens, new_tokens
        self.model = build(preset.model)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(preset.model.dtype), random_params(self.model))
        self.params = jax.block_until_ready(decoding_params(params))

    def ready(self, rows: int) -> None:
        """Puts the prompts on the device."""
        batch = prompt_batch(self.preset, rows, self.text_tokens)
        self.positions = cache_length(batch.tokens.shape[1] + self.new_tokens)
        wanted = Wanted.of([GREEDY] * rows, [0] * rows, [self.new_tokens] * rows)
        self.asked = jax.block_until_ready(jax.tree.map(jnp.asarray, (batch, wanted)))

    def generate(self) -> tuple[np.ndarray, float, float]:
        """Tokens (int[B, N]), and the seconds up to the first of each row and from there to the end."""
        start = time.perf_counter()
        chosen, state = prefill(self.model, self.positions, (), self.params, *self.asked)
        blocks, self.first_logprobs = [jax.block_until_ready(chosen.tokens)], chosen.logprobs[:, 0]
        first = time.perf_counter()
        for _ in range(-(-(self.new_tokens - 1) // BLOCK)):
            chosen, state = decode_block(self.model, BLOCK, (), self.params, state)
            blocks.append(chosen.tokens)
        tokens = np.concatenate(jax.device_get(blocks), axis=1)[:, : self.new_tokens]
        return tokens, first - start, time.perf_counter() - first

    def facts(self) -> dict[str, Any]:
        leaves = jax.tree.leaves(self.params)
        return {
            "dtype": self.preset.model.dtype,
            "parameters": sum(leaf.size for leaf in leaves),
            "parameter_bytes": sum(leaf.nbytes for leaf in leaves),
            "environment": environment(),
        }

    def read(self) -> int:
        """Bytes that a step has to read, on average over the answer."""
        batch, _ = self.asked
        return step_bytes(self.model, self.params, len(batch.tokens), batch.tokens.shape[1] + self.new_tokens // 2)


def step_bytes(model: Model, params: Params, rows: int, positions: int) -> int:
    """What a step has to read whoever computes it: all parameters that work on text, but of a table of tokens that is
    not the output's only the rows' own, and the keys and values of so many positions a row."""
    weights = [params[name] for name in ("decoder", "fusion", "output") if name in params]
    table = params["text_embedding"]["embedding"]
    embedding = table.nbytes if model.config.decoder.tie_embeddings else rows * table.nbytes // len(table)
    position = sum(leaf.nbytes for leaf in jax.tree.leaves(empty_cache(model, 1, 1)))
    return sum(leaf.nbytes for leaf in jax.tree.leaves(weights)) + embedding + rows * positions * position

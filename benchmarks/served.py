"""The server of a preset's model with random weights, on a free port, in a process of its own for `benchmarks.serve`.

It prints one line of JSON when it answers: its URL, and the environment. SIGTERM ends it.
"""

import json
import os
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.command_line import environment
from benchmarks.presets import PRESETS
from benchmarks.weights import random_params
from jaxfusion.config import Config, from_dict
from jaxfusion.generation.decode import decoding_params
from jaxfusion.models.vlm import build
from jaxfusion.serving.run import bind, make_server
from jaxfusion.text.trained import MASK, SPECIAL_TOKENS, TrainedTokenizer


def main() -> None:
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    preset = PRESETS[name].model
    model = build(preset)
    model = replace(model, tokenizer=words(preset.text_embedding.vocab_size))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(preset.dtype), random_params(model))
    bound = bind("127.0.0.1", 0)
    told = {"url": f"http://127.0.0.1:{bound.getsockname()[1]}/v1", "environment": environment()}
    config = from_dict(Config, {"serve": settings})
    make_server(model, decoding_params(params), config, name, ready=lambda: print(json.dumps(told), file=answers)).run(
        sockets=[bound]
    )


def words(vocab_size: int) -> TrainedTokenizer:
    """Each token but the special ones is a word, "w6" and so on, so that any of them is text as soon as it comes."""
    vocabulary = [*SPECIAL_TOKENS, *(f"w{number}" for number in range(len(SPECIAL_TOKENS), vocab_size))]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token=MASK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return TrainedTokenizer(backend)


if __name__ == "__main__":
    main()

"""What a language model's perplexity is worth: that of n-grams counted in the same training texts, on the same tokens.

python -m benchmarks.ngram_perplexity --workdir runs/language_model
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxfusion.data.bad_records import BadRecords
from jaxfusion.data.dataset import open_dataset
from jaxfusion.data.loader import Reader
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import held_out_samples
from jaxfusion.text.tokenizer import open_tokenizer
from jaxfusion.workdir import EVALUATION, read_workdir_config

LONGEST = 3
NAMES = ("1-grams", "2-grams", "3-grams")


class NGrams:
    """Interpolated as Witten and Bell (1991) do: a history counts against all shorter ones by how often it was seen,
    beside how many different tokens followed it; below 1-grams all tokens are alike."""

    def __init__(self, texts: Iterable[Sequence[int]], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.grams, self.seen, self.kinds = Counter(), Counter(), Counter()
        for text in texts:
            for place in range(1, len(text)):
                for length in range(1, min(LONGEST, place + 1) + 1):
                    self.grams[tuple(text[place - length + 1 : place + 1])] += 1
        for gram, count in self.grams.items():
            self.seen[gram[:-1]] += count
            self.kinds[gram[:-1]] += 1

    def probability(self, token: int, history: Sequence[int]) -> float:
        found = 1 / self.vocab_size
        for start in range(len(history), -1, -1):
            known = tuple(history[start:])
            if seen := self.seen[known]:
                kinds = self.kinds[known]
                found = (self.grams[*known, token] + kinds * found) / (seen + kinds)
        return found

    def perplexity(self, texts: Iterable[Sequence[int]], order: int) -> float:
        """Of all tokens but a text's first, each with at most `order` - 1 tokens before it."""
        losses = [
            -np.log(self.probability(text[place], text[max(place - order + 1, 0) : place]))
            for text in texts
            for place in range(1, len(text))
        ]
        return float(np.exp(np.mean(losses)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="a run of the task 'text', evaluated")
    args = parser.parse_args()
    try:
        rows = _measure(args.workdir)
    except UserError as error:
        print(f"ngram_perplexity: {error}", file=sys.stderr)
        return 2
    table = Table("model", "perplexity a token")
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)
    return 0


def _measure(workdir: Path) -> dict[str, float]:
    config, tokenizer = read_workdir_config(workdir), open_tokenizer(workdir)
    if config.data.task != "text" or config.data.others:
        raise UserError("--workdir: the run is not of texts alone; give one of the task 'text'")
    data = open_dataset(config.data)
    reader = Reader(config.data, config.model, (), bad=BadRecords(config.data.bad_records, config.data.max_bad_records))

    def ids(samples: Iterable) -> list[list[int]]:
        return [[tokenizer.bos_id, *tokenizer.encode(s.reference), tokenizer.eos_id] for s in samples]

    grams = NGrams(
        ids(sample for place in range(len(data.train)) for sample in reader.read(data.train, place)),
        tokenizer.vocab_size,
    )
    held_out = ids(held_out_samples(data.test, reader, config.evaluate.num_examples))
    found = {name: grams.perplexity(held_out, order) for order, name in enumerate(NAMES, start=1)}
    model = json.loads((workdir / EVALUATION).read_text(encoding="utf-8"))["metrics"]["perplexity"]
    return found | {str(workdir): model}


if __name__ == "__main__":
    sys.exit(main())

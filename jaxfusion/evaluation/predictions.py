"""predictions.jsonl: a line a sample, with its picture."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxfusion.data.images import encode_png
from jaxfusion.data.messages import Message, Sample
from jaxfusion.evaluation.evaluate import Evaluation

# A held-out picture, to try a trained model on.
EXAMPLE = "example.png"

# Pictures that are no higher are shown with those of the examples before them.
SMALL = 64


def write_predictions(path: Path, result: Evaluation) -> None:
    """Also leaves the first picture beside the file, to try the model on."""
    example = path.with_name(EXAMPLE)
    columns = zip(result.samples, result.predictions, result.references, strict=True)
    with path.open("w", encoding="utf-8") as file:
        for place, (sample, prediction, references) in enumerate(columns):
            given, own = _examples(sample)
            pictures = [np.asarray(image.value) for message in own for image in message.images]
            shown = pictures[0] if pictures and pictures[0].ndim == 3 else None
            if shown is not None:
                if not example.exists():
                    example.write_bytes(encode_png(shown))
                before = [np.asarray(image.value) for message in given for image in message.images]
                # Several, as a video's frames, side by side.
                shown = np.concatenate([*(before if len(shown) <= SMALL else ()), *pictures], axis=1)
            row: dict[str, Any] = {
                "id": sample.id,
                "image": None if shown is None else base64.b64encode(encode_png(shown)).decode(),
                "prompt": sample.prompt,
                "reference": sample.reference,
                "prediction": prediction,
                "correct": prediction in references,
            }
            if len(references) > 1:
                row["references"] = list(references)
            if result.shots:
                row["shots"] = result.shots[place]
            if given:
                row["examples"] = [message.text for message in given if message.text]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _examples(sample: Sample) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The sample's messages: those of solved examples, and its own."""
    places = [place for place, m in enumerate(sample.messages) if m.role == "assistant" and not m.learned]
    end = places[-1] + 1 if places else 0
    return sample.messages[:end], sample.messages[end:]

"""`restaurant_reviews`: short Chinese reviews with a picture, positive or negative, as a TFDS builder.

Half of them say in words what the guest thought, beside a picture that tells nothing; the other half leave it to the
picture. So text alone and picture alone each decide half the records, and only both together decide them all.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxfusion.data.builtin.review_pictures import SIDE, draw_picture
from jaxfusion.data.builtin.review_texts import plain_review, vague_review
from jaxfusion.data.images import encode_png

LABELS = ("负面评论", "正面评论")
SOURCES = ("text", "picture")
# split -> number of reviews
SPLITS = {"train": 6_000, "validation": 500, "test": 1_000}
SEED = 21


def make_record(split: str, index: int) -> dict:
    """Make review `index` of a split. It depends on nothing but these two, so any record can be made again alone.

    All splits but `train` use only clauses that are held out from training.
    """
    rng = np.random.default_rng((SEED, list(SPLITS).index(split), index))
    positive, source = bool(rng.integers(2)), SOURCES[rng.integers(2)]
    held_out = split != "train"
    if source == "text":
        text, mood = plain_review(positive, held_out, rng), "neutral"
    else:
        text, mood = vague_review(held_out, rng), "pleased" if positive else "displeased"
    return {
        "image": encode_png(draw_picture(mood, rng)),
        "image_id": index,
        "text": text,
        "label": LABELS[positive],
        "source": source,
    }


class RestaurantReviews(tfds.core.GeneratorBasedBuilder):
    """Chinese restaurant reviews with pictures; the sentiment is in the text of half of them, else in the picture."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                    "image_id": np.int64,
                    "text": features.Text(),
                    "label": features.ClassLabel(names=LABELS),
                    "source": features.ClassLabel(names=SOURCES),
                }
            ),
            # Reviews are independent already: kept in order, record i is the one whose image_id is i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(SPLITS[split]):
            yield index, make_record(split, index)

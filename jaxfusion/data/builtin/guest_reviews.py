"""`guest_reviews`: what several guests say of a restaurant, and its summary, in English and Chinese, as a TFDS builder.

A summary counts the guests and tells of food, service and price what all who speak of it think: whoever reads one guest
alone cannot write it.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxfusion.data.builtin.guest_texts import write_review

# split -> number of documents
SPLITS = {"train": 15_000, "validation": 500, "test": 1_000}
SEED = 25


def make_record(split: str, index: int) -> dict:
    """Make document `index` of a split. It depends on nothing but these two, so any record can be made again alone.

    All splits but `train` use only sentences that are held out from training.
    """
    rng = np.random.default_rng((SEED, list(SPLITS).index(split), index))
    (document, document_zh), (summary, summary_zh) = write_review(split != "train", rng)
    return {
        "image_id": index,
        "document_en": document,
        "document_zh": document_zh,
        "summary_en": summary,
        "summary_zh": summary_zh,
    }


class GuestReviews(tfds.core.GeneratorBasedBuilder):
    """What several guests say of a restaurant, with a summary, in English and Chinese."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=features.FeaturesDict(
                {
                    "image_id": np.int64,  # the record's number
                    "document_en": features.Text(),
                    "document_zh": features.Text(),
                    "summary_en": features.Text(),
                    "summary_zh": features.Text(),
                }
            ),
            # Documents are independent already: kept in order, record i is the one whose image_id is i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(SPLITS[split]):
            yield index, make_record(split, index)

"""A data set that TFDS has prepared elsewhere, in the schema of its coco_captions."""

import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxfusion.config import Config, from_dict
from jaxfusion.data.dataset import open_dataset
from jaxfusion.data.loader import Reader
from tests.data.sources.conftest import color_of, picture

NUMBER = 4


def prepare(folder):
    """As TFDS's own builder does it, which needs TensorFlow and a download."""
    with tfds.core.registered.skip_registration():

        class CocoCaptions(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.1.0")
            BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="2014")]

            def _info(self):
                caption = {"id": np.int64, "text": tfds.features.Text()}
                box = {"label": tfds.features.ClassLabel(num_classes=80), "bbox": tfds.features.BBoxFeature()}
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "image/id": np.int64,
                    "captions": tfds.features.Sequence(caption),
                    "objects": tfds.features.Sequence(box),
                }
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(0), "val": self._generate_examples(NUMBER)}

            def _generate_examples(self, first):
                for n in range(first, first + NUMBER):
                    yield (
                        n,
                        {
                            "image": io.BytesIO(picture(n, "JPEG")),
                            "image/filename": f"{n}.jpg",
                            "image/id": n,
                            "captions": [{"id": m, "text": f"caption {m} of {n}"} for m in range(5)],
                            "objects": [],
                        },
                    )

        CocoCaptions(data_dir=folder).download_and_prepare(file_format="array_record")


def test_coco_captions_of_tfds(tmp_path):
    prepare(tmp_path)
    data = {
        "name": "coco_captions",
        "data_dir": str(tmp_path),
        "test_split": "val",
        "fields": ["caption=captions.text"],
    }
    vision = {"kind": "vgg", "image_size": 8, "stage_depths": [1], "stage_widths": [4]}
    config = from_dict(Config, {"data": data, "model": {"vision": vision}})
    dataset = open_dataset(config.data)
    reader = Reader(config.data, config.model, dataset.labels)
    assert (len(dataset.train), len(dataset.test)) == (NUMBER, NUMBER)
    for place in range(NUMBER):
        (sample,) = reader.read(dataset.test, place)
        number = int(sample.reference.rpartition(" ")[2])
        assert sample.references == tuple(f"caption {m} of {number}" for m in range(5))
        np.testing.assert_allclose(sample.messages[0].images[0].value[4, 4], color_of(number), atol=3)
        assert sample.id == f"coco_captions val:{place}"

"""Sentiment of short Chinese restaurant reviews with a picture, where neither text nor picture is enough.

See what each is worth: python -m benchmarks.modalities --config configs/review_sentiment.py
"""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "restaurant_reviews"
    config.data.task = "classify"
    config.data.languages = ("zh",)
    config.data.segment_words = True
    config.data.remove_stop_words = True
    config.data.row_length = 64
    config.data.vocab_size = 1024

    config.model.width = 96
    config.model.vision = "vgg-tiny"
    config.model.projector = {"kind": "pixel-shuffle", "factor": 3}
    config.model.fusion = "place"
    config.model.encoder = "transformer"
    config.model.decoder = "pooled-classifier"

    config.train.num_steps = 800
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3

    config.evaluate.postprocess = True
    return config

"""Summaries of what several guests say of a restaurant, in English and Chinese: text alone, and all of it is needed."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "guest_reviews"
    config.data.task = "summarize"
    config.data.languages = ("en", "zh")
    config.data.packing = "best-fit"
    config.data.row_length = 320  # the longest document and its summary, or two or three shorter ones
    config.data.vocab_size = 768

    config.model.width = 96
    config.model.vision = None
    config.model.text_embedding.max_positions = 320
    config.model.decoder.num_layers = 3
    config.model.decoder.scan_layers = False

    config.train.num_steps = 1000
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3

    config.evaluate.num_examples = 2000  # both languages of 1,000 documents
    config.generate.max_new_tokens = 32
    return config

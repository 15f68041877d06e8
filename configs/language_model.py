"""A language model of texts alone: what guests say of restaurants, in English and Chinese, several in a row."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "guest_reviews"
    config.data.task = "text"
    config.data.languages = ("en", "zh")
    config.data.fields = ("text_en=document_en", "text_zh=document_zh")
    config.data.packing = "best-fit"
    config.data.row_length = 256
    config.data.vocab_size = 768

    config.model.width = 96
    config.model.vision = None
    config.model.text_embedding.max_positions = 256
    config.model.decoder.num_layers = 2
    config.model.decoder.scan_layers = False

    config.train.num_steps = 400
    config.train.batch_size = 12
    config.train.learning_rate = 2e-3

    config.generate.max_new_tokens = 64
    config.generate.temperature = 1.0
    return config

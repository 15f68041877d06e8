"""Questions about digit scenes in English and Chinese: which digit where, what colour, how many, and their sum."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digit_scenes"
    config.data.task = "question_answer"
    config.data.languages = ("en", "zh")
    config.data.row_length = 144  # the picture once, then all questions on it and their answers, in random order

    config.model.width = 96
    config.model.text_embedding.positions = "learned"
    config.model.text_embedding.max_positions = 256
    config.model.vision = "vgg-tiny"
    config.model.projector = {"kind": "pixel-shuffle", "factor": 3}  # 2 x 2 visual tokens
    config.model.fusion = "place"
    config.model.decoder.num_layers = 2
    config.model.decoder.scan_layers = False

    config.train.num_steps = 1600
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3

    config.evaluate.num_examples = 2000
    config.generate.max_new_tokens = 8
    return config

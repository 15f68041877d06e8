"""A language model of captions alone, without their pictures: what configs/distil_student.py learns from."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digit_scenes"
    config.data.task = "caption"
    config.data.modalities = ("text",)
    config.data.row_length = 48

    config.model.width = 96
    config.model.text_embedding.max_positions = 128
    config.model.vision = None
    config.model.decoder.num_layers = 2
    config.model.decoder.scan_layers = False

    config.train.num_steps = 400
    config.train.batch_size = 64
    config.train.learning_rate = 2e-3
    config.evaluate.num_examples = 500
    return config

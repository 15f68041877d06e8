"""English captions of digit scenes: a small network looks, and its visual tokens are the language model's prefix."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digit_scenes"
    config.data.task = "caption"
    config.data.row_length = 56  # 9 visual tokens and the longest caption

    config.model.width = 96
    config.model.vision = "vgg-tiny"
    config.model.projector = "linear"
    config.model.fusion = "place"
    config.model.decoder.num_layers = 2

    config.train.num_steps = 600
    config.train.batch_size = 64
    config.train.learning_rate = 2e-3
    config.train.checkpoint_every = 200
    return config

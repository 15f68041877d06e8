"""English captions of digit scenes: a small network looks, and its visual tokens are the language model's prefix."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digit_scenes"
    config.data.task = "caption"
    config.data.row_length = 48  # 4 visual tokens and the longest caption

    config.model.width = 96
    config.model.text_embedding.positions = "learned"
    config.model.text_embedding.max_positions = 128
    config.model.vision = "vgg-tiny"
    config.model.projector = {"kind": "pixel-shuffle", "factor": 3}  # 6 x 6 cells of the picture to 2 x 2 tokens
    config.model.fusion = "place"
    config.model.decoder.num_layers = 2
    config.model.decoder.scan_layers = False  # two layers compile quickly, and run quicker on a CPU

    config.train.num_steps = 1200
    config.train.batch_size = 32
    config.train.learning_rate = 2e-3
    config.train.checkpoint_every = 500
    return config

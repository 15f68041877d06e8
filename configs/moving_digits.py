"""English captions of clips in which a digit moves. Four frames are seen, one visual token each: none tells the way."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "moving_digits"
    config.data.task = "caption"
    config.data.frames = 4  # of 8; with 1 the direction is a guess
    config.data.row_length = 48  # 4 frames, their times and the longest caption

    config.model.width = 128
    config.model.text_embedding.positions = "learned"
    config.model.text_embedding.max_positions = 64
    config.model.vision = {
        "kind": "vgg",
        "image_size": 32,
        "stage_depths": (1, 1, 1),
        "stage_widths": (16, 32, 64),
        "norm": "group",
    }
    config.model.projector = {"kind": "linear", "pool": "concatenate"}  # a token knows what is at each place of a frame
    config.model.fusion = "place"
    config.model.decoder.num_layers = 3
    config.model.decoder.scan_layers = False

    config.train.num_steps = 2000
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3

    config.generate.max_new_tokens = 20
    return config

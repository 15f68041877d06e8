"""What digits are called today, told by examples alone: each has two names, and goes by one of them in an episode."""

from jaxfusion.config import default_config

NAMES = (
    *("nought", "zero", "ace", "one", "duo", "two", "trey", "three", "cater", "four"),
    *("cinque", "five", "sice", "six", "hep", "seven", "octet", "eight", "nonet", "nine"),
)


def get_config():
    config = default_config()
    config.data.name = "handwritten_digits"
    config.data.task = "classify"
    config.data.label = "digit"
    config.data.episodes.ways = 10
    config.data.episodes.shots = 16
    config.data.episodes.names = NAMES
    config.data.episodes.own_names = 2
    config.data.row_length = 72  # 17 pictures, a visual token each, and their names

    config.model.width = 128
    config.model.text_embedding.max_positions = 96
    config.model.vision = {
        "kind": "vgg",
        "image_size": 24,
        "stage_depths": (1, 1, 1),
        "stage_widths": (16, 32, 64),
        "norm": "group",
    }
    config.model.projector = {"kind": "linear", "pool": "concatenate"}
    config.model.decoder.num_layers = 2
    config.model.decoder.windows = (2, 0)  # the first layer sees the picture that a name is asked of, and no more
    config.model.decoder.scan_layers = False

    config.train.num_steps = 800
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3

    config.evaluate.shots = (0, 1, 2, 4, 8, 16)
    config.generate.max_new_tokens = 4
    return config

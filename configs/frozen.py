"""Frozen (Tsimpoukelli et al. 2021): a network learns to say pictures in two tokens that a frozen GPT-2 reads."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.model.decoder = "openai-community/gpt2"  # a directory, a hub id, or another run's directory
    config.model.vision = {
        "kind": "resnet",  # trained from nothing, so with group normalisation
        "block": "bottleneck",
        "stage_depths": (3, 4, 6, 3),
        "norm": "group",
    }
    config.model.projector = {"kind": "linear", "pool": "mean", "prefix_length": 2}  # two visual tokens a picture
    config.train.trainable = ("vision/*", "projector/*")  # the language model stays as it is

    config.data.name = "digit_scenes"  # your captions: name "json", "coco", "webdataset" ... and a path
    config.data.task = "caption"
    config.data.row_length = 64  # the two visual tokens and the longest caption

    config.train.num_steps = 20_000
    config.train.batch_size = 128
    config.train.learning_rate = 3e-4  # the paper's, of Adam
    config.train.schedule = "constant"
    config.train.weight_decay = 0.0
    config.generate.max_new_tokens = 40
    return config

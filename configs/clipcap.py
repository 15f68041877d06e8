"""ClipCap (Mokady et al. 2021): a small Transformer makes a prefix, which GPT-2 goes on from, of what CLIP sees."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.model.vision = "openai/clip-vit-base-patch32"  # a directory, or a hub id; all its patches, not one vector
    config.model.decoder = "openai-community/gpt2"
    config.model.projector = {"kind": "mapping", "prefix_length": 10, "num_layers": 8, "num_heads": 8}
    # GPT-2 frozen. To train it as well, add "decoder/*" and "text_embedding/*"; an MLP will then do for the mapping.
    config.train.trainable = ("projector/*",)

    config.data.name = "digit_scenes"  # your captions: name "json", "coco", "webdataset" ... and a path
    config.data.task = "caption"
    config.data.row_length = 72  # the prefix and the longest caption

    config.train.num_steps = 20_000
    config.train.batch_size = 40
    config.train.learning_rate = 2e-5
    config.train.schedule = "linear"  # to nothing, after the warm-up
    config.train.warmup_steps = 5000
    config.generate.max_new_tokens = 40
    config.generate.num_beams = 5
    return config

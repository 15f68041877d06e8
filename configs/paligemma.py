"""In the manner of PaliGemma (Beyer et al. 2024): all is trained, and a picture and its prompt see themselves whole."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.model.vision = "google/siglip-base-patch16-224"  # a directory, or a hub id
    config.model.decoder = {
        "checkpoint": "google/gemma-2b",
        "prefix_lm": True,  # attention in both directions over images and prompt, causal over the answer
    }
    config.model.projector = "linear"  # which begins at random; to go on from PaliGemma: config.model = its hub id
    config.model.dtype = "bfloat16"

    config.data.name = "digit_scenes"  # your data: name "json", "coco", "vqa" ... and a path
    config.data.task = "question_answer"
    config.data.row_length = 512  # 196 visual tokens, and all questions on a picture with their answers
    config.data.augment = "crop(0.9)|colour(0.1)"  # drawn anew each visit, in training alone

    config.train.num_steps = 10_000
    config.train.batch_size = 64
    config.train.learning_rate = 1e-5
    config.train.rules = (
        {"globs": ("vision/*",), "learning_rate": 1e-6, "warmup_steps": 1000},  # what it knows is not to be lost
        {"globs": ("projector/*",), "learning_rate": 1e-4},  # which knows nothing yet
    )
    config.train.remat = "attention"  # what layers compute again, to save memory
    config.generate.max_new_tokens = 16
    return config

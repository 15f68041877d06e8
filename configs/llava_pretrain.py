"""LLaVA's first stage (Liu et al. 2023): on captions a projector alone learns to speak a language model's language."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.model.vision = "google/siglip-base-patch16-224"  # a directory, or a hub id
    config.model.decoder = "HuggingFaceTB/SmolLM2-360M-Instruct"  # brings its width, tokenizer and chat template
    config.model.projector = "mlp"
    config.model.dtype = "bfloat16"
    config.train.trainable = ("projector/*",)  # both towers stay as they are

    config.data.name = "digit_scenes"  # your captions: name "json" with LLaVA's conversations, "coco" ... and a path
    config.data.task = "caption"
    config.data.row_length = 320  # 196 visual tokens, and a caption

    config.train.num_steps = 2200  # the paper's 558,000 captions once
    config.train.batch_size = 256
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 66
    config.train.weight_decay = 0.0
    config.generate.max_new_tokens = 40
    return config

"""LLaVA's second stage (Liu et al. 2023): the projector of the first and the language model learn to answer."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.model = "runs/llava_pretrain"  # the first stage's run; or the directory that --mode export made of it
    config.train.trainable = ("projector/*", "text_embedding/*", "decoder/*")  # the vision tower stays as it is

    config.data.name = "digit_scenes"  # your instructions: name "json" and a path, with the task "dialogue"
    config.data.task = "question_answer"
    config.data.row_length = 512  # 196 visual tokens, and all questions on a picture with their answers

    config.train.num_steps = 5200  # the paper's 665,000 conversations once
    config.train.batch_size = 128
    config.train.learning_rate = 2e-5
    config.train.warmup_steps = 156
    config.train.weight_decay = 0.0
    config.train.remat = "attention"  # what layers compute again, to save memory
    config.generate.max_new_tokens = 16
    return config

"""A pretrained vision tower and a pretrained language model, both frozen: a fresh projector learns to join them."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.model.vision = "google/siglip-base-patch16-224"  # a directory, or a hub id
    config.model.decoder = "HuggingFaceTB/SmolLM2-135M-Instruct"  # brings its width, tokenizer and chat template
    config.model.projector = "mlp"  # what LLaVA has, so that the result can be exported as one
    config.train.trainable = ("projector/*",)

    config.data.name = "digit_scenes"
    config.data.task = "question_answer"
    config.data.row_length = 512  # 196 visual tokens, and all questions on a picture with their answers

    config.train.num_steps = 2000
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.generate.max_new_tokens = 16
    return config

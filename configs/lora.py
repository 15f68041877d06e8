"""A whole pretrained model, frozen but for its projector and for low-rank adapters in its language model."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.model = {
        "checkpoint": "llava-hf/llava-1.5-7b-hf",  # a directory, or a hub id
        "dtype": "bfloat16",
        "lora": [{"layers": "decoder/layers/*", "rank": 16, "alpha": 32.0}],
    }
    config.train.trainable = ("*/lora_?", "projector/*")  # the first alone, to export --adapters as PEFT's files

    config.data.name = "digit_scenes"
    config.data.task = "question_answer"
    config.data.row_length = 1024  # 576 visual tokens, and all questions on a picture with their answers

    config.train.num_steps = 1000
    config.train.batch_size = 8
    config.train.learning_rate = 2e-4
    config.generate.max_new_tokens = 16
    return config

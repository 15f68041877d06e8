"""A smaller language model of captions, which has few of them, taught by one that has read all.

jaxfusion --config configs/distil_teacher.py comes first. What the teacher is worth beside the same student alone:
python -m benchmarks.distil
"""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digit_scenes"
    config.data.task = "caption"
    config.data.train_split = "train[:200]"
    config.data.modalities = ("text",)
    config.data.row_length = 48

    config.distil.teacher = "runs/distil_teacher"  # whose tokenizer the student takes
    config.distil.temperature = 1.0
    config.distil.weight = 0.9

    config.model.width = 48
    config.model.text_embedding.max_positions = 128
    config.model.vision = None
    config.model.decoder.num_layers = 1
    config.model.decoder.scan_layers = False

    config.train.num_steps = 400
    config.train.batch_size = 32
    config.train.learning_rate = 3e-3
    config.evaluate.num_examples = 500
    return config

"""A quarter of the quickstart's width, taught by it: jaxfusion --config configs/quickstart.py comes first.

What the teacher is worth beside the same student alone: python -m benchmarks.distil
"""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digit_scenes"
    config.data.task = "caption"
    config.data.row_length = 48

    config.distil.teacher = "runs/quickstart"  # or any run or checkpoint with as many positions an image
    config.distil.temperature = 2.0
    config.distil.weight = 0.9

    config.model.width = 32
    config.model.text_embedding.positions = "learned"
    config.model.text_embedding.max_positions = 128
    small = {"stage_depths": (1, 1, 1), "stage_widths": (8, 16, 32)}
    config.model.vision = {"kind": "vgg", "image_size": 48, "norm": "group"} | small
    config.model.projector = {"kind": "pixel-shuffle", "factor": 3}
    config.model.fusion = "place"
    config.model.decoder.num_layers = 1
    config.model.decoder.scan_layers = False

    config.train.num_steps = 600
    config.train.batch_size = 32
    config.train.learning_rate = 2e-3
    return config

"""Conversations about digit scenes in English and Chinese, whose later questions mean nothing without the earlier."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digit_dialogues"
    config.data.task = "dialogue"
    config.data.languages = ("en", "zh")
    config.data.others = ({"name": "digit_scenes", "task": "caption"},)  # from which digits are soon told apart
    config.data.packing = "best-fit"
    config.data.row_length = 256  # two to four pictures, each with what is said of it

    config.model.width = 96
    config.model.text_embedding.positions = "learned"  # by which the visual tokens of the four quadrants are told apart
    config.model.text_embedding.max_positions = 144
    config.model.vision = "vgg-tiny"
    config.model.projector = {"kind": "pixel-shuffle", "factor": 3}  # 2 x 2 visual tokens, a digit each
    config.model.fusion = "place"
    config.model.decoder.num_layers = 3
    config.model.decoder.scan_layers = False

    config.train.num_steps = 1500
    config.train.batch_size = 10
    config.train.learning_rate = 2e-3

    config.evaluate.num_examples = 2000  # both languages of 1,000 conversations; the last answer of each
    config.generate.max_new_tokens = 8
    return config

"""Multiple-choice questions on digit scenes in English and Chinese, answered by letter."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digit_choices"
    config.data.task = "question_answer"
    config.data.languages = ("en", "zh")
    config.data.others = ({"name": "digit_scenes", "task": "caption"},)  # from which digits are soon told apart
    config.data.packing = "best-fit"
    config.data.row_length = 336  # two pictures or three, each with four questions, their choices and the letters

    config.model.width = 96
    config.model.text_embedding.positions = "learned"  # by which the visual tokens of the four quadrants are told apart
    config.model.text_embedding.max_positions = 192
    config.model.vision = "vgg-tiny"
    config.model.projector = {"kind": "pixel-shuffle", "factor": 3}  # 2 x 2 visual tokens, a digit each
    config.model.fusion = "place"
    config.model.decoder.num_layers = 3
    config.model.decoder.scan_layers = False

    config.train.num_steps = 1200
    config.train.batch_size = 12
    config.train.learning_rate = 1e-3

    config.evaluate.num_examples = 2000
    config.generate.max_new_tokens = 4
    return config

"""Captions with the seen words hidden, filled in from the picture: text embedding + visual embedding, added, into a
bidirectional LSTM and a softmax at every step."""

from jaxfusion.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digit_scenes"
    config.data.task = "fill"
    config.data.row_length = 48

    config.model.width = 256
    config.model.text_embedding.positions = "none"  # the LSTM knows where it is
    config.model.vision = "vgg-tiny"  # "lookup" is the classic embedding of image ids, for images seen in training
    config.model.projector = {"kind": "linear", "pool": "concatenate"}  # one visual token an image
    config.model.fusion = "add"
    config.model.encoder = "bilstm"
    config.model.decoder = "token-classifier"

    config.train.num_steps = 3000
    config.train.batch_size = 32
    config.train.learning_rate = 2e-3
    return config

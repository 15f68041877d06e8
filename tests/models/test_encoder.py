"""The bidirectional LSTM's own promises; agreement with torch is in test_encoder_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import rnn

from jaxfusion.models.encoder import BiLSTM, pack_cudnn_weights

B, T, D, LAYERS = 3, 7, 8, 2


def make(segment_ids):
    module = BiLSTM(LAYERS, "scan", jnp.dtype("float32"))
    x = jax.random.normal(jax.random.key(0), (*segment_ids.shape, D))
    variables = module.init(jax.random.key(1), x, segment_ids, True)
    return module, variables, x


def test_packed_segments_do_not_see_each_other():
    packed_ids = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
    module, variables, x = make(packed_ids)
    together = module.apply(variables, x, packed_ids, True)
    for part in (np.s_[:, :3], np.s_[:, 3:7]):
        alone = module.apply(variables, x[part], jnp.ones_like(packed_ids[part]), True)
        np.testing.assert_allclose(together[part], alone, rtol=1e-5, atol=1e-6)


def test_the_weights_for_cudnn_say_the_same_as_ours():
    """cuDNN itself needs a GPU; JAX's reference of its maths takes the same packed vector."""
    lengths = jnp.array([7, 4, 6])
    segment_ids = (jnp.arange(T) < lengths[:, None]).astype(jnp.int32)
    module, variables, x = make(segment_ids)
    params, hidden = variables["params"], D // 2
    names = ("input_kernel", "hidden_kernel", "bias")
    layers = [{name: params[f"layer_{i}_{name}"] for name in names} for i in range(LAYERS)]
    matrices = rnn.unpack_lstm_weights(pack_cudnn_weights(layers), D, hidden, LAYERS, True)
    zero = jnp.zeros((2 * LAYERS, B, hidden))
    expected, _, _ = rnn.lstm_ref(
        x,
        zero,
        zero,
        *matrices,
        lengths,
        input_size=D,
        hidden_size=hidden,
        num_layers=LAYERS,
        dropout=0.0,
        bidirectional=True,
    )
    output = module.apply(variables, x, segment_ids, False)
    real = segment_ids > 0
    np.testing.assert_allclose(output[real], expected[real], rtol=1e-5, atol=1e-5)

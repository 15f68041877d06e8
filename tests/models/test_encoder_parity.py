"""The bidirectional LSTM against torch's, at the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxfusion.models.encoder import BiLSTM


def test_agrees_with_torch_on_rows_of_different_lengths():
    torch.manual_seed(0)
    num_rows, num_tokens, width, num_layers = 4, 9, 12, 2
    theirs = torch.nn.LSTM(width, width // 2, num_layers, bidirectional=True, batch_first=True)
    params = {}
    for layer in range(num_layers):
        ways = [f"l{layer}", f"l{layer}_reverse"]

        def stacked(name, ways=ways):
            return np.stack([getattr(theirs, f"{name}_{way}").detach().numpy() for way in ways])

        params[f"layer_{layer}_input_kernel"] = stacked("weight_ih").swapaxes(1, 2)
        params[f"layer_{layer}_hidden_kernel"] = stacked("weight_hh").swapaxes(1, 2)
        params[f"layer_{layer}_bias"] = stacked("bias_ih") + stacked("bias_hh")
    x, lengths = torch.randn(num_rows, num_tokens, width), torch.tensor([9, 3, 1, 6])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)

    segment_ids = (jnp.arange(num_tokens) < lengths.numpy()[:, None]).astype(jnp.int32)
    module = BiLSTM(num_layers, "scan", jnp.dtype("float32"))
    output = module.apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(x.numpy()), segment_ids, False)
    real = np.asarray(segment_ids) > 0
    np.testing.assert_allclose(output[real], expected.detach().numpy()[real], atol=1e-5)

"""Weights of Cohere's shapes: any number of key-value heads, any head width, query-key norm, own output embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.cohere import VOCAB, logits, save, small_cohere
from support.rows import packed_batch

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import load_model
from upalm.interop.architectures import COHERE
from upalm.interop.hf_import import import_hf
from upalm.interop.weights import hf_names, to_hf_layout
from upalm.model.attention import key_range
from upalm.training.loss import loss_fn
from upalm.ul2r.rows import Batch

SHAPES = {
    "one KV head": {},
    "two KV heads": {"num_key_value_heads": 2},
    "all KV heads": {"num_key_value_heads": 4},
    "query-key norm": {"num_key_value_heads": 2, "use_qk_norm": True},
    "width is heads x head": {"head_dim": 12},
    "own output embeddings": {"tie_word_embeddings": False},
}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request, tmp_path_factory, source_text):
    """A transformers model, and ours imported from what it saved."""
    folder = tmp_path_factory.mktemp("pair")
    model = small_cohere(**SHAPES[request.param], pad_token_id=None)  # else its row has no gradient
    import_hf(save(model, folder / "hf", source_text), folder / "ours")
    return model, load_model(folder / "ours").model


def oracle_logits(model, batch):
    mask = np.asarray(key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(64))
    return logits(model, batch.input_tokens, mask, batch.positions)


@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_logits_of_packed_rows_equal_those_of_transformers(pair, attention):
    model, ours = pair
    batch = packed_batch() if attention == "prefix" else packed_batch().causal()
    np.testing.assert_allclose(ours(batch), oracle_logits(model, batch).detach().numpy(), atol=2e-5)


def test_plain_rows_need_no_mask_in_transformers(pair):
    model, ours = pair
    ids = np.random.default_rng(1).integers(3, VOCAB, (2, 48)).astype(np.int32)
    batch = Batch.empty(2, 48)
    batch.input_tokens[:], batch.segment_ids[:], batch.positions[:] = ids, 1, np.arange(48)
    np.testing.assert_allclose(ours(batch), logits(model, ids).detach().numpy(), atol=2e-5)


def test_loss_and_every_gradient_equal_those_of_transformers(pair):
    import torch

    model, ours = pair
    batch = packed_batch()
    targets, weights = torch.tensor(batch.target_tokens.astype(np.int64)), torch.tensor(batch.loss_weights)
    model.zero_grad()
    nll = torch.nn.functional.cross_entropy(
        oracle_logits(model, batch).flatten(0, 1), targets.flatten(), reduction="none"
    )
    expected = (nll * weights.flatten()).sum()
    expected.backward()

    def ours_nll(decoder):
        nll = optax.softmax_cross_entropy_with_integer_labels(decoder(batch), jnp.asarray(batch.target_tokens))
        return jnp.sum(nll * batch.loss_weights)

    loss, gradient = jax.value_and_grad(ours_nll)(ours)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    n_denoisers = int(batch.denoiser_ids.max()) + 1
    assert float(loss_fn(ours, batch, n_denoisers=n_denoisers)[1].nll.sum()) == pytest.approx(expected.item(), rel=1e-5)
    arrays, parameters = to_arrays(gradient), dict(model.named_parameters())
    names = hf_names(ours.config, COHERE)
    assert names.keys() == parameters.keys()
    for hf_name, (name, layer) in names.items():
        array = np.asarray(arrays[name]) if layer < 0 else np.asarray(arrays[name][layer])
        expected_gradient = parameters[hf_name].grad.numpy()
        scale = np.abs(expected_gradient).max()
        ours_gradient = to_hf_layout(name, array, ours.config, COHERE)
        np.testing.assert_allclose(ours_gradient / scale, expected_gradient / scale, atol=2e-5)

"""Families of open models against transformers: logits of packed rows, loss, every gradient, greedy decoding."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cohere import logits
from support.open_models import FAMILIES, as_decoder, numpy_arrays, transformers_model
from support.rows import packed_batch

from upalm.checkpoints.arrays import to_arrays
from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import DecodingModel, Task, decode
from upalm.inference.grammar import Rules
from upalm.model.attention import key_range
from upalm.model.palm import Decoder, empty_model
from upalm.training.loss import Z_LOSS, loss_fn
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """The model of transformers and ours."""
    oracle = transformers_model(request.param)
    config = FAMILIES[request.param][2]
    return oracle, as_decoder(numpy_arrays(oracle.named_parameters()), config)


@pytest.fixture(params=["prefix", "causal"])
def batch(request):
    rows = packed_batch()
    return rows if request.param == "prefix" else rows.causal()


def oracle_logits(oracle, batch: Batch):
    mask = np.asarray(key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(64))
    return logits(oracle, batch.input_tokens, mask, batch.positions)


def test_logits_of_packed_rows(family, batch):
    oracle, model = family
    expected = oracle_logits(oracle, batch).detach().numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(model(batch), expected, atol=1e-5 * np.abs(expected).max() + 1e-5)


def test_loss_and_every_gradient(family, batch):
    import torch

    oracle, model = family
    oracle.zero_grad()
    log_p = torch.log_softmax(scores := oracle_logits(oracle, batch), -1)
    nll = -log_p.gather(-1, torch.tensor(batch.target_tokens.astype(np.int64))[..., None])[..., 0]
    objective = nll + Z_LOSS * torch.logsumexp(scores, -1) ** 2
    loss = (objective * torch.tensor(batch.loss_weights.astype(np.float32))).sum()
    loss.backward()
    gradients = numpy_arrays((name, p.grad) for name, p in oracle.named_parameters())
    expected = to_arrays(as_decoder(gradients, model.config))
    found_loss, found = eqx.filter_value_and_grad(lambda m: loss_fn(m, batch)[0])(model)
    assert float(found_loss) == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, gradient in to_arrays(found).items():
        scale = np.abs(expected[name]).max()
        assert scale > 0, name
        np.testing.assert_allclose(gradient, expected[name], atol=2e-5 * scale, err_msg=name)


def test_greedy_decoding_with_a_cache(family):
    import torch

    oracle, model = family
    prompt = [5, 20, 33, 47, 12]
    rules = Rules(Symbols((), {}, bos_id=1))
    [[found]] = decode(DecodingModel.of(model), [Task(prompt, 24)], GenerationConfig(attention="causal"), rules)
    ids = torch.tensor([[1, *prompt]])
    with torch.no_grad():
        settings = dict(max_new_tokens=len(found.tokens), do_sample=False, eos_token_id=None)
        expected = oracle.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) + 1 :]
    assert len(found.tokens) and found.tokens.tolist() == expected.tolist()


def test_bf16_is_within_its_rounding(family):
    """No further from fp32 than transformers in bf16, up to the luck of rounding."""
    import torch

    oracle, model = family
    batch = packed_batch()
    exact = oracle_logits(oracle, batch).detach().numpy()
    low_oracle = type(oracle)(oracle.config).to(torch.bfloat16).eval()
    low_oracle.load_state_dict(oracle.state_dict())
    theirs = oracle_logits_bf16(low_oracle, batch)
    config = dict(vars(model.config)) | {"compute_dtype": "bfloat16"}
    structure = jax.tree.structure(empty_model(type(model.config)(**config)))
    low: Decoder = jax.tree.unflatten(structure, jax.tree.leaves(model))
    errors = [np.abs(np.asarray(x, np.float32) - exact).mean() for x in (low(batch), theirs)]
    assert errors[0] < 1.3 * errors[1], errors


def oracle_logits_bf16(oracle, batch: Batch) -> np.ndarray:
    import torch

    mask = np.asarray(key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(64))
    bias = torch.where(torch.tensor(mask)[:, None], 0.0, torch.finfo(torch.bfloat16).min).to(torch.bfloat16)
    ids, positions = (torch.tensor(x.astype(np.int64)) for x in (batch.input_tokens, batch.positions))
    with torch.no_grad():
        return oracle(ids, attention_mask=bias, position_ids=positions).logits.float().numpy()

"""Import of PaLM-rlhf-pytorch's PaLM, with the class itself as the oracle."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.cohere import VOCAB, byte_level, oracle

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import load_model
from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import Task, decode
from upalm.inference.grammar import Rules
from upalm.interop.palm_rlhf import import_palm
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols

torch, rlhf = oracle("torch"), oracle("palm_rlhf_pytorch")

KINDS = {
    "published": {},
    "query-key norm": {"qk_rmsnorm": True},
    "other xPos base": {"rotary_xpos_scale_base": 40},
    "width is not heads x head": {"heads": 3, "dim_head": 20},
}


def palm(**changes):
    torch.manual_seed(0)
    model = rlhf.PaLM(**(dict(num_tokens=704, dim=48, depth=3, heads=4, dim_head=16, ff_mult=2) | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "q_scale", "k_scale")):
                parameter.add_(0.3 * torch.randn_like(parameter))
            if name == "token_emb.weight":
                parameter.mul_(20)
    return model


@pytest.fixture
def saved(tmp_path, source_text):
    def save(model, **options):
        byte_level(source_text).save(str(tmp_path / "tokenizer.json"))
        torch.save(model.state_dict(), tmp_path / "palm.pt")
        return import_palm(tmp_path / "palm.pt", tmp_path / "ours", tokenizer=tmp_path, **options)

    return save


def rows(ids):
    n_rows, n = ids.shape
    batch = Batch.empty(n_rows, n)._replace(input_tokens=ids, segment_ids=np.ones((n_rows, n), np.int16))
    return batch._replace(positions=np.tile(np.arange(n, dtype=np.int16), (n_rows, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_gradients_and_generation_are_the_classes(saved, tmp_path, kind):
    theirs = palm(**KINDS[kind])
    base = KINDS[kind].get("rotary_xpos_scale_base", 512)
    found = saved(theirs, xpos_scale_base=base, seq_len=64)
    ours = load_model(found.folder).model
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 60)).astype(np.int32)
    expected = theirs(torch.tensor(ids.astype(np.int64)))
    np.testing.assert_allclose(np.asarray(ours(rows(ids))), expected.detach().numpy(), atol=5e-5)

    targets = np.roll(ids, -1, 1)
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.tensor(targets.flatten().astype(np.int64)))
    loss.backward()

    def mean_nll(model):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(rows(ids)), jnp.asarray(targets)))

    value, gradient = jax.value_and_grad(mean_nll)(ours)
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    torch.save({name: p.grad for name, p in theirs.named_parameters()}, tmp_path / "gradient.pt")
    imported = import_palm(tmp_path / "gradient.pt", tmp_path / "gradient", tokenizer=tmp_path)
    wanted = to_arrays(load_model(imported.folder)[0])
    for name, array in to_arrays(gradient).items():
        mine, its = np.asarray(array), np.asarray(wanted[name])
        if name.endswith(("q_norm", "k_norm")):  # one scale for all heads there, stored without our offset
            mine, its = mine.sum(1), its[:, 0] + 1
        np.testing.assert_allclose(mine, its, atol=1e-4 * np.abs(its).max(), err_msg=name)

    prompt = ids[0, :20].tolist()
    greedy = torch.tensor([prompt])
    for _ in range(20):
        greedy = torch.cat([greedy, theirs(greedy)[:, -1:].argmax(-1)], 1)
    symbols = Symbols((), {}, eos_id=10_000, bos_id=prompt[0], never_generated=())
    [[completion]] = decode(ours, [Task(prompt[1:], 20)], GenerationConfig(attention="causal"), Rules(symbols))
    assert completion.tokens.tolist() == greedy[0, 20:].tolist()


def test_names_of_older_files_and_plain_rotary(saved):
    """Older files have no `fn` of the residual in their names; rotary embeddings may lack xPos."""
    theirs = palm()
    for layer in theirs.layers:
        layer.fn.rotary_emb.use_xpos = False
    state = {k.replace(".fn.", "."): v for k, v in theirs.state_dict().items()}
    theirs.state_dict = lambda: state
    ours = load_model(saved(theirs, xpos_scale_base=0).folder).model
    ids = np.random.default_rng(0).integers(3, VOCAB, (1, 50)).astype(np.int32)
    expected = theirs(torch.tensor(ids.astype(np.int64))).detach().numpy()
    np.testing.assert_allclose(np.asarray(ours(rows(ids))), expected, atol=5e-5)


def test_prefixes_of_compiled_and_parallel_models_are_left_out(saved):
    theirs = palm()
    state = {f"module._orig_mod.{k}": v for k, v in theirs.state_dict().items()}
    theirs.state_dict = lambda: state
    assert saved(theirs).config.n_layers == 3


def test_files_of_torch_before_zip_archives_open(saved, tmp_path):
    first = load_model(saved(palm()).folder).model
    torch.save(palm().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    second = load_model(import_palm(tmp_path / "old.pt", tmp_path / "old", tokenizer=tmp_path).folder).model
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))


class Attack:
    def __reduce__(self):
        return open, ("attacked", "w")


def change(key, value):
    return lambda state: state.update({key: value}) if value is not None else state.pop(key)


BLOCK = "layers.1.fn.attn_out.weight"
BAD = {
    "lacks layers.1.attn_out.weight": change(BLOCK, None),
    r"attn_out.weight has shape \(8, 8\), expected \(48, 64\)": change(BLOCK, torch.zeros(8, 8)),
    r"has \['extra'\] \(1 tensors\) that are no weights": change("extra", torch.zeros(1)),
    "to_logits.weight differs": change("to_logits.weight", torch.zeros(704, 48)),
    "norms with a bias": change("norm.beta", torch.ones(48)),
    "does not fit 64 attention outputs": change("layers.0.fn.fused_attn_ff_proj.weight", torch.zeros(200, 48)),
    "no state dict": change("step", 3),
    "the model 650 embeddings": lambda state: [change(k, torch.zeros(650, 48))(state) for k in TIED],
}
TIED = ("token_emb.weight", "to_logits.weight")


@pytest.mark.parametrize("message", BAD)
def test_bad_files(saved, tmp_path, message):
    theirs = palm()
    state = dict(theirs.state_dict())
    BAD[message](state)
    theirs.state_dict = lambda: state
    with pytest.raises(ValueError, match=message):
        saved(theirs)
    assert not (tmp_path / "ours").exists()


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch, source_text):
    monkeypatch.chdir(tmp_path)
    byte_level(source_text).save(str(tmp_path / "tokenizer.json"))
    torch.save({"token_emb.weight": Attack()}, tmp_path / "palm.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Attack()))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "palm.pt").read_bytes()[:300])
    for name in ("palm.pt", "raw.pt", "cut.pt"):
        with pytest.raises(ValueError, match="damaged, or holds more than weights"):
            import_palm(tmp_path / name, tmp_path / "ours", tokenizer=tmp_path)
    assert not (tmp_path / "attacked").exists()
    with pytest.raises(ValueError, match="no file"):
        import_palm(tmp_path / "absent.pt", tmp_path / "ours", tokenizer=tmp_path)

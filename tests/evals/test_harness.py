"""lm-evaluation-harness on our adapter: the numbers of our own evaluation, and of the whole model."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs pip install 'upalm[lm-eval]'")
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from upalm.checkpoints.folder import export
from upalm.evals.harness import UpalmLM
from upalm.evals.runner import evaluate
from upalm.evals.scorer import PromptFormat, Scorer
from upalm.evals.task import Generated, Ranked, Source
from upalm.evals.tasks.english import _from_foundry, _from_open_question
from upalm.inference.prompts import prompt_ids
from upalm.inference.scoring import score
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=128)
    return Decoder(config, key=jax.random.key(0))


@pytest.fixture(scope="module")
def checkpoint(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval") / "checkpoint"
    export(folder, model, tokenizer, {})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory, source_text):
    """A ranked and a generated task, rows of very different lengths, in both formats."""
    folder, rng = tmp_path_factory.mktemp("lm_eval_data"), np.random.default_rng(0)
    words = source_text.split()

    def some(n):
        at = int(rng.integers(0, len(words) - n))
        return " ".join(words[at : at + n]).replace("{", "(").replace("}", ")")

    rows = [
        {"query": some(int(rng.integers(1, 20))), "choices": [some(1), some(2), some(3)], "gold": i % 3}
        for i in range(16)
    ]
    (folder / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    rows = [{"question": some(int(rng.integers(1, 16))), "answer": [some(1)]} for _ in range(8)]
    (folder / "g.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def harness_tasks(data):
    files = {name: {"data_files": {"test": str(data / f"{name}.jsonl")}} for name in "rg"}
    common = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
    ranked = {
        **{"task": "r", "dataset_kwargs": files["r"], **common, "output_type": "multiple_choice"},
        **{"doc_to_text": "{{query}} =", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"},
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    generated = {
        **{"task": "g", "dataset_kwargs": files["g"], **common, "output_type": "generate_until"},
        **{"doc_to_text": "Q: {{question}}?\nA:", "doc_to_target": "{{answer[0]}}"},
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    return [ranked, generated]


FORMS = [PromptFormat(), PromptFormat("causal"), PromptFormat("prefix", "nlg", infill=True)]


@pytest.mark.parametrize("form", FORMS, ids=["default", "causal", "nlg in a gap"])
def test_native_and_harness_agree(form, model, tokenizer, checkpoint, data, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm = UpalmLM(checkpoint, form.attention, form.mode, form.infill)
    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=harness_tasks(data),
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    scorer = lm._scorer
    ranked = Ranked("r", (Source("r.jsonl", _from_foundry(" =")),))
    generated = Generated("g", (Source("g.jsonl", _from_open_question("answer")),), max_new_tokens=8)
    native = {}
    for task in (ranked, generated):
        loaded = task.load(data)
        result = evaluate(scorer, task, loaded, tmp_path / f"{task.name}.jsonl")
        lines = (tmp_path / f"{task.name}.jsonl").read_text().split("\n")[1:]
        native[task.name] = (result, {r["i"]: r for r in map(json.loads, filter(None, lines))})
    result, records = native["r"]
    assert found["results"]["r"]["acc,none"] == pytest.approx(result.estimates["acc_sum"].mean)
    assert found["results"]["r"]["acc_norm,none"] == pytest.approx(result.estimates["acc_per_char"].mean)
    samples = {s["doc_id"]: s["resps"] for s in found["samples"]["r"]}
    for i, record in records.items():
        theirs = [float(resp[0][0]) for resp in samples[i]]
        assert theirs == pytest.approx(record["log_probs"], abs=1e-4)
    samples = {s["doc_id"]: s["resps"][0][0] for s in found["samples"]["g"]}
    assert samples == {i: record["text"] for i, record in native["g"][1].items()}


def requests(*arguments):
    return [Instance("loglikelihood", {}, tuple(a), i) for i, a in enumerate(arguments)]


def test_likelihoods_are_those_of_the_whole_model(model, tokenizer, checkpoint):
    lm = UpalmLM(checkpoint, mode="s2s")
    asked = [("def f", "(x)"), ("", "import"), ("def f", " return"), ("def f", "(x)"), ("a b c", " d")]
    found = lm.loglikelihood(requests(*asked))
    pairs = [(prompt_ids(tokenizer, (c,), "s2s") if c else tokenizer.symbols.modes["s2s"], t) for c, t in asked]
    exact = [(ids, tokenizer.encode(target)) for ids, target in pairs]
    bf16 = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), model)  # as exported
    expected = score(bf16, exact)
    assert [x for x, _ in found] == pytest.approx([float(s.log_probs.sum()) for s in expected], abs=1e-4)
    assert [g for _, g in found] == [bool(s.is_best.all()) for s in expected]
    backwards = lm.loglikelihood(requests(*asked[::-1]))[::-1]
    assert [x for x, _ in backwards] == pytest.approx([x for x, _ in found], abs=1e-4)


def test_long_contexts_lose_their_front_and_keep_the_mode(tokenizer, checkpoint):
    lm = UpalmLM(checkpoint, mode="nlu")
    long, short = "x " * 300 + "def f", "def f"
    prompt = lm._fit_prompt(tokenizer.encode(long), 3)
    assert prompt.ids[: len(tokenizer.symbols.modes["nlu"])] == tokenizer.symbols.modes["nlu"]
    assert len(prompt.ids) == 128 - 1 - 3
    lm.loglikelihood(requests((long, "(x)"), (short, "(x)")))
    assert lm.n_cut == 2 and lm.get_model_info()["contexts_cut"] == 2


def test_every_token_of_a_text_is_predicted_once(model, tokenizer, checkpoint, source_text):
    """Log-likelihood counts the tokens of a text where a model gives all the same probability."""
    lm = UpalmLM(checkpoint)
    lm._scorer = Scorer(jax.tree.map(lambda x: x * 0, model), tokenizer)
    texts = [source_text[:n] for n in (1, 40, 900, 3000)]
    found = lm.loglikelihood_rolling(requests(*((t,) for t in texts)))
    counts = [len(tokenizer.encode(t)) for t in texts]
    assert max(counts) > 3 * 128
    assert found == pytest.approx([-np.log(512) * n for n in counts], rel=1e-5)
    short = UpalmLM(checkpoint)
    [(log_prob, _)] = short.loglikelihood(requests(("", texts[1])))
    assert short.loglikelihood_rolling(requests((texts[1],))) == pytest.approx([log_prob], abs=1e-4)


def test_joint_split_cuts_where_the_context_ends(tokenizer, checkpoint):
    joint = UpalmLM(checkpoint, split="joint")
    ids, target = joint._encode_pair("return", " value")
    assert ids + target == tuple(tokenizer.encode("return value"))


def test_options_that_give_wrong_numbers_are_refused(checkpoint):
    lm = UpalmLM(checkpoint)
    with pytest.raises(ValueError, match="has no tokens of its own"):
        lm.loglikelihood(requests(("a", "")))
    with pytest.raises(ValueError, match="samples; this adapter is greedy"):
        lm.generate_until(requests(("a", {"until": ["\n"], "do_sample": True, "temperature": 1.0})))

    class Cache:
        dbdict = {}

    with pytest.raises(ValueError, match="would give one model the answers of another"):
        lm.set_cache_hook(Cache())
    other = UpalmLM(checkpoint, attention="causal")
    assert other.tokenizer_name != lm.tokenizer_name


WITHOUT = """
import importlib.machinery
real = importlib.machinery.PathFinder.find_spec
absent = ("torch", "transformers")
find = lambda cls, name, *rest: None if name.split(".")[0] in absent else real(name, *rest)
importlib.machinery.PathFinder.find_spec = classmethod(find)
"""


@pytest.mark.slow
def test_harness_command_needs_no_torch(checkpoint, data, tmp_path):
    [ranked, _] = harness_tasks(data)
    (tmp_path / "r.yaml").write_text(json.dumps(ranked))  # JSON is YAML
    (tmp_path / "without").mkdir()
    (tmp_path / "without/sitecustomize.py").write_text(WITHOUT)
    found = subprocess.run(
        [
            *(sys.executable, "-m", "upalm.evals.harness", "run", "--model", "upalm", "--tasks", "r"),
            *("--model_args", f"checkpoint={checkpoint},attention=causal", "--include_path", str(tmp_path)),
            *("--output_path", str(tmp_path / "out.json")),
        ],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "without"), *sys.path]),
            **{"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        },
    )
    assert found.returncode == 0, found.stderr[-3000:]
    [path] = tmp_path.glob("out*.json")
    assert "acc,none" in json.loads(path.read_text())["results"]["r"]

"""Fetching of benchmark files, from local copies in the hub's layout."""

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pyarrow", reason="needs pip install 'upalm[data]'")
import pyarrow
import pyarrow.parquet

from upalm.evals import hub, suites
from upalm.evals.hub_sources import SOURCES
from upalm.evals.infilling import suite as infilling_suite
from upalm.evals.task import Question

PAIR = {"label": ["A", "B"], "text": ["yes", "no"]}
SQUAD = {"id": "english-1", "context": "C", "question": "Q?", "answers": {"text": ["a"], "answer_start": [0]}}
NLI = {"premise": "P", "hypothesis": "H"}
PARTS = {"idx": {"paragraph": 0, "question": 0, "answer": 0}, "paragraph": "P", "question": "Q?"}
HUB_ROWS = {  # the hub's columns
    "google/boolq": {"passage": "P", "question": "is it", "answer": True},
    "ybisk/piqa": {"goal": "G", "sol1": "a", "sol2": "b", "label": 1},
    "allenai/ai2_arc": {"id": "1", "question": "Q?", "choices": PAIR, "answerKey": "B"},
    "allenai/openbookqa": {"id": "1", "question_stem": "Q", "choices": PAIR, "answerKey": "B"},
    "ErnestSDavis/winograd_wsc": {
        **{"text": "The cat saw Ann because she ran.", "pronoun": "she", "pronoun_loc": 24},
        **{"options": ["The cat", "Ann"], "label": 1},
    },
    "allenai/winogrande": {"sentence": "Ann saw Bob so _ ran.", "option1": "Ann", "option2": "Bob", "answer": "2"},
    "Rowan/hellaswag": {"activity_label": "A", "ctx_a": "B.", "ctx_b": "c", "endings": ["d", "e"], "label": "1"},
    "aps/super_glue copa": {"premise": "P.", "question": "effect", "choice1": "A.", "choice2": "B.", "label": 1},
    "aps/super_glue rte": NLI | {"label": 1},
    "aps/super_glue cb": NLI | {"label": 2},
    "aps/super_glue wic": {"word": "w", "sentence1": "a", "sentence2": "b", "label": 1},
    "aps/super_glue wsc.fixed": {"text": "T", "span1_text": "Ann", "span2_text": "her", "label": 1},
    "aps/super_glue multirc": PARTS | {"answer": "A", "label": 1},
    "aps/super_glue record": {
        **{"passage": "Ann met Bob.", "query": "@placeholder left.", "answers": ["Ann"]},
        **{"entity_spans": {"text": ["Ann", "Bob"], "start": [0, 8], "end": [3, 11]}},
    },
    "facebook/anli": NLI | {"label": 1},
    "ehovy/race": {"article": "A", "question": "Q", "options": ["w", "x", "y", "z"], "answer": "B"},
    "mandarjoshi/trivia_qa": {"question": "Q?", "answer": {"value": "V", "aliases": ["V", "W"]}},
    "google-research-datasets/nq_open": {"question": "q", "answer": ["a", "b"]},
    "stanfordnlp/web_questions": {"url": "u", "question": "q?", "answers": ["a"]},
    "rajpurkar/squad_v2": SQUAD | {"title": "T"},
    "EleutherAI/lambada_openai": {"text": "one two three"},
    "openai/gsm8k": {"question": "Q?", "answer": "1 + 1 = 2\n#### 2"},
    "tau/commonsense_qa": {"question": "Q?", "choices": PAIR, "answerKey": "B"},
    "cais/mmlu": {"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 1},
    "juletxara/mgsm": {"question": "Frage: Q?", "answer": "Antwort: 2.", "answer_number": 2},
    "google-research-datasets/tydiqa": SQUAD | {"title": "T"},
    "google/xquad": SQUAD,
    "loubnabnl/humaneval_infilling": {"task_id": "t", "prompt": "p", "suffix": "s", "canonical_solution": "c"},
}


def write_mirror(root: Path, files, n_rows: int = 12) -> Path:
    for file in files:
        if source := SOURCES.get(file):
            folder = root / source.repo / source.split
            folder.mkdir(parents=True, exist_ok=True)
            row = HUB_ROWS.get(source.repo) or HUB_ROWS[f"{source.repo} {source.split.split('/')[0]}"]
            table = pyarrow.Table.from_pylist([row] * n_rows)
            pyarrow.parquet.write_table(table.slice(0, 5), folder / "0000.parquet")
            pyarrow.parquet.write_table(table.slice(5), folder / "0001.parquet")
            (root / source.repo / "commit").write_text("c0ffee\n")
            (root / source.repo / "licence").write_text("mit\n")
    return root


def fetch(files, folder, mirror):
    return {o.file: o for o in hub.fetch(files, folder, hub.LocalHub(mirror))}


@pytest.mark.parametrize("name", ["english26", "mmlu", "mgsm", "tydiqa", "xquad"])
def test_fetched_files_are_read_by_their_tasks(name, tmp_path):
    suite = suites.find_suite(name)
    files = hub.list_files(suite)
    outcomes = fetch(files, tmp_path / "bench", write_mirror(tmp_path / "hub", files))
    assert {o.status for o in outcomes.values()} <= {"fetched", "missing"}
    assert [file for file, o in outcomes.items() if o.status == "missing"] == (
        ["storycloze/val_2016.jsonl"] if name == "english26" else []
    )
    for task in suite.tasks:
        if task.name != "storycloze" and (name != "tydiqa" or task.name == "tydiqa_english"):
            [question, *_] = task.load(tmp_path / "bench").questions
            assert isinstance(question, Question)


def test_fetched_rows_become_the_published_questions(tmp_path):
    suite = suites.find_suite("english26")
    files = hub.list_files(suite)
    fetch(files, tmp_path / "bench", write_mirror(tmp_path / "hub", files))

    def load(name):
        [task] = suite.select((name,)).tasks
        return task.load(tmp_path / "bench").questions[0]

    assert load("boolq").prompt == "Passage: P\nQuestion: is it?\nAnswer:" and load("boolq").gold == (1,)
    winograd = load("winograd")
    assert winograd.contexts == ("The cat saw Ann because The cat", "The cat saw Ann because Ann")
    assert winograd.choices[0] == " ran."
    assert load("winogrande").contexts[1] == "Ann saw Bob so Bob"
    assert load("record").choices == (" Ann left.", " Bob left.") and load("record").gold == (0,)
    assert load("cb").gold == (2,) and load("anli_r1").gold == (2,)  # neutral, by either order of labels
    assert load("multirc").gold == (1,)
    assert load("triviaqa").answers == ("V", "V", "W")
    assert load("lambada").answers == ("three",)


def test_infilling_files_are_fetched_compressed(tmp_path):
    files = infilling_suite.list_files()
    outcomes = fetch(files, tmp_path / "bench", write_mirror(tmp_path / "hub", files))
    assert {o.status for o in outcomes.values()} == {"fetched"}
    assert (tmp_path / "bench" / files[0]).read_bytes()[:2] == b"\x1f\x8b"


def test_fetch_resumes_and_keeps_files_of_the_user(tmp_path):
    files = ["nlp/boolq.jsonl", "nlp/piqa.jsonl", "nlp/hellaswag.jsonl"]
    mirror, bench = write_mirror(tmp_path / "hub", files[:2]), tmp_path / "bench"
    (bench / "nlp").mkdir(parents=True)
    (bench / "nlp/boolq.jsonl").write_text("mine")
    outcomes = fetch(files, bench, mirror)
    assert [outcomes[f].status for f in files] == ["kept", "fetched", "failed"]
    assert "has no data set Rowan/hellaswag" in outcomes[files[2]].note
    outcomes = fetch(files, bench, write_mirror(tmp_path / "hub", files))
    assert [outcomes[f].status for f in files] == ["kept", "kept", "fetched"]
    assert (bench / "nlp/boolq.jsonl").read_text() == "mine"
    record = json.loads((bench / "fetched.json").read_text())
    assert record.keys() == set(files[1:])
    assert (record[files[1]]["commit"], record[files[1]]["licence"]) == ("c0ffee", "mit")


def test_record_pins_commit_and_content(tmp_path):
    files = ["nlp/piqa.jsonl"]
    mirror, bench = write_mirror(tmp_path / "hub", files), tmp_path / "bench"
    fetch(files, bench, mirror)
    record = (bench / "fetched.json").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    (other / "fetched.json").write_bytes(record)
    assert fetch(files, other, mirror)[files[0]].status == "fetched"
    assert (other / files[0]).read_bytes() == (bench / files[0]).read_bytes()
    (bench / files[0]).write_text("edited")
    with pytest.raises(ValueError, match="piqa.jsonl has changed since it was fetched"):
        fetch(files, bench, mirror)
    (other / files[0]).unlink()
    write_mirror(mirror, files, n_rows=11)  # another content at the same commit
    with pytest.raises(ValueError, match="another content than .*fetched.json records"):
        fetch(files, other, mirror)
    assert not (other / files[0]).exists()
    (mirror / "ybisk/piqa/commit").write_text("abc")
    assert "is at commit abc, and fetched.json pins c0ffee" in fetch(files, other, mirror)[files[0]].note


@pytest.mark.parametrize("n_writes", range(4))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_fetch_that_is_killed_leaves_no_file_without_record(n_writes, moment, tmp_path, monkeypatch):
    """A kill before or after any write; two files are two writes each."""
    files = ["nlp/piqa.jsonl", "nlp/boolq.jsonl"]
    mirror, bench = write_mirror(tmp_path / "hub", files), tmp_path / "bench"
    write, calls = hub.write_atomically, []

    def killed(path, content):
        calls.append(path)
        if moment == "before" and len(calls) > n_writes:
            raise KeyboardInterrupt
        write(path, content)
        if len(calls) > n_writes:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(files, bench, mirror)
    assert len(calls) == n_writes + 1
    fetch(files, bench, mirror)
    outcomes = fetch(files, bench, mirror)
    assert {(o.status, o.note) for o in outcomes.values()} == {("kept", "as fetched, licence mit")}
    record = json.loads((bench / "fetched.json").read_text())
    assert record.keys() == set(files) and {entry["commit"] for entry in record.values()} == {"c0ffee"}


class MovingHub(hub.LocalHub):
    """Local data sets whose branch has another commit whenever it is asked for."""

    def __init__(self, root):
        super().__init__(root)
        self.resolved = []

    def resolve(self, repo):
        self.resolved.append(repo)
        return f"commit {len(self.resolved)}", "mit"

    def download(self, repo, commit, folder):
        return sorted((self._root / repo / folder).glob("*.parquet"))


def test_files_of_a_data_set_have_one_commit(tmp_path):
    files = hub.list_files(suites.find_suite("mmlu"))
    place = MovingHub(write_mirror(tmp_path / "hub", files))
    assert {o.status for o in hub.fetch(files, tmp_path / "bench", place)} == {"fetched"}
    assert place.resolved == ["cais/mmlu"]
    record = json.loads((tmp_path / "bench/fetched.json").read_text())
    assert {entry["commit"] for entry in record.values()} == {"commit 1"} and len(record) == len(files)


def test_fetch_that_resumes_keeps_the_pinned_commit(tmp_path):
    files = hub.list_files(suites.find_suite("mmlu"))[:3]
    mirror, bench = write_mirror(tmp_path / "hub", files), tmp_path / "bench"
    assert [o.status for o in hub.fetch(files[:1], bench, MovingHub(mirror))] == ["fetched"]
    place = MovingHub(mirror)
    place.resolved.append("")  # the branch has moved on
    assert [o.status for o in hub.fetch(files, bench, place)] == ["kept", "fetched", "fetched"]
    record = json.loads((bench / "fetched.json").read_text())
    assert {entry["commit"] for entry in record.values()} == {"commit 1"} and place.resolved == [""]


def test_changed_columns_and_damaged_files_are_named(tmp_path):
    files = ["nlp/piqa.jsonl"]
    mirror = write_mirror(tmp_path / "hub", files)
    folder = mirror / "ybisk/piqa/plain_text/validation"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"goal": "G"}]), folder / "0000.parquet")
    assert "its columns have changed (KeyError('sol1'))" in fetch(files, tmp_path / "bench", mirror)[files[0]].note
    (folder / "0000.parquet").write_bytes(b"no parquet")
    assert "0000.parquet is damaged" in fetch(files, tmp_path / "bench", mirror)[files[0]].note
    assert not (tmp_path / "bench" / files[0]).exists()
    (tmp_path / "bench").mkdir(exist_ok=True)
    for content in ("[]", '{"a": {}}', "{"):
        (tmp_path / "bench/fetched.json").write_text(content)
        with pytest.raises(ValueError, match="fetched.json"):
            fetch(files, tmp_path / "bench", mirror)


def test_files_that_cannot_be_had_say_where_they_are(tmp_path):
    (tmp_path / "hub").mkdir()
    outcomes = fetch(hub.list_files(suites.find_suite("cot")), tmp_path, tmp_path / "hub")
    assert "appendix G of arXiv:2201.11903" in outcomes["gsm8k/cot_8shot.json"].note
    assert "BIG-Bench-Hard" in outcomes["bbh/navigate.json"].note
    assert "form is signed" in fetch(["storycloze/val_2016.jsonl"], tmp_path, tmp_path / "hub").popitem()[1].note


def test_fetching_without_the_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'upalm\[data,hf\]'"):
        hub.OnlineHub()


def test_online_hub_reads_the_parquet_branch(monkeypatch, tmp_path):
    """Stand-ins have the signatures of the real calls."""
    pytest.importorskip("huggingface_hub", reason="needs pip install 'upalm[hf]'")
    online, calls = hub.OnlineHub(), []

    def stand_in(name, result):
        signature = inspect.signature(getattr(online._api, name))

        def call(*words, **options):
            calls.append((name, dict(signature.bind(*words, **options).arguments)))
            return result(*words, **options)

        monkeypatch.setattr(online._api, name, call)

    files = ["default/test/0001.parquet", "default/test/0000.parquet", "default/train/0000.parquet", "README.md"]
    stand_in("dataset_info", lambda *_, **__: SimpleNamespace(sha="abc", card_data={"license": ["mit", "other"]}))
    stand_in("list_repo_files", lambda *_, **__: files)
    stand_in("hf_hub_download", lambda repo, name, **_: str(tmp_path / name))
    assert online.resolve("o/n") == ("abc", "mit, other")
    assert calls[0][1]["revision"] == "refs/convert/parquet"
    names = ("default/test/0000.parquet", "default/test/0001.parquet")
    assert online.download("o/n", "abc", "default/test") == [tmp_path / name for name in names]
    assert all(options["revision"] == "abc" for name, options in calls if name != "dataset_info")
    with pytest.raises(hub.HubError, match="o/n has no default/dev/"):
        online.download("o/n", "abc", "default/dev")
    assert [name for name, _ in calls].count("list_repo_files") == 1  # MMLU has 114 files


def test_hub_that_cannot_be_reached_is_named(monkeypatch):
    client = pytest.importorskip("huggingface_hub", reason="needs pip install 'upalm[hf]'")
    online = hub.OnlineHub()

    def fail(error):
        raise error("Name or service not known\nmore")

    for kind in (OSError, client.errors.HTTPError, client.errors.XetDownloadError):
        monkeypatch.setattr(online._api, "dataset_info", lambda *_, kind=kind, **__: fail(kind))
        with pytest.raises(hub.HubError, match="^google/boolq: Name or service not known$"):
            online.resolve("google/boolq")


def test_command_fetches_from_a_mirror(tmp_path, monkeypatch, capsys):
    from upalm.cli import main

    files = ["nlp/piqa.jsonl", "nlp/boolq.jsonl"]
    mirror = write_mirror(tmp_path / "hub", files[:1])
    words = ["upalm", "eval", "fetch", "--suite", "english26", "--data", str(tmp_path / "b"), "--mirror", str(mirror)]
    monkeypatch.setattr(sys, "argv", [*words, "--tasks", "piqa"])
    main.main()
    assert "fetched  nlp/piqa.jsonl: 12 rows of ybisk/piqa, licence mit" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--tasks", "piqa", "boolq"])
    with pytest.raises(SystemExit, match="1 of 2 files could not be fetched"):
        main.main()
    assert "kept     nlp/piqa.jsonl: as fetched, licence mit" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words[:4], "infilling", *words[5:], "--tasks", "piqa"])
    with pytest.raises(SystemExit, match="suite infilling has no use for --tasks"):
        main.main()

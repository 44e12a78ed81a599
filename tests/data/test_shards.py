import gzip
import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from upalm.checkpoints.shipped import PALM_TINY
from upalm.cli import data
from upalm.data import shards
from upalm.data.config import DataConfig, built_folders, open_source
from upalm.data.hf_tokenizer import load_tokenizer
from upalm.data.loader import Loader
from upalm.data.sources import TextSource, is_validation
from upalm.data.tokenizer import SentencePiece

pyarrow = pytest.importorskip("pyarrow", reason="reading Parquet, Arrow and .zst needs the extra `data`")
parquet = pytest.importorskip("pyarrow.parquet")

N = 300


@pytest.fixture(scope="module")
def texts(source_text):
    return [f"# {i}\n" + source_text[i * 50 : i * 50 + 40 + i] for i in range(N)]


@pytest.fixture
def source(tmp_path, texts):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


@pytest.fixture
def built(source, tmp_path, tokenizer, monkeypatch):
    """Several shards of several blocks."""
    monkeypatch.setattr(shards, "_BLOCK_TOKENS", 1000)
    monkeypatch.setattr(shards, "_DOCUMENTS_AT_ONCE", 20)
    shards.build(str(source), str(tmp_path / "built"), tokenizer, shard_tokens=4000)
    return tmp_path / "built"


def decoded(folder, split, tokenizer):
    corpus = shards.Shards(str(folder), split, tokenizer.hash)
    tokens = corpus.read(np.arange(len(corpus.block_tokens)))
    assert np.array_equal(tokens.lengths, corpus.block_lengths(np.arange(len(corpus.block_tokens))))
    assert all(tokens.ids[tokens.offsets[1:] - 1] == 1), "every document ends with EOS"
    return [tokenizer.decode(tokens.ids[a:b]) for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]


def test_shards_hold_the_text_split_by_name(built, texts, tokenizer):
    manifest = shards.Manifest.read(built)
    assert manifest.complete and manifest.documents == N
    assert sum(s.split == "train" for s in manifest.shards) > 2
    assert len(manifest.shards[0].block_tokens) > 2
    held_out = [is_validation(f"text.jsonl:{i + 1}") for i in range(N)]
    assert decoded(built, "train", tokenizer) == [t for t, v in zip(texts, held_out, strict=True) if not v]
    assert decoded(built, "validation", tokenizer) == [t for t, v in zip(texts, held_out, strict=True) if v]


def test_shards_of_few_documents_hold_out_one_as_text_does(tmp_path, tokenizer):
    """No hash of these names says so."""
    (tmp_path / "a.txt").write_text("".join(f"line {i} of a text\n" for i in range(1500)))
    corpus = TextSource(str(tmp_path / "a.txt")).load()
    assert len(corpus.validation) == 1 and not is_validation(corpus.validation[0].name)
    shards.build(str(tmp_path / "a.txt"), str(tmp_path / "built"), tokenizer)
    assert decoded(tmp_path / "built", "train", tokenizer) == [d.text for d in corpus.train]
    assert decoded(tmp_path / "built", "validation", tokenizer) == [d.text for d in corpus.validation]


def test_all_kinds_of_files_hold_the_same(tmp_path, texts, tokenizer):
    lines = "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
    for kind in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"):
        folder = tmp_path / kind
        folder.mkdir()
        path = folder / f"a.{kind}"
        table = pyarrow.table({"text": texts, "url": ["x"] * N})
        if kind == "jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        elif kind == "jsonl.zst":
            with pyarrow.output_stream(str(path), compression="zstd") as f:
                f.write(lines)
        elif kind == "parquet":
            parquet.write_table(table, path)
        elif kind == "arrow":  # as Hugging Face datasets' save_to_disk writes it
            with pyarrow.OSFile(str(path), "wb") as f, pyarrow.ipc.new_stream(f, table.schema) as writer:
                writer.write_table(table)
            (folder / "state.json").write_text("{}")
        else:
            path.write_bytes(lines)
        shards.build(str(folder), str(tmp_path / f"{kind}-built"), tokenizer)
        both = [decoded(tmp_path / f"{kind}-built", split, tokenizer) for split in shards.SPLITS]
        assert sorted(both[0] + both[1]) == sorted(texts), kind


def test_an_interrupted_build_goes_on_to_the_same_bytes(built, source, tmp_path, tokenizer):
    class Killed(Exception):
        pass

    def kill(documents, tokens):
        if documents > N / 2:
            raise Killed

    again = tmp_path / "again"
    with pytest.raises(Killed):
        shards.build(str(source), str(again), tokenizer, shard_tokens=4000, progress=kill)
    with pytest.raises(ValueError, match="unfinished"):
        shards.Shards(str(again), "train", tokenizer.hash)
    (again / "train-00009.array_record.new").write_bytes(b"half a shard")
    seen = []
    shards.build(str(source), str(again), tokenizer, shard_tokens=4000, progress=lambda *counts: seen.append(counts))
    assert seen[0][0] > N / 2, "it began anew"
    assert shards.Manifest.read(again) == shards.Manifest.read(built)
    shards.Shards(str(again), "train", tokenizer.hash).check()


def test_shards_train_like_text_in_memory(built, source, tokenizer):
    config = DataConfig(source=str(built), seq_len=128, batch_size=4)
    (train, validation) = open_source(config, tokenizer)
    loader = Loader(train, config, tokenizer.symbols, seed=0)
    assert loader.windows_per_epoch() == 1
    shuffled, plan = loader.window(0, 0)
    in_memory = open_source(DataConfig(source=str(source)), tokenizer)[0][0].corpus
    assert sorted(shuffled.ids.tolist()) == sorted(in_memory.ids.tolist())
    n_tokens = sum(s.end - s.start for row in range(len(plan.rows)) for s, _ in loader.segments(row))
    assert n_tokens == train[0].corpus.n_tokens
    assert validation[0].corpus.n_tokens > 0


def test_windows_of_blocks_cover_an_epoch(built, tokenizer, monkeypatch):
    monkeypatch.setattr("upalm.data.loader.WINDOW_BLOCKS", 3)
    config = DataConfig(source=str(built), seq_len=128, batch_size=4)
    loader = Loader(open_source(config, tokenizer)[0], config, tokenizer.symbols, seed=0)
    n = loader.windows_per_epoch()
    assert n > 3
    for epoch in range(2):
        blocks = np.concatenate([loader._blocks(0, epoch * n + w) for w in range(n)])
        assert sorted(blocks) == list(range(len(loader.corpora[0].block_tokens)))
    last = loader.batch(60)
    again = Loader(open_source(config, tokenizer)[0], config, tokenizer.symbols, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(again.batch(60), last, strict=True))


def test_supervised_examples(tmp_path, tokenizer):
    rows = [{"inputs": f"question {i}", "targets": f"answer {i}"} for i in range(200)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    shards.build(str(tmp_path / "pairs.jsonl"), str(tmp_path / "built"), tokenizer)
    config = DataConfig(source=str(tmp_path / "built"), seq_len=64, batch_size=2)
    loader = Loader(open_source(config, tokenizer)[0], config, tokenizer.symbols, seed=0)
    for _, example in loader.segments(0):
        i = tokenizer.decode(example.inputs).removeprefix("question ")
        assert tokenizer.decode(example.targets) == f"answer {i}"


def edit_manifest(folder, **changes):
    content = json.loads((folder / "manifest.json").read_text())
    content["shards"][0] |= changes
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "train-00001.array_record").unlink(), "train-00001.array_record is missing"),
        (lambda p: (p / "train-00001.array_record").write_bytes(b"x"), "train-00001.array_record has 1 bytes"),
        (lambda p: (p / "train-00000.lengths").write_bytes(b"1234"), "train-00000.lengths is damaged"),
        (lambda p: (p / "manifest.json").write_text('{"shards": 1}'), "manifest.json is no manifest"),
        (lambda p: (p / "manifest.json").write_bytes(b'"shards"\xff'), "manifest.json is no manifest"),
        (lambda p: (p / "manifest.json").write_bytes(b"[" * 100_000), "manifest.json is no manifest"),
        (lambda p: edit_manifest(p, block_tokens=[1]), "count differently"),
        (lambda p: (p / "manifest.json").unlink(), "no shards at"),
    ],
)
def test_damage_is_refused_by_name(built, tokenizer, damage, message):
    damage(built)
    with pytest.raises(ValueError, match=message):
        shards.Shards(str(built), "train", tokenizer.hash)


def test_flipped_bytes_are_found_when_read(built, tokenizer):
    path = built / "train-00001.array_record"
    content = bytearray(path.read_bytes())
    content[200:1200] = bytes(1000)
    path.write_bytes(content)
    corpus = shards.Shards(str(built), "train", tokenizer.hash)
    with pytest.raises(ValueError, match="train-00001.array_record is damaged"):
        corpus.check()
    with pytest.raises(ValueError, match="train-00001.array_record is damaged"):
        corpus.read(np.arange(len(corpus.block_tokens)))


def test_another_tokenizer_or_source_is_refused(built, source, tokenizer):
    with pytest.raises(ValueError, match="was tokenised with"):
        shards.Shards(str(built), "train", "0123")
    source.write_text(source.read_text() + '{"text": "more"}\n')
    with pytest.raises(ValueError, match="1 other source files, such as text.jsonl"):
        shards.build(str(source), str(built), tokenizer)


@pytest.mark.parametrize("n", [20, 256])
def test_mixed_kinds_are_refused(tmp_path, tokenizer, n):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * n + '{"inputs": "x", "targets": "y"}\n' * n)
    with pytest.raises(ValueError, match="folders of their own"):
        shards.build(str(tmp_path / "a.jsonl"), str(tmp_path / "built"), tokenizer)
    rows = (
        {"text": "x"} if is_validation(f"b.jsonl:{i}") else {"inputs": "x", "targets": "y"} for i in range(1, n * 9)
    )
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="folders of their own"):
        open_source(DataConfig(str(tmp_path / "b.jsonl")), tokenizer)


def test_command_line(built, source, tmp_path, tokenizer):
    def upalm(*arguments):
        return subprocess.run([sys.executable, "-m", "upalm", *arguments], capture_output=True, text=True)

    done = upalm("data", "build", str(source), "--out", str(tmp_path / "b"), "--vocab-size", "500")
    assert done.returncode == 0 and "300 documents" in done.stdout, done.stderr
    assert upalm("data", "check", str(tmp_path / "b")).stdout.count("whole") == 2
    mixed = f"{tmp_path / 'b'}=0.7,{shutil.copytree(tmp_path / 'b', tmp_path / 'c')}=0.3"
    shown = upalm("data", "show", "--data", mixed, "--rows", "6", "--count", "20", "--mask", str(tmp_path / "m.png"))
    assert shown.returncode == 0, shown.stderr
    assert "[NLU]" in shown.stdout and "20 rows" in shown.stdout
    assert (tmp_path / "m.png").stat().st_size > 5000
    wrong = upalm("data", "show", "--data", f"{tmp_path / 'b'}=x")
    assert wrong.returncode == 1 and "expected folder=number" in wrong.stderr


def write_pages(folder, text, n=60):
    folder.mkdir()
    for i in range(n):
        (folder / f"{i}.txt").write_text(f"page {i}\n{text[i * 100 : i * 100 + 2000]}")
    return folder


def test_the_vocabulary_is_sampled_from_all_files(tmp_path, source_text, capsys):
    """A file that comes last by name counts as much as one that comes first."""
    folder = write_pages(tmp_path / "texts", source_text)
    (folder / "a.txt").write_text(source_text * 90)  # above the 4 MB of a vocabulary
    (folder / "z.txt").write_text("В чащах юга жил бы цитрус? Да, но фальшивый экземпляр!\n" * 20_000)
    data.Build(str(folder), str(tmp_path / "built"), vocab_size=600)()
    pieces = load_tokenizer(tmp_path / "built").token_bytes
    assert sum(any("а" <= c <= "я" for c in piece.decode(errors="ignore")) for piece in pieces) > 10


def test_the_largest_vocabulary_that_fits_is_taken(tmp_path, source_text, capsys):
    folder = write_pages(tmp_path / "texts", source_text)
    data.Build(str(folder), str(tmp_path / "built"))()
    size = load_tokenizer(tmp_path / "built").vocab_size
    assert 500 < size < 5000
    assert f"the text supports a vocabulary of {size:,}, not of 32,000" in capsys.readouterr().out


def test_a_finished_build_answers_its_request_alone(tmp_path, source_text):
    folder, out = write_pages(tmp_path / "texts", source_text), str(tmp_path / "built")
    request = data.Build(str(folder), out, vocab_size=500)
    request()
    first = (tmp_path / "built" / "manifest.json").read_bytes()
    request()
    assert (tmp_path / "built" / "manifest.json").read_bytes() == first
    with pytest.raises(ValueError, match="vocabulary: 500 stored, 600 requested.*another --out"):
        replace(request, vocab_size=600)()
    with pytest.raises(ValueError, match="vocabulary: 500 stored, given requested"):
        replace(request, tokenizer=out, vocab_size=data.VOCAB_SIZE)()
    content = (folder / "7.txt").read_text()
    (folder / "7.txt").write_text(content.replace("page", "PAGE"))  # of the same size
    with pytest.raises(ValueError, match=r"1 other source files, such as 7\.txt"):
        request()
    (folder / "7.txt").write_text(content)
    (folder / "7.txt").rename(folder / "8a.txt")
    with pytest.raises(ValueError, match="2 other source files"):
        request()


def test_an_interrupted_build_keeps_its_choice_of_text(tmp_path, tokenizer, source_text):
    """Both halves of a build agree on what is undecodable, because it decides the documents."""
    folder, out = write_pages(tmp_path / "texts", source_text), str(tmp_path / "built")
    (folder / "99.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"99\.txt"):
        shards.build(str(folder), out, tokenizer)
    manifest = shards.build(TextSource(str(folder), skip_undecodable=True), out, tokenizer)
    assert manifest.documents == 60 and len(manifest.skipped) == 1
    with pytest.raises(ValueError, match="skip_undecodable True stored, False requested"):
        shards.build(str(folder), out, tokenizer)


@pytest.mark.parametrize("name", ["99.txt", "z.jsonl"])
def test_bad_text_is_found_before_the_first_shard(tmp_path, tokenizer, source_text, name):
    """After it, other text and another choice of text would be refused, and hours of tokenising lost."""
    folder, out = write_pages(tmp_path / "texts", source_text), tmp_path / "built"
    (folder / name).write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=f"{name}, line 1 is not UTF-8"):
        shards.build(str(folder), str(out), tokenizer, shard_tokens=1000)
    assert not out.exists()
    (folder / name).write_text('{"text": "mended"}\n')
    assert shards.build(str(folder), str(out), tokenizer, shard_tokens=1000).documents == 61


def test_too_little_text_can_be_added_to(tmp_path, tokenizer, source_text):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one line")
    with pytest.raises(ValueError, match="1 training and 0 validation documents.*give more text"):
        shards.build(str(tmp_path / "texts"), str(tmp_path / "built"), tokenizer)
    (tmp_path / "texts" / "b.txt").write_text(source_text * 5)
    shards.build(str(tmp_path / "texts"), str(tmp_path / "built"), tokenizer)


def test_text_that_a_vocabulary_cannot_spell_is_named_or_left_out(tmp_path, source, tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "can_spell", lambda self, text: not text.startswith("# 7\n"))

    def encode(self, text):
        raise ValueError("the vocabulary has no piece for the byte 0xF4: leave such text out.")

    monkeypatch.setattr(type(tokenizer), "encode", encode)
    message = r"text\.jsonl:8: the vocabulary has no piece .*: leave such text out, as .*skip.undecodable.* does"
    with pytest.raises(ValueError, match=message):
        shards.build(str(source), str(tmp_path / "built"), tokenizer)
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(str(source)), tokenizer)
    manifest = shards.build(TextSource(str(source), skip_undecodable=True), str(tmp_path / "built"), tokenizer)
    assert manifest.documents == N - 1
    assert [problem.partition(": ")[0] for problem in manifest.skipped] == ["text.jsonl:8"]


def test_shards_that_do_not_fit_the_disk_resume(built, source, tmp_path, tokenizer):
    """The largest file of a process stands for a full disk."""
    resource = pytest.importorskip("resource", reason="limits of a process are of POSIX")
    largest = max(path.stat().st_size for path in built.glob("*.array_record"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1000, hard))
    try:
        with pytest.raises(OSError, match="could not be written .* the same command resumes") as error:
            shards.build(str(source), str(tmp_path / "again"), tokenizer, shard_tokens=4000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert type(error.value) is OSError and not list((tmp_path / "again").glob("*.new"))
    shards.build(str(source), str(tmp_path / "again"), tokenizer, shard_tokens=4000)
    assert shards.Manifest.read(tmp_path / "again") == shards.Manifest.read(built)


def test_shards_do_not_go_into_the_text(tmp_path, tokenizer, source_text):
    folder = write_pages(tmp_path / "texts", source_text)
    with pytest.raises(ValueError, match="texts/built lies in the text, .*texts: choose another --out"):
        shards.build(str(folder), str(folder / "built"), tokenizer)
    assert not (folder / "built").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(b"one line", "1 training and 0 validation"), (b"\xff", "--skip-undecodable")]
)
def test_a_build_refuses_what_no_run_can_use(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.Build(str(tmp_path / "a.txt"), str(tmp_path / "built"), tokenizer=str(PALM_TINY))()
    with pytest.raises(ValueError, match="unfinished|no shards"):
        shards.Shards(str(tmp_path / "built"), "train", "0")


def test_a_finished_build_is_looked_through_again(built, source, tokenizer, monkeypatch):
    """A second build mends the tokenizer and refuses shards that are gone, instead of saying that all is done."""
    (built / "tokenizer.model").unlink()
    shards.build(str(source), str(built), tokenizer)
    assert load_tokenizer(built).hash == tokenizer.hash
    manifest = shards.Manifest.read(built)
    manifest.tokenizer_hash = "former"  # of an earlier version
    manifest.write(epath.Path(built))
    monkeypatch.setattr(type(tokenizer), "hashes", (tokenizer.hash, "former"))
    assert shards.build(str(source), str(built), tokenizer) == manifest
    (built / "train-00001.array_record").unlink()
    with pytest.raises(ValueError, match="train-00001.array_record is missing"):
        shards.build(str(source), str(built), tokenizer)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (lambda p: data.Build(str(p), "x", vocab_size=100), "--vocab-size is 100, expected 360"),
        (lambda p: data.Build(str(p), "x", vocab_size=10**9), "--vocab-size"),
        (lambda p: data.Show(str(p), count=0), "--count 0"),
        (lambda p: data.Show(str(p), mask=Path("nowhere/x.png")), "--mask nowhere/x.png: there is no folder nowhere"),
        (lambda p: data.Show(str(p), mask=p), "--mask .* is a folder, expected a file"),
        (lambda p: data.Build(str(p), str(p))(), "holds other files, such as .*choose another --out"),
        (lambda p: data.Build(str(p), str(p / "text.jsonl"), tokenizer=str(PALM_TINY))(), "is a file"),
        (lambda p: data.Check(str(p))(), "no shards at"),
    ],
)
def test_impossible_requests_are_refused_early(source, command, message):
    with pytest.raises(ValueError, match=message):
        command(source.parent)


def test_a_build_leaves_a_tokenizer_of_the_users_alone(source, tokenizer, tmp_path):
    SentencePiece.load(PALM_TINY / "tokenizer.model").save(tmp_path / "mine")
    before = (tmp_path / "mine" / "tokenizer.model").read_bytes()
    with pytest.raises(ValueError, match="mine holds another tokenizer.model: choose another --out"):
        shards.build(str(source), str(tmp_path / "mine"), tokenizer)
    assert (tmp_path / "mine" / "tokenizer.model").read_bytes() == before


@pytest.mark.parametrize(
    ("weights", "message"),
    [("{0}=1e300,{1}=1", "a millionth"), ("{0}=1,{0}=2", "stands twice"), ("{0}=nan,{1}=1", "above 0 and finite")],
)
def test_weights_that_give_no_rows_are_refused(built, weights, message):
    other = shutil.copytree(built, built.parent / "other")
    with pytest.raises(ValueError, match=message):
        built_folders(weights.format(built, other))


def test_one_long_line_and_equal_names_build_usable_shards(tmp_path, tokenizer, source_text):
    line = tmp_path / "line.txt"
    line.write_text(" ".join(source_text.split()) * 10)
    pages = tmp_path / "pages"
    for i in range(80):
        (pages / str(i)).mkdir(parents=True)
        (pages / str(i) / "page.txt").write_text(f"{i} {source_text[i * 50 : i * 50 + 500]}")
    for source in (line, pages):
        shards.build(str(source), f"{source}-built", tokenizer)
        assert shards.Shards(f"{source}-built", "validation", tokenizer.hash).n_tokens > 100


def test_ids_that_the_shards_cannot_hold_are_refused(tmp_path, tokenizer, source, monkeypatch):
    """A tokenizer that says 512 and gives 70,000 would wrap to 4,464."""
    monkeypatch.setattr(type(tokenizer), "encode_documents", lambda self, texts: [[70_000] * 9 for _ in texts])
    with pytest.raises(ValueError, match="token ids are 0 to 70000: shards of <u2 hold 0 to 65535"):
        shards.build(str(source), str(tmp_path / "wide"), tokenizer)


@pytest.fixture
def bucket(monkeypatch):
    """A Google Cloud Storage server of this machine."""
    pytest.importorskip("gcsfs", reason="an object store needs the extra `gcs`")
    server = pytest.importorskip("gcp_storage_emulator.server", reason="the object store's stand-in is not installed")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{s.getsockname()[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)  # for etils
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would look for credentials first
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", endpoint)  # for ArrayRecord
    running = server.create_server("127.0.0.1", int(endpoint.rsplit(":")[-1]), in_memory=True, default_bucket="bucket")
    running.start()
    yield "gs://bucket"
    running.stop()


def test_shards_on_an_object_store(bucket, built, source, tokenizer):
    folder = f"{bucket}/{built.name}"
    manifest = shards.build(str(source), folder, tokenizer, shard_tokens=4000)
    assert [s.sha256 for s in manifest.shards] == [s.sha256 for s in shards.Manifest.read(built).shards]
    assert shards.build(str(source), folder, tokenizer, shard_tokens=4000) == manifest, "a second build does nothing"
    data.Build(str(source), folder, tokenizer=str(built))()
    data.Check(folder)()
    assert decoded(folder, "train", tokenizer) == decoded(built, "train", tokenizer)
    config = DataConfig(source=folder, seq_len=64, batch_size=4)
    remote, _ = open_source(config, tokenizer)
    local, _ = open_source(DataConfig(source=str(built)), tokenizer)
    batches = [Loader(corpora, config, tokenizer.symbols, seed=0).batch(3) for corpora in (remote, local)]
    assert all(np.array_equal(a, b) for a, b in zip(*batches, strict=True))


def test_shards_of_earlier_versions_open_and_resume(built, source, tokenizer):
    """Manifests of earlier versions know no checksums of the source, and name its files by their paths."""
    content = json.loads((built / "manifest.json").read_text())
    for name in ("sha256", "skip_undecodable", "trained_vocab_size"):
        del content[name]
    content["files"] = {str(source): source.stat().st_size}
    (built / "manifest.json").write_text(json.dumps(content))
    assert shards.Shards(str(built), "train", tokenizer.hash).n_tokens > 0
    assert shards.build(str(source), str(built), tokenizer).documents == N
    source.write_text(source.read_text() + '{"text": "more"}\n')
    with pytest.raises(ValueError, match="other source files"):
        shards.build(str(source), str(built), tokenizer)

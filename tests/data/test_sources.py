import gzip
import hashlib
import json
import os
import random
import re

import pytest

from upalm.data import python_files, readers, sources

TEXT = "".join(f"line {i} of a text that is long enough to be cut\n" for i in range(4000))


def arrow(name: str):
    """A module of pyarrow, or the test is skipped."""
    return pytest.importorskip(f"pyarrow{name}", reason="reading Parquet, Arrow and .zst needs the extra `data`")


def joined(corpus: sources.Corpus) -> str:
    """The text of a single file, its documents in order."""
    documents = sorted(corpus.train + corpus.validation, key=lambda d: int(d.name.split(":")[1]))
    return "".join(d.text for d in documents)


def test_stdlib_is_text_and_split_by_module():
    corpus = sources.load("stdlib")
    assert sum(len(d.text) for d in corpus.train) > 3_000_000
    assert 0.02 < len(corpus.validation) / len(corpus.train) < 0.3
    assert not {d.name for d in corpus.train} & {d.name for d in corpus.validation}
    assert corpus == sources.load("stdlib")


def test_the_split_depends_on_the_name_alone():
    assert [sources.is_validation(n) for n in ("token", "argparse", "json", "abc")] == [False, False, True, False]
    assert 60 < sum(sources.is_validation(str(i)) for i in range(1000)) < 140


def test_one_of_several_documents_is_held_out_whatever_their_names(tmp_path):
    """By the smallest hash, where no hash says so; a single document is refused."""
    text = TEXT[:30_000]
    for name in ("my.txt", "notes.txt", "a.txt", "b.txt", "text.txt", "book.txt", "story.txt", "data.txt"):
        (tmp_path / name).write_text(text)
        corpus = sources.load(str(tmp_path / name))
        names = [d.name for d in (*corpus.train, *corpus.validation)]
        expected = [name for name in names if sources.is_validation(name)]
        if not expected:
            expected = [min(names, key=lambda name: hashlib.sha256(name.encode()).digest())]
        assert [d.name for d in corpus.validation] == expected and len(names) == 4
    (tmp_path / "my.txt").write_text(text[:5000])
    with pytest.raises(ValueError, match="gives 1 training and 0 validation documents.* or 8 KB of plain text"):
        sources.load(str(tmp_path / "my.txt"))


@pytest.mark.parametrize("block_bytes", [1 << 20, 5000, 7])
def test_txt_keeps_every_character(tmp_path, monkeypatch, block_bytes):
    """Line ends of all kinds, and lines far above a document, whatever blocks are read."""
    text = "".join(f"line {i} é\r\n\n  x\r\u2028" for i in range(3000))
    text += "".join(random.Random(0).choices("ab €😀 \t", k=60_000)) + "\n" + "x" * 30_000 + "\r\nend"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    whole = sources.load(str(tmp_path / "a.txt"))
    assert joined(whole) == text
    assert max(len(d.text) for d in whole.train + whole.validation) < 2 * readers.DOCUMENT_CHARS + 256
    monkeypatch.setattr(readers, "_BLOCK_BYTES", block_bytes)
    assert sources.load(str(tmp_path / "a.txt")) == whole


def test_jsonl_keeps_line_separators_inside_strings(tmp_path):
    rows = [{"text": f"row {i}\u2028same row"} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    corpus = sources.load(str(tmp_path))
    assert sorted(d.text for d in corpus.train + corpus.validation) == sorted(r["text"] for r in rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "no such file or folder"),
        ("", None, "no such file or folder"),
        ("a.txt", b"", "no text in"),
        ("a.txt", b"short", "Both are needed"),
        ("a.txt", b"fine\n\xe9 latin", r"a.txt, line 2 is not UTF-8 .*at byte 5"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
        ("a.txt", b"\x7fELF\x02\x01\x00\x00", "binary"),
        ("a.csv", b"a,b", r"of .txt, .jsonl.*include=\['\*\.csv'\] in Python"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "line 2: expected an object"),
        ("a.jsonl", b'{"text": 3}', "'text' is int"),
        ("a.jsonl", b'{"inputs": "x"}', "'targets' is missing"),
        ("a.jsonl", b"null", "it is NoneType, one object per row"),
        ("a.jsonl", b'[{"text": "x"}]', "it is list, one object per row"),
        ("a.jsonl", b'{\n"text": "x"}', "line 1: not JSON .*one object per line"),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'{"text": ' + b"1" * 10_000 + b"}", "line 1: not JSON"),
        ("a.jsonl", b'{"text": "good"}\n{"text": "a \\ud83d b"}', r"line 2 .*U\+D83D at character 2"),
        ("a.jsonl", b'{"inputs": "\\udc80", "targets": "y"}', r"line 1 .*'inputs'.*U\+DC80"),
        ("a.txt.gz", b"no gzip", "a.txt.gz: it cannot be read to its end"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9999)[:-20], "a.jsonl.gz: it cannot be read to its end"),
        ("a.parquet", b"PAR1 damaged PAR1", "a.parquet: it is damaged"),
        ("a.arrow", b"ARROW1 damaged", "a.arrow: it is damaged"),
        ("a.arrow", b"", "a.arrow: it"),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, message):
    if name.endswith((".parquet", ".arrow")):
        arrow("")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as e:
        sources.load(str(tmp_path / name) if name else "")
    assert type(e.value) is ValueError and name in str(e.value)


def test_truncated_zstd_is_named(tmp_path):
    pyarrow = arrow("")
    path = tmp_path / "a.txt.zst"
    with pyarrow.output_stream(str(path), compression="zstd") as f:
        f.write(random.Random(0).randbytes(30_000).hex().encode())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="a.txt.zst: it cannot be read to its end"):
        sources.load(str(tmp_path))


def test_undecodable_text_is_skipped_on_request_and_counted(tmp_path):
    (tmp_path / "bad.txt").write_bytes(TEXT.encode() * 10 + b"\xff\xff")  # found after the first block
    (tmp_path / "rows.jsonl").write_bytes(
        b'{"text": "good"}\n{"text": "a \\ud83d"}\n{"text": "\xff"}\n{"text": "too"}\n'
    )
    (tmp_path / "good.txt").write_text(TEXT)
    with pytest.raises(ValueError, match=r"bad\.txt, line 40001"):
        sources.load(str(tmp_path))
    corpus = sources.load(str(tmp_path), skip_undecodable=True)
    assert [s.split(" is not")[0].split("/")[-1] for s in corpus.skipped] == [
        "bad.txt, line 40001",
        "rows.jsonl, line 2",
        "rows.jsonl, line 3",
    ]
    kept = corpus.train + corpus.validation
    assert "".join(sorted(d.text for d in kept if d.name.startswith("rows"))) == "goodtoo"
    assert not [d for d in kept if d.name.startswith("bad")]


def test_files_that_are_left_out_whole_are_named_so(tmp_path):
    """One bad byte costs all of a plain text file, and JSON Lines of another encoding are no rows."""
    (tmp_path / "bad.txt").write_bytes(TEXT.encode() + b"\xff")
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(50))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-16")
    (tmp_path / "good.txt").write_text(TEXT)
    text = sources.TextSource(str(tmp_path), skip_undecodable=True)
    text.load()
    [note] = text.notes()
    assert note.count("the whole file is left out") == 2 and "rows.jsonl is not UTF-8 but UTF-16: the whole" in note
    (tmp_path / "bad.txt").unlink()
    with pytest.raises(ValueError, match=r"rows\.jsonl is not UTF-8 but UTF-16\. Convert it"):
        sources.load(str(tmp_path))


def test_folders_of_shards_are_no_text(tmp_path):
    """The tokenizer beside shards may come with a merges.txt."""
    (tmp_path / "texts" / "shards" / "hf").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text(TEXT)
    for name in ("train-00000.array_record", "train-00000.lengths", "hf/merges.txt"):
        (tmp_path / "texts" / "shards" / name).write_text("x")
    text = sources.TextSource(str(tmp_path / "texts"))
    assert [file.name for file in text.files] == ["a.txt"] and text.other == {"of shards": 3}
    with pytest.raises(ValueError, match="holds shards of `upalm data build`, no text, which lack their manifest.json"):
        sources.TextSource(str(tmp_path / "texts" / "shards"))


def test_strings_that_are_not_utf8_are_skipped_in_tables(tmp_path):
    pyarrow, parquet = arrow(""), arrow(".parquet")
    texts = [b"good", b"caf\xe9", b"too"] * 40
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(texts), pyarrow.array(texts, pyarrow.binary()).buffers())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 2 is not UTF-8"):
        sources.load(str(tmp_path))
    assert len(sources.load(str(tmp_path), skip_undecodable=True).skipped) == 40


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8-sig")
    assert joined(sources.load(str(tmp_path / "a.txt"))) == TEXT
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(50))
    (tmp_path / "b.jsonl").write_text(rows, encoding="utf-8-sig")
    assert len(sources.load(str(tmp_path / "b.jsonl")).train) > 30


def test_folders_are_read_whole_and_the_rest_is_counted(tmp_path):
    """Endings in any case, folders and links named like files; other kinds are told."""
    (tmp_path / "notes.txt").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "B.TXT").write_text("b" + TEXT)
    for name in ("notes.txt/A.Txt", "c.md", "d.MD", "e", "f.json", ".hidden.txt"):
        (tmp_path / name).write_text(name + TEXT)
    folder = tmp_path / "notes.txt"
    os.symlink(tmp_path / "elsewhere", folder / "link")
    os.symlink(tmp_path, folder / "link_to_itself")
    text = sources.TextSource(str(tmp_path))
    assert {d.name.rsplit(":")[0] for d in text.documents()} == {"elsewhere/B.TXT", "notes.txt/A.Txt"}
    assert text.other == {".md": 2, "no ending": 1, ".json": 1, "hidden": 1}
    assert text.notes() == ["left out 5 files of other kinds (.md 2, .json 1, hidden 1, no ending 1)"]
    os.symlink("nowhere", folder / "z.txt")
    with pytest.raises(ValueError, match=r"z\.txt: a dangling link"):
        sources.load(str(tmp_path))


def test_plain_text_of_any_ending_is_read_by_pattern(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("deep/a.py", "b.PY", "c.md", "d.txt"):
        (tmp_path / name).write_text(name + TEXT)
    with pytest.raises(ValueError, match=r"none of 1 files \(.py 1\).*include=\['\*\.py'\] in Python"):
        sources.load(str(tmp_path / "deep"))

    def names(*include):
        return {d.name.split(":")[0] for d in sources.TextSource(str(tmp_path), include).documents()}

    assert names("*.py") == {"deep/a.py", "b.PY"}
    assert names("*.md", "deep/*") == {"c.md", "deep/a.py"}
    assert names("*") == {"deep/a.py", "b.PY", "c.md", "d.txt"}
    (tmp_path / "e.py").write_bytes(b"\x00\x01")
    with pytest.raises(ValueError, match=r"e\.py .* binary"):
        names("*.py")
    with pytest.raises(ValueError, match=r"none of 5 files .* match \*\.rs"):
        names("*.rs")


def test_documents_are_named_by_relative_path(tmp_path):
    """Relative paths keep files of one name in many folders from all falling in the same split."""
    for i in range(40):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "page.txt").write_text(f"page {i}")
    corpus = sources.load(str(tmp_path))
    assert len(corpus.train) + len(corpus.validation) == 40
    assert {d.name for d in corpus.train} >= {"0/page.txt:0"} or "0/page.txt:0" in {d.name for d in corpus.validation}


def test_one_long_line_is_cut_into_documents(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 100_000)
    corpus = sources.load(str(tmp_path))
    assert len(corpus.train) > 40 and len(corpus.validation) > 2
    assert all(d.text.endswith(" ") for d in corpus.train)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX alone")
def test_file_names_need_not_be_utf8(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    with open(path, "w") as f:
        f.write(TEXT)
    documents = list(sources.TextSource(str(tmp_path)).documents())
    assert "".join(d.text for d in documents) == TEXT
    assert documents[0].name == r"caf\udce9.txt:0" and not sources.is_validation(documents[0].name)


def test_the_first_document_is_given_before_the_rest_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT * 100)
    n_read = 0

    class Counted(type(readers._open(tmp_path / "a.txt"))):
        def read(self, n=-1):
            nonlocal n_read
            block = super().read(n)
            n_read += len(block)
            return block

    monkeypatch.setattr(readers, "_open", lambda path: Counted(open(path, "rb", buffering=0)))
    next(iter(sources.TextSource(str(tmp_path / "a.txt")).documents()))
    assert n_read <= 2 << 20 < (tmp_path / "a.txt").stat().st_size


def test_parquet_reads_the_columns_of_text_alone(tmp_path):
    """A column beside it that cannot be decoded does no harm."""
    pyarrow, parquet = arrow(""), arrow(".parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"html": [f"<p>{i}" * 50 for i in range(2000)], "text": [f"text {i}" for i in range(2000)]})
    parquet.write_table(table, path, compression="zstd")
    column = parquet.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset :][: column.total_compressed_size] = bytes(column.total_compressed_size)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    corpus = sources.load(str(path))
    assert len(corpus.train) + len(corpus.validation) == 2000
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["text", "text"])
    parquet.write_table(twice, path)
    with pytest.raises(ValueError, match=r"the columns are \['text', 'text'\], expected one"):
        sources.load(str(path))
    parquet.write_table(table.select(["html"]), path)
    with pytest.raises(ValueError, match=r"the columns are \['html'\], expected one \"text\""):
        sources.load(str(path))


def test_a_sample_is_drawn_from_all_documents():
    """Every piece is equally likely, those at the end too, and the draw is the same every time."""
    documents = [readers.Document(f"{i}", f"{i:04d}" * 750) for i in range(4000)]
    pieces = sources.sample(documents, 1000)
    assert pieces == sources.sample(documents, 1000)
    assert len(pieces) == 1000 and max(map(len, pieces)) == 1000
    for some in (pieces, pieces[:500], pieces[500:]):
        assert 0.4 < sum(int(p[-4:]) >= 2000 for p in some) / len(some) < 0.6
    held_out = {f"{i:04d}" for i in range(4000) if sources.is_validation(f"{i}")}
    assert not [p for p in pieces if p[-4:] in held_out]
    assert sorted(sources.sample(documents[:5], 1000)) == sorted(
        d.text[i : i + 1000] for d in documents[:5] if not sources.is_validation(d.name) for i in (0, 1000, 2000)
    )
    assert sources.sample(documents[:2], is_held_out="0".__eq__) == sources.sample(documents[1:2])


def test_supervised_rows_may_have_empty_targets(tmp_path):
    """Empty targets teach to end at once; only a row without any text is left out."""
    rows = [{"inputs": "x", "targets": ""}, {"inputs": "", "targets": "y"}, {"inputs": "", "targets": ""}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [(d.inputs, d.text) for d in sources.TextSource(str(tmp_path / "a.jsonl")).documents()]
    assert pairs == [("x", ""), ("", "y")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    for source in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(ValueError, match=r"a\.txt: a dangling link or no regular file"):
            sources.load(str(source))


@pytest.mark.parametrize(
    ("options", "skip", "include"),
    [
        ((), "skip_undecodable=True in Python", "include=['*.md'] in Python"),
        (("--include", "--skip-undecodable"), "--skip-undecodable", "--include '*.md'"),
        (("--data.include", "--data.skip-undecodable"), "--data.skip-undecodable", "--data.include '*.md'"),
    ],
)
def test_hints_name_options_that_the_command_has(tmp_path, options, skip, include):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError) as e:
        sources.load(str(tmp_path / "a.txt"), options=options)
    assert f"with {skip} (" in str(e.value)
    (tmp_path / "a.txt").rename(tmp_path / "a.md")
    with pytest.raises(ValueError) as e:
        sources.load(str(tmp_path), options=options)
    assert str(e.value).endswith(f"with {include}.")


def test_installed_trains_on_more_and_holds_out_the_same():
    """Held-out text of the standard library is held out of the larger source, and in no training text."""
    stdlib, installed = sources.load("stdlib"), sources.TextSource("installed")
    corpus = installed.load()
    assert sum(len(d.text) for d in corpus.train) > 3 * sum(len(d.text) for d in stdlib.train)
    assert {d.text for d in stdlib.validation} <= {d.text for d in corpus.validation}
    assert not {d.text.strip() for d in corpus.validation} & {d.text.strip() for d in corpus.train}
    assert installed.repeated == [] and any(f"{installed.n_copies} files" in note for note in installed.notes())


def test_installed_reads_code_and_no_tests_or_tables():
    names = [file.name.replace(os.sep, "/") for file in sources.TextSource("installed").files]
    within = [name.partition("site-packages/")[2] or name for name in names]
    assert {"jax/_src/core.py", "equinox/_module/_module.py", "typing_extensions.py"} <= set(within)
    assert not [
        name for name in within if re.search(r"/tests?/|/_vendor/|_pb2\.py|_gen\.py|conftest|^(upalm|torch)/", name)
    ]
    assert not {"matplotlib/_cm_listed.py", "scipy/integrate/_lebedev.py"} & set(within)


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ValueError, match="absent-package is not installed"):
        python_files.package_files("absent-package")


def test_of_copies_the_held_out_one_is_kept(tmp_path):
    paths = [tmp_path / name for name in ("a.py", "b.py", "c.py", "d.py")]
    for path, text in zip(paths, ("x = 1\n", "y = 2\n", "x = 1", "y = 2\n"), strict=True):
        path.write_text(text)
    assert python_files.without_copies(paths, {paths[2]}) == [paths[1], paths[2]]

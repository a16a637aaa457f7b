"""Corpora of plain text: the built-in one, the catalogue by local stand-ins, the user's files; splits and bad input."""

from __future__ import annotations

import zlib
from itertools import chain, pairwise

import pytest
import tensorflow_datasets as tfds

from pipelines.config import Failure, UsageError
from pipelines.datasets import corpora, tiny_code


@pytest.fixture(scope="module")
def code() -> corpora.Corpus:
    return corpora.load("tiny_code")


def test_whole_modules_are_held_out_and_no_text_is_in_two_splits(code):
    import sysconfig
    from pathlib import Path

    found = tiny_code.modules(Path(sysconfig.get_path("stdlib")))
    held = {name for name in found if zlib.crc32(name.encode()) % 10 == 0}
    assert b"".join(sorted(code.test)) == b"".join(sorted(piece for name in held for piece in cut_of(found[name])))
    texts = [piece for split in ("train", "validation", "test") for piece in getattr(code, split)]
    assert len(set(texts)) == len(texts)
    assert sorted(texts) == sorted(piece for text in found.values() for piece in cut_of(text))
    sizes = {split: sum(map(len, getattr(code, split))) for split in ("train", "test")}
    assert 0.05 < sizes["test"] / sum(sizes.values()) < 0.2
    assert not {"test", "tests", "encodings", "site-packages"} & {part for name in found for part in name.split("/")}
    assert {"argparse.py", "asyncio/base_events.py"} <= set(found)
    assert len(set(found.values())) == len(found)


def cut_of(text: str) -> list[bytes]:
    return list(corpora.cut([text.encode()]))


def test_modules_are_read_in_their_own_encoding_and_equal_ones_once(tmp_path):
    (tmp_path / "one.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    (tmp_path / "two.py").write_bytes(b"y = 1\n")
    (tmp_path / "same.py").write_bytes(b"y = 1\n")
    (tmp_path / "bad.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "empty.py").write_bytes(b"\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/three.py").write_text("z = 2\n")
    found = tiny_code.modules(tmp_path)
    assert list(found) == ["one.py", "same.py"] and "é" in found["one.py"]


def test_a_split_is_read_again_and_again(code):
    assert list(code.validation) == list(code.validation)
    assert code.counts["validation"] == len(list(code.validation)) > 20


def test_a_limit_reads_the_first_documents(code):
    few = corpora.load("tiny_code", limit=5)
    assert list(few.train) == list(code.train)[:5]
    assert few.counts == {"train": 5, "validation": 8, "test": 8}
    assert few.fingerprint != code.fingerprint


def test_the_seed_decides_what_is_held_out(code):
    other = corpora.load("tiny_code", seed=1)
    assert list(other.test) == list(code.test)
    assert set(other.validation) != set(code.validation) and other.fingerprint != code.fingerprint


class WithOwnSplits(tfds.core.GeneratorBasedBuilder):
    """Three splits of its own, as tiny_shakespeare has them, a long document each."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"title": tfds.features.Text(), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

    def _generate_examples(self, split):
        yield 0, {"title": split, "text": f"a line of {split}\n" * 10_000}


def test_a_named_set_keeps_its_own_splits_and_long_documents_are_cut_at_lines():
    found = corpora.load("with_own_splits")
    for split in ("train", "validation", "test"):
        pieces = list(getattr(found, split))
        assert b"".join(pieces).decode() == f"a line of {split}\n" * 10_000
        assert len(pieces) > 2
        assert all(len(piece) <= corpora.PIECE and piece.endswith(b"\n") for piece in pieces)
    assert next(iter(corpora.load("with_own_splits", text_column="title").test)) == b"test"


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("tiny_cod", {}, "Did you mean 'tiny_code'"),
        ("tiny_digits", {}, "Expected a data set with a text. Received: tiny_digits with image"),
        ("with_own_splits", {"text_column": "titel"}, "Did you mean 'title'"),
        ("tiny_dates", {}, "--text_column"),
    ],
)
def test_names_without_text_are_refused(name, more, expected):
    with pytest.raises(UsageError, match=expected):
        corpora.load(name, **more)


# Files.


def parts(corpus: corpora.Corpus) -> list[list[bytes]]:
    return [list(getattr(corpus, split)) for split in ("train", "validation", "test")]


def test_a_single_file_is_cut_in_its_order(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("\ufeff" + "".join(f"line {i} with é and 漢\n" for i in range(20_000)), encoding="utf-8")
    found = corpora.load(data_dir=str(path))
    train, validation, test = parts(found)
    assert b"".join(train + validation + test) == path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    assert len(train) >= 16 and len(validation) == len(test) == 2
    assert "its last tenth is test" in found.source


def test_files_of_a_folder_are_documents_and_some_are_held_out(tmp_path):
    (tmp_path / "deep").mkdir()
    for i in range(250):
        (tmp_path / ("deep" if i % 2 else ".") / f"{i}.md").write_text(f"document {i}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "empty.txt").write_text("")
    found = corpora.load(data_dir=str(tmp_path))
    train, validation, test = parts(found)
    assert sorted(train + validation + test) == sorted(f"document {i}".encode() for i in range(250))
    assert len(validation) == len(test) == 25
    assert parts(corpora.load(data_dir=str(tmp_path))) == [train, validation, test]
    assert parts(corpora.load(data_dir=str(tmp_path), seed=1))[2] != test


def test_folders_and_files_named_as_splits_are_those(tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "one.txt").write_text(f"of {split}")
    assert parts(corpora.load(data_dir=str(tmp_path))) == [[b"of train"], [b"of val"], [b"of test"]]
    files = tmp_path / "files"
    files.mkdir()
    (files / "train.txt").write_text("".join(f"line {i}\n" for i in range(1000)))
    (files / "test.txt").write_text("of test")
    train, validation, test = parts(corpora.load(data_dir=str(files)))
    assert test == [b"of test"] and validation and b"".join(sorted(train + validation)).count(b"\n") == 1000


def test_tables_have_a_document_in_each_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"body": "text {i}", "n": {i}}}\n' for i in range(30)))
    found = parts(corpora.load(data_dir=str(tmp_path / "rows.jsonl")))
    assert sorted(chain(*found)) == sorted(f"text {i}".encode() for i in range(30))
    assert [len(one) for one in found] == [24, 3, 3]
    (tmp_path / "rows.csv").write_text("a,story\n" + "".join(f'{i},"one, {i}"\n' for i in range(9)))
    found = parts(corpora.load(data_dir=str(tmp_path / "rows.csv"), text_column="story"))
    assert sorted(chain(*found)) == sorted(f"one, {i}".encode() for i in range(9))


def test_a_changed_file_has_another_fingerprint(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word\n" * 1000)
    before = corpora.load(data_dir=str(path)).fingerprint
    assert corpora.load(data_dir=str(path)).fingerprint == before
    path.write_text("word\n" * 1001)
    assert corpora.load(data_dir=str(path)).fingerprint != before


BAD = {
    "zero": (b"text\0text" * 200, "a.txt. Received: a zero byte at place 4"),
    "latin": (b"caf\xe9 au lait\n" * 200, "Expected UTF-8 in a.txt. Received: the byte 0xe9"),
    "cut off": ("é".encode()[:1], "Expected UTF-8 in a.txt"),
    "empty": (b"", "Received: empty files"),
    "white": (b"\n \n", "Received: empty files"),
    "short": (b"a few words", "three documents"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_is_refused(name, tmp_path):
    content, expected = BAD[name]
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(Failure, match=expected):
        corpora.load(data_dir=str(tmp_path / "a.txt"))


def test_bad_files_and_rows_can_be_left_out(tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02}.txt").write_text(f"document {i}")
    (tmp_path / "05.txt").write_bytes(b"\xff\xff")
    with pytest.raises(Failure, match="Expected UTF-8 in 05.txt"):
        corpora.load(data_dir=str(tmp_path))
    with pytest.warns(UserWarning, match=r"left out 05.txt"):
        assert len([*chain(*parts(corpora.load(data_dir=str(tmp_path), skip_bad=True)))]) == 11
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\nno json\n{"text": 3}\n{"text": "b"}\n{"text": "c"}\n')
    with pytest.raises(Failure, match=r"line 2 \(not a JSON object\)"):
        corpora.load(data_dir=str(rows))
    assert sorted(chain(*parts(corpora.load(data_dir=str(rows), skip_bad=True)))) == [b"a", b"b", b"c"]


def test_missing_files_and_columns_are_told_at_once(tmp_path):
    with pytest.raises(UsageError, match="Expected --data_dir"):
        corpora.load(data_dir=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="an empty folder"):
        corpora.load(data_dir=str(tmp_path))
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"Received: picture\.png"):
        corpora.load(data_dir=str(tmp_path))
    (tmp_path / "a.csv").write_text("title,story\nx,y\n")
    with pytest.raises(UsageError, match="Did you mean 'story'"):
        corpora.load(data_dir=str(tmp_path / "a.csv"), text_column="storey")
    (tmp_path / "a.txt").write_text("word\n" * 1000)
    with pytest.raises(UsageError, match="Expected a table"):
        corpora.load(data_dir=str(tmp_path / "a.txt"), text_column="story")


# Pieces and samples.


@pytest.mark.parametrize("size", [4, 7, 100])
def test_pieces_joined_are_the_text_and_no_character_is_cut(size):
    text = "ab\ncdé\n\n漢字🙂 without an end" * 5
    data = text.encode()
    found = list(corpora.cut((data[i : i + 5] for i in range(0, len(data), 5)), size))
    assert b"".join(found) == data
    assert all(len(piece) <= size for piece in found)
    for piece in found:
        piece.decode()
    assert list(corpora.cut([b"abc\ndef\ng"], 5)) == [b"abc\n", b"def\ng"]


def test_a_sample_is_small_and_evenly_spaced():
    documents = [b"%04d" % i for i in range(1000)]
    found = corpora.sample(iter(documents), 400)
    assert 200 <= sum(map(len, found)) <= 400
    steps = {int(b) - int(a) for a, b in pairwise(found)}
    assert len(steps) == 1 and int(found[-1]) > 900
    assert corpora.sample([b"x" * 100], 10) == [b"x" * 100]

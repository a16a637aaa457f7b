"""Tokens on disk: what is written, what windows a run meets, and that memory stays as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import Failure
from pipelines.datasets import token_store
from pipelines.datasets.token_store import build, ordered
from pipelines.transforms import text

DOCUMENTS = [f"document {i} says {'é漢 ' * (i % 7)}so\n".encode() for i in range(60)]


@pytest.fixture(scope="module")
def state():
    return text.train_tokenizer("bpe", [one.decode() for one in DOCUMENTS], 300, space_runs=True)


@pytest.fixture(scope="module")
def store(state, tmp_path_factory):
    return build(DOCUMENTS, state, fingerprint="x", folder=tmp_path_factory.mktemp("stores"))


def test_documents_stand_between_end_marks_and_come_back_exactly(store, state):
    tokenizer = text.tokenizer(state)
    assert store.num_documents == 60 and store.num_bytes == sum(map(len, DOCUMENTS))
    assert store.tokens[0] == text.END and store.offsets[0] == 1 and store.offsets[-1] == len(store.tokens)
    for i, document in enumerate(DOCUMENTS):
        ids = np.array(store.tokens[store.offsets[i] : store.offsets[i + 1]], "int32")
        assert ids[-1] == text.END and text.END not in ids[:-1]
        assert tokenizer.decode(ids[None]).numpy()[0] == document
        np.testing.assert_array_equal(store.span(i, 0, store.lengths(i)), ids[:-1])


def test_start_marks_and_no_marks_are_possible(state, tmp_path):
    both = build(DOCUMENTS[:3], state, fingerprint="x", start_id=text.START, end_id=text.END, folder=tmp_path)
    none = build(DOCUMENTS[:3], state, fingerprint="x", end_id=None, folder=tmp_path)
    assert len(both.tokens) == len(none.tokens) + 6
    for i in range(3):
        ids = both.tokens[both.offsets[i] : both.offsets[i + 1]]
        assert (ids[0], ids[-1]) == (text.START, text.END)
        np.testing.assert_array_equal(ids[1:-1], none.tokens[none.offsets[i] : none.offsets[i + 1]])
        np.testing.assert_array_equal(both.span(i, 1, 3), ids[2:5])


def test_what_is_there_is_used_again_and_anything_else_makes_another(state, tmp_path):
    read = []

    def documents():
        read.append(1)
        yield from DOCUMENTS

    for _ in range(2):
        build(documents(), state, fingerprint="x", folder=tmp_path)
    assert len(read) == 1
    build(documents(), state, fingerprint="y", folder=tmp_path)
    build(documents(), state, fingerprint="x", end_id=None, folder=tmp_path)
    other = text.train_tokenizer("bpe", [one.decode() for one in DOCUMENTS], 290)
    build(documents(), other, fingerprint="x", folder=tmp_path)
    assert len(read) == 4 and len(list(tmp_path.iterdir())) == 4


def test_an_interrupted_writing_is_no_store(state, tmp_path):
    def broken():
        yield from DOCUMENTS[:30]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(broken(), state, fingerprint="x", folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert build(DOCUMENTS, state, fingerprint="x", folder=tmp_path).num_documents == 60
    with pytest.raises(Failure, match="Expected documents"):
        build([], state, fingerprint="none", folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_deleted_a_day_later(state, tmp_path):
    import os
    import time

    for name, age in ((".old-1", 2 * 86_400), (".new-1", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens.bin").write_bytes(b"x")
        os.utime(tmp_path / name / "tokens.bin", (time.time() - age,) * 2)
    build(DOCUMENTS[:2], state, fingerprint="x", folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == {".new-1"}


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "about.json"])
def test_a_damaged_store_is_told(name, state, tmp_path):
    folder = build(DOCUMENTS[:5], state, fingerprint="x", folder=tmp_path).folder
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(Failure, match="Expected a whole token store"):
        build(DOCUMENTS[:5], state, fingerprint="x", folder=tmp_path)


# Windows.


def test_a_pass_meets_every_token_once_but_for_its_ends(store):
    length, count = 16, store.windows_per_pass(16)
    passes = []
    for number in range(3):
        starts = store.starts(length, 0, number * count + np.arange(count))
        assert len(set(starts)) == count and set((starts - starts.min()) % length) == {0}
        assert 0 <= starts.min() < length and starts.max() + length <= store.num_tokens
        passes.append(starts)
    assert (passes[0] != passes[1]).any() and (passes[0] != store.starts(length, 1, np.arange(count))).any()
    assert len({starts.min() for starts in passes}) > 1


def test_windows_of_a_step_are_the_same_from_wherever_a_stream_begins(store):
    per_pass = store.windows_per_pass(16) // 4
    whole = list(store.windows(4, 16, seed=3).take(2 * per_pass + 3).as_numpy_iterator())
    for begin in (1, per_pass, per_pass + 2):
        for (step, ids), (number, wanted) in zip(
            store.windows(4, 16, seed=3, start_step=begin).take(3).as_numpy_iterator(), whole[begin:]
        ):
            assert step == number
            np.testing.assert_array_equal(ids, wanted)
    for _, ids in whole:
        assert ids.shape == (4, 16) and ids.dtype == np.int32
    step, ids = whole[per_pass + 1]
    starts = store.starts(16, 3, store.windows_per_pass(16) + 4 + np.arange(4))
    np.testing.assert_array_equal(ids, [store.tokens[start : start + 16] for start in starts])


def test_a_batch_is_at_most_a_pass(store):
    count = store.windows_per_pass(200)
    assert next(iter(store.windows(1000, 200, seed=0)))[1].shape == (count, 200)
    with pytest.raises(Failure, match="Expected at least"):
        store.windows(1, store.num_tokens, seed=0)


@pytest.mark.parametrize("stride", [None, 16, 5, 1])
def test_in_order_every_token_counts_once_and_has_its_context(store, stride):
    found = []
    for ids, fresh in store.in_order(3, 16, stride).as_numpy_iterator():
        assert ids.shape == fresh.shape and ids.shape[1] == 16
        found += ids[fresh > 0].tolist()
    assert found == store.tokens.tolist()
    first, fresh = next(store.in_order(3, 16, stride).as_numpy_iterator())
    np.testing.assert_array_equal(first[1], store.tokens[(stride or 16) : (stride or 16) + 16])
    assert fresh[1].sum() == (stride or 16) and fresh[0].all()


def test_the_last_window_is_padded(state, tmp_path):
    short = build([b"so"], state, fingerprint="x", folder=tmp_path)
    ((ids, fresh),) = short.in_order(3, 16, pad_id=7).as_numpy_iterator()
    assert fresh.sum() == short.num_tokens < 16 and (ids[0, short.num_tokens :] == 7).all()
    with pytest.raises(ValueError, match="stride"):
        short.in_order(3, 16, 17)


def test_spans_are_stretches_of_documents(store):
    found = store.documents(2000, 6, seed=0, step=5)
    again, other = store.documents(2000, 6, seed=0, step=5), store.documents(2000, 6, seed=0, step=6)
    for one, two in zip(found, again):
        np.testing.assert_array_equal(one, two)
    assert (found.place != other.place).any()
    lengths = store.lengths(found.document)
    assert (found.length == np.minimum(6, lengths)).all() and (found.place + found.length <= lengths).all()
    for document, place, length in list(zip(*found))[:20]:
        whole = store.tokens[store.offsets[document] : store.offsets[document + 1]][:-1]
        np.testing.assert_array_equal(store.span(document, place, length), whole[place : place + length])
    drawn = np.bincount(found.document, minlength=60) / 2000
    share = (store.lengths(np.arange(60)) + 1) / (store.num_tokens - 1)
    assert np.abs(drawn - share).max() < 0.02


@pytest.mark.parametrize("count", [1, 2, 5, 1000, token_store.IN_MEMORY, token_store.IN_MEMORY + 1, 150_001])
def test_orders_are_permutations_that_differ(count):
    found = ordered(np.arange(count), count, 0, 0)
    np.testing.assert_array_equal(np.sort(found), np.arange(count))
    if count >= 1000:
        some = np.random.default_rng(0).integers(0, count, 50)
        np.testing.assert_array_equal(ordered(some, count, 0, 0), found[some])
        for seed, number in ((0, 1), (1, 0)):
            other = ordered(np.arange(count), count, seed, number)
            assert (other == found).mean() < 0.01
            assert abs(np.corrcoef(other, found)[0, 1]) < 0.1
        assert abs(np.corrcoef(found, np.arange(count))[0, 1]) < 0.1


# Memory.

CHILD = """
import itertools, json, resource, sys
from pathlib import Path
from pipelines.config import quiet_tensorflow
quiet_tensorflow()
from pipelines.datasets import corpora
from pipelines.datasets.token_store import build
corpus = corpora.load(data_dir=sys.argv[1])
store = build(corpus.train, json.loads(Path(sys.argv[2]).read_text()), fingerprint="x", folder=Path(sys.argv[3]))
read = sum(ids.shape[0] for _, ids in store.windows(64, 256, seed=0).take(store.windows_per_pass(256) // 64))
read += sum(ids.shape[0] for ids, _ in store.in_order(64, 256))
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000, store.num_bytes, read]))
"""


@pytest.mark.slow
def test_ten_times_the_text_takes_no_more_memory(tmp_path):
    """A corpus of 10 MB and one of 100 MB, made into tokens and read twice, each in a process of its own."""
    line = "the quick brown fox jumps over the lazy dog, and then some more of the same follows it\n"
    words = [line[i % 40 :] for i in range(1000)]
    characters = text.train_tokenizer("character", [line], 100)
    (tmp_path / "state.json").write_text(json.dumps(characters))
    peaks = []
    for megabytes in (10, 100):
        path = tmp_path / f"{megabytes}.txt"
        with open(path, "w") as file:
            size = 0
            while size < megabytes * 1e6:
                size += file.write("".join(words))
        command = [
            sys.executable,
            "-c",
            CHILD,
            str(path),
            str(tmp_path / "state.json"),
            str(tmp_path / "stores" / path.stem),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
        peak, read, _ = json.loads(done.stdout.splitlines()[-1])
        assert read > 0.75e6 * megabytes
        peaks.append(peak)
    print(f"peak memory in MB of 10 and 100 MB of text: {peaks}")
    assert peaks[1] - peaks[0] < 30

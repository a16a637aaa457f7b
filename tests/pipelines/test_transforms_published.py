"""Published tokenizers in a TensorFlow graph give the same ids as in Python: eagerly, in tf.data, from a SavedModel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.checkpoints.tokenizers import PretrainedTokenizer, load
from pipelines.transforms import characters
from pipelines.transforms.published import PublishedTokenizer
from tests.golden.read_tokenizers import KINDS, OLD, answers, folders, texts

ROOT = Path(__file__).parents[2]
NAMES = KINDS | OLD


@pytest.fixture(scope="module")
def served() -> dict[str, PublishedTokenizer]:
    """A tokenizer of each folder with a tokenizer.json, by way of the JSON that a run keeps."""
    states = {name: load(folders() / name, {"model_type": kind}).state() for name, kind in KINDS.items()}
    return {name: PublishedTokenizer(json.loads(json.dumps(state))) for name, state in states.items()}


def ragged(rows: list[list[int]]) -> tf.RaggedTensor:
    return tf.ragged.constant(rows, tf.int32, ragged_rank=1)


def differing(found: tf.RaggedTensor, expected: list[list[int]], strings: list[str]) -> list[str]:
    """The strings of which the ids are others."""
    return [text for text, one, other in zip(strings, found.to_list(), expected, strict=True) if one != other]


def python_ids(source: PretrainedTokenizer, strings: list[str]) -> list[list[int]]:
    return source.encode_batch(strings, add_special=False)


@pytest.mark.parametrize("name", KINDS)
def test_ids_of_the_golden_strings_are_the_same(name, served):
    found = served[name].encode(texts())
    assert found.dtype == tf.int32 and found.shape.rank == 2
    assert differing(found, answers(name)["ids"], texts()) == []


@pytest.mark.parametrize("name", ["bert_uncased", "gpt2", "roberta", "t5", "xlnet", "llama"])
def test_ids_of_the_golden_strings_are_the_same_in_tf_data(name, served):
    data = tf.data.Dataset.from_tensor_slices(texts()).batch(77).map(served[name].encode)
    assert [row for batch in data for row in batch.to_list()] == answers(name)["ids"]


@pytest.mark.parametrize("name", sorted(OLD))
def test_the_older_files_make_the_same_tokenizer(name):
    """So that the graphs of the two are the same, but for the last bit of a score, which the library reads wrong."""
    kind, new = OLD[name], name.removesuffix("_old")
    old, new = (json.loads(load(folders() / one, {"model_type": kind}).tokenizer.to_str()) for one in (name, new))
    if old["model"]["type"] == "Unigram":
        for spec in (old, new):
            spec["model"]["vocab"] = [(piece, np.float32(score)) for piece, score in spec["model"]["vocab"]]
    if kind != "xlnet":
        assert old == new
    else:  # of which the reference makes two, too
        tokenizer = PublishedTokenizer(load(folders() / name, {"model_type": kind}).state())
        assert differing(tokenizer.encode(texts()), answers(name)["ids"], texts()) == []


@pytest.mark.parametrize("name", KINDS)
def test_marks_pairs_and_texts_are_those_of_the_reference(name, served):
    one, expected = served[name], answers(name)
    firsts = [texts()[place] for place in expected["places"]]
    seconds = [texts()[place + 1] for place in expected["places"]]
    pairs = one.encode_pair(firsts, seconds)
    assert [list(both) for both in zip(pairs.token_ids.to_list(), pairs.segments.to_list())] == expected["pairs"]
    assert one.with_special(one.encode(firsts)).token_ids.to_list() == expected["marked"]
    ids = ragged(expected["marked"])
    assert [text.decode() for text in one.decode(ids).numpy()] == expected["decoded"]
    assert [text.decode() for text in one.decode(ids, skip_special=False).numpy()] == expected["decoded_whole"]
    padded = tf.concat([ids.to_tensor(-1), tf.fill([len(firsts), 1], one.vocab_size + 7)], 1)
    assert [text.decode() for text in one.decode(padded).numpy()] == expected["decoded"]  # no such ids


def exported(tokenizer: PublishedTokenizer) -> tf.Module:
    """A module with a function that calls a tokenizer, as what is served has it."""

    def answer(raw: tf.Tensor) -> tuple[tf.Tensor, ...]:
        ids = tokenizer.encode(raw)
        return (ids, *tokenizer.encode_pair(raw, raw[::-1], max_length=30), tokenizer.decode(ids))

    module = tf.Module()
    module.tokenizer, module.answer = tokenizer, tf.function(answer, [tf.TensorSpec([None], tf.string)])
    return module


@pytest.mark.slow
def test_a_saved_model_gives_the_same_in_a_fresh_process(served, tmp_path):
    """Which knows nothing of this project."""
    module, names = tf.Module(), ("bert_uncased", "gpt2_added", "xlnet", "llama")
    for name in names:
        setattr(module, name, exported(served[name]))
    tf.saved_model.save(module, str(tmp_path / "saved"))
    (tmp_path / "texts.json").write_text(json.dumps(texts()))
    code = """if True:
        import json, sys
        import tensorflow as tf, tensorflow_text
        strings = tf.constant(json.load(open("texts.json")))
        loaded, found = tf.saved_model.load("saved"), {}
        for name in sys.argv[1:]:
            *ids, text = getattr(loaded, name).answer(strings)
            found[name] = [*(each.to_list() for each in ids), [each.decode() for each in text.numpy()]]
        json.dump(found, open("found.json", "w"))
        """
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for name in names:
        tokenizer = served[name]
        ids, expected = answers(name)["ids"], tokenizer.encode_pair(texts(), texts()[::-1], max_length=30)
        assert found[name][0] == ids
        assert found[name][1:3] == [each.to_list() for each in expected]
        assert found[name][3] == [tokenizer.source.decode(row) for row in ids]


def test_only_bert_needs_an_operation_of_tensorflow_text(served):
    for name, one in served.items():
        graph = one._encode.get_concrete_function().graph.as_graph_def()
        ops = {node.op for part in (graph.node, *(each.node_def for each in graph.library.function)) for node in part}
        beyond = ("Wordpiece", "Sentencepiece", "Normalize", "Fast", "RegexSplit", "PyFunc", "EagerPyFunc")
        assert {op for op in ops if op.startswith(beyond)} == (
            {"WordpieceTokenizeWithOffsets"} if "bert_" in name else set()
        )


strings = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.text(st.characters(max_codepoint=0x2FF), max_size=30)
    | st.text(st.sampled_from("ae \t\n\r'’▁.sSlt1\u0301\u0323\u200d\u0600ｅ你=-<>/"), max_size=30)
    | st.lists(
        st.sampled_from("<s> </s> <mask> [MASK] [SEP] <unk> <extra_id_0> <|endoftext|> <tail> newtok x".split())
    ).map(" ".join),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=20)
@given(raw=strings)
@example(raw=["=" * 300, "-" * 299, " " * 40, "a" * 101, "ab" * 99, "é" * 99])
def test_arbitrary_texts_have_the_same_ids_and_come_back_alike(name, raw, served):
    one = served[name]
    source = one.source
    found = one.encode(raw)
    assert found.to_list() == python_ids(source, raw)
    assert [text.decode() for text in one.decode(found).numpy()] == [source.decode(ids) for ids in found.to_list()]


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=20)
@given(rows=st.lists(st.lists(st.integers(0, 950), max_size=12), min_size=1, max_size=5))
@example(rows=[list(range(k, k + 12)) for k in range(0, 270, 7)])
def test_arbitrary_ids_are_spelled_alike(name, rows, served):
    one = served[name]
    assert [text.decode() for text in one.decode(ragged(rows)).numpy()] == [one.source.decode(ids) for ids in rows]


def test_bytes_that_are_no_text_are_read_as_replacement_characters(served):
    raw = [b"a\xffb", b"\xed\xa0\x80", b"\xe2\x82", b"\xc0\x80 \xf5"]
    for one in served.values():
        clean = [each.decode("utf-8", "replace") for each in raw]
        assert one.encode(raw).to_list() == python_ids(one.source, clean)


def test_a_batch_of_nothing_and_empty_texts(served):
    for one in served.values():
        assert one.encode(tf.constant([], tf.string)).to_list() == []
        assert one.encode(["", ""]).to_list() == [[], []]
        assert one.decode(ragged([[], []])).numpy().tolist() == [b"", b""]
        nothing = one.encode_pair([""], [""])
        assert nothing.token_ids.to_list() == [one.source.encode("", "")]


@pytest.mark.parametrize("name", ["bert_cased", "roberta", "xlnet"])
def test_long_texts_lose_their_ends_and_of_two_the_longer_one_first(name, served):
    tokenizer = served[name]
    one = [texts()[place] for place in answers(name)["places"]]
    two = one[::-1]
    reference = load(folders() / name, {"model_type": NAMES[name]}).tokenizer
    least = reference.num_special_tokens_to_add(True)
    for most in (least, least + 1, 9, 16, 21):
        reference.enable_truncation(most, strategy="longest_first")
        found = tokenizer.encode_pair(one, two, max_length=most)
        expected = reference.encode_batch(list(zip(one, two)))
        assert found.token_ids.to_list() == [each.ids for each in expected]
        assert found.segments.to_list() == [each.type_ids for each in expected]
        alone = tokenizer.with_special(tokenizer.encode(one), max_length=most)
        assert alone.token_ids.to_list() == [each.ids for each in reference.encode_batch(one)]
    with pytest.raises(ValueError, match=f"max_length of at least {least}. Received: {least - 1}"):
        tokenizer.encode_pair(one, two, max_length=least - 1)


def changed(name: str, **parts) -> PretrainedTokenizer:
    """A golden tokenizer with other parts of its tokenizer.json."""
    files = dict(load(folders() / name, {"model_type": NAMES[name]}).files)
    spec = json.loads(files["tokenizer.json"])
    for key, part in parts.items():
        spec[key] = part(spec[key]) if callable(part) else part
    return PretrainedTokenizer(NAMES[name], {"tokenizer.json": json.dumps(spec).encode()})


def in_order(key: str, *parts: dict) -> dict:
    return {"type": "Sequence", key: list(parts)}


def bert_normalizer(**words) -> dict:
    return {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True} | words


def without_letters(model: dict) -> dict:
    return model | {
        "vocab": {key: number for key, number in model["vocab"].items() if key not in "ÃðŁĠe"},
        "merges": [],
    }


def without_bytes(model: dict, fuse: bool) -> dict:
    return model | {"byte_fallback": False, "unk_token": "<unk>", "fuse_unk": fuse}


PREPEND, SPACES = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
TWO = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
FIRST = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
VARIANTS = {
    "German BERT": (
        "bert_uncased",
        {
            "normalizer": bert_normalizer(strip_accents=False, lowercase=True),
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        },
    ),
    "BERT without accents, decoder and marks": (
        "bert_cased",
        {
            "normalizer": bert_normalizer(strip_accents=True, lowercase=False),
            "decoder": None,
            "post_processor": None,
        },
    ),
    "LLaMA 2": (
        "llama",
        {
            "normalizer": in_order("normalizers", PREPEND, SPACES),
            "pre_tokenizer": None,
            "added_tokens": lambda tokens: [token | {"normalized": True} for token in tokens],
            "model": lambda model: model | {"ignore_merges": True},
        },
    ),
    "XLNet as it was published, in small letters": (
        "xlnet",
        {
            "normalizer": lambda part: in_order(
                "normalizers", *part["normalizers"][:4], {"type": "Lowercase"}, part["normalizers"][4], TWO
            )
        },
    ),
    "T5 of one piece": (
        "t5",
        {"normalizer": lambda part: in_order("normalizers", part, STRIP, TWO), "pre_tokenizer": FIRST},
    ),
    "GPT with digits": ("gpt2", {"pre_tokenizer": in_order("pretokenizers", DIGITS, BYTES)}),
    "RoBERTa with numbers and a space": (
        "roberta",
        {
            "pre_tokenizer": in_order(
                "pretokenizers", DIGITS | {"individual_digits": False}, BYTES | {"add_prefix_space": True}
            )
        },
    ),
    "GPT without some letters": ("gpt2", {"pre_tokenizer": BYTES | {"use_regex": False}, "model": without_letters}),
    "LLaMA without bytes": ("llama", {"model": lambda model: without_bytes(model, fuse=True)}),
    "LLaMA with every unknown letter": ("llama", {"model": lambda model: without_bytes(model, fuse=False)}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_parts_that_published_files_have(variant):
    name, parts = VARIANTS[variant]
    source = changed(name, **parts)
    tokenizer = PublishedTokenizer(source.state())
    some = [text for text in texts() if len(text) < 2000]
    expected = python_ids(source, some)
    assert differing(tokenizer.encode(some), expected, some) == []
    pairs = tokenizer.encode_pair(some[:60], some[60:120])
    assert pairs.token_ids.to_list() == source.encode_batch(some[:60], some[60:120])
    assert pairs.segments.to_list() == [source.segments(*pair) for pair in zip(some[:60], some[60:120])]
    assert [text.decode() for text in tokenizer.decode(ragged(expected[:60])).numpy()] == [
        source.decode(ids) for ids in expected[:60]
    ]


def without(vocab: dict[str, int], token: str) -> dict[str, int]:
    return {("<>" if key == token else key): number for key, number in vocab.items()}


REFUSED = [
    ("gpt2", {"added_tokens": lambda tokens: [token | {"single_word": True} for token in tokens]}, "single_word"),
    ("gpt2", {"pre_tokenizer": {"type": "Whitespace"}}, "Expected a pre-tokenizer .*Received: Whitespace"),
    ("llama", {"normalizer": {"type": "ByteLevel"}}, "Expected a normalizer .*Received: ByteLevel"),
    ("gpt2", {"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}, "Expected a decoder .*Received: BPEDecoder"),
    ("llama", {"model": lambda part: part | {"dropout": 0.1}}, "Expected a BPE without dropout. Received: 0.1"),
    ("t5", {"model": lambda part: part | {"byte_fallback": True}}, "without byte_fallback"),
    ("llama", {"model": lambda part: part | {"vocab": without(part["vocab"], "<0x07>")}}, "none for byte 7"),
]  # fmt: skip
PATTERNS = [r"(?<=a)b", r"a(?!b)", r"\w+", r"[^\S]+", r"\s+(?!\S)|a", r"a++"]


@pytest.mark.parametrize(("name", "parts", "message"), REFUSED)
def test_what_cannot_be_alike_is_refused(name, parts, message):
    with pytest.raises(ValueError, match=message):
        PublishedTokenizer(changed(name, **parts).state())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_that_cannot_be_alike_are_refused(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    with pytest.raises(ValueError, match="Expected .* Received: "):
        PublishedTokenizer(changed("gpt2", pre_tokenizer=split).state())


def every_character(last: int = 0x32000) -> list[str]:
    """All characters up to those that are alike, in their order, some to a text."""
    codes = [
        *range(0xD800),
        *range(0xE000, last),
        *range(0xE0000, 0xE0200),
        *range(0xF0000, 0xF0100),
        *range(0x10FF00, 0x110000),
    ]
    return ["".join(map(chr, codes[start : start + 97])) for start in range(0, len(codes), 97)]


@pytest.mark.parametrize(("name", "exceptions"), [("bert_uncased", 2), ("bert_cased", 0), ("t5", 0), ("xlnet", 0)])
def test_every_character_is_normalized_alike(name, exceptions, served):
    """But marks that Unicode has had since version 9 and that stand together, which BERT puts in another order."""
    tokenizer = served[name]
    asked = every_character()
    found = tf.constant(asked)
    for step in tokenizer.steps:
        found = step(found)
    normalizer = tokenizer.source.tokenizer.normalizer
    pairs = [(text.decode(), normalizer.normalize_str(one)) for text, one in zip(found.numpy(), asked)]
    others = [(one, other) for one, other in pairs if one != other]
    assert len(others) == exceptions
    assert all(sorted(one) == sorted(other) for one, other in others)


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_every_character_is_split_alike(name, served):
    asked = [" " + " a".join(text) for text in every_character()]
    assert differing(served[name].encode(asked), python_ids(served[name].source, asked), asked) == []


def test_tables_of_characters():
    table = characters.Characters({"a": "", "b": "xyz", "é": "e"})
    assert table(["abé", "", "ccc", "bb"]).numpy().tolist() == [b"xyze", b"", b"ccc", b"xyzxyz"]
    numbers = characters.Paged({5: 1, 0x10FFFF: 7}, rest=-1)
    assert np.array_equal(numbers(tf.constant([5, 6, 0x10FFFF])), [1, -1, 7])
    assert characters.ranges("abcxz") == r"\x{61}-\x{63}\x{78}-\x{78}\x{7a}-\x{7a}"

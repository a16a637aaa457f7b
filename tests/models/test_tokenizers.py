"""Published tokenizers give the reference's ids, from tokenizer.json and from older files; bad files are named."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.checkpoints import tokenizers
from models.checkpoints.tokenizers import NAMES, PretrainedTokenizer, from_state, load
from models.checkpoints.vocabularies import FILES
from tests.golden.read_tokenizers import KINDS, OLD, answers, folders, texts

ALL = KINDS | OLD


def loaded(name: str) -> PretrainedTokenizer:
    found = load(folders() / name, {"model_type": ALL[name]})
    assert found is not None
    return found


@pytest.mark.parametrize("name", ALL)
def test_ids_and_texts_are_those_of_the_reference(name):
    tokenizer, expected, strings = loaded(name), answers(name), texts()
    assert len(strings) == len(expected["ids"]) == 500
    found = tokenizer.encode_batch(strings, add_special=False)
    assert {place for place, ids in enumerate(found) if ids != expected["ids"][place]} == set()
    assert [tokenizer.encode(text, add_special=False) for text in strings[:100]] == expected["ids"][:100]
    places = expected["places"]
    assert len(places) > 100
    assert [tokenizer.encode(strings[place]) for place in places] == expected["marked"]
    pairs = [(strings[place], strings[place + 1]) for place in places]
    assert [[tokenizer.encode(*pair), tokenizer.segments(*pair)] for pair in pairs] == expected["pairs"]
    assert tokenizer.encode_batch(*zip(*pairs)) == [ids for ids, _ in expected["pairs"]]
    assert [tokenizer.decode(ids) for ids in expected["marked"]] == expected["decoded"]
    assert [tokenizer.decode(ids, skip_special=False) for ids in expected["marked"]] == expected["decoded_whole"]


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_are_those_of_the_reference(name):
    tokenizer, expected = loaded(name), answers(name)
    assert tokenizer.vocab_size == expected["vocab_size"]
    assert {key: getattr(tokenizer, f"{ours}_id") for ours, key in NAMES.items()} == expected["special"]
    for ours, token in tokenizer.special.items():
        number = getattr(tokenizer, f"{ours}_id")
        assert (number is None) == (token is None)
        if token is not None:
            assert tokenizer.token_to_id(token) == number and tokenizer.id_to_token(number) == token
    assert tokenizer.token_to_id("no such token") is None and tokenizer.id_to_token(10**6) is None


@pytest.mark.parametrize("name", ALL)
def test_the_very_files_are_saved_and_a_state_is_plain_json(name, tmp_path):
    tokenizer = loaded(name)
    tokenizer.save(tmp_path / "saved")
    files = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (folders() / name).iterdir()}
    some, expected = texts()[::9], answers(name)["ids"][::9]
    for again in (
        load(tmp_path / "saved", {"model_type": ALL[name]}),
        from_state(json.loads(json.dumps(tokenizer.state()))),
    ):
        assert again is not None and again.files == tokenizer.files
        assert again.encode_batch(some, add_special=False) == expected
        assert again.special == tokenizer.special and again.vocab_size == tokenizer.vocab_size


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers, the reference")
@pytest.mark.parametrize("name", ["bert_cased", "gpt2_old", "roberta", "t5_old", "xlnet", "llama_old"])
def test_the_reference_loads_what_is_saved(name, tmp_path):
    import transformers

    loaded(name).save(tmp_path)
    kind = {"bert": "Bert", "gpt2": "GPT2", "roberta": "Roberta", "t5": "T5", "xlnet": "XLNet", "llama": "Llama"}[
        ALL[name]
    ]
    reference = getattr(transformers, f"{kind}Tokenizer").from_pretrained(tmp_path)
    assert reference(texts(), add_special_tokens=False)["input_ids"] == answers(name)["ids"]


def test_distilbert_reads_as_bert():
    found = load(folders() / "bert_uncased_old", {"model_type": "distilbert"})
    assert found is not None and found.encode_batch(texts(), add_special=False) == answers("bert_uncased")["ids"]


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert all(load(tmp_path, {"model_type": kind}) is None for kind in FILES)


def test_tokenizer_json_comes_before_the_older_files(tmp_path):
    for name in ("xlnet_old", "xlnet"):
        shutil.copytree(folders() / name, tmp_path, dirs_exist_ok=True)
    found = load(tmp_path, {"model_type": "xlnet"})
    assert found is not None and found.encode_batch(texts(), add_special=False) == answers("xlnet")["ids"]
    assert answers("xlnet")["ids"] != answers("xlnet_old")["ids"]  # the reference makes two tokenizers of them, too


def test_lengths_and_padding_that_a_file_was_saved_with_do_not_matter():
    files = dict(loaded("bert_cased").files)
    spec = json.loads(files["tokenizer.json"])
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    spec["padding"] |= {"pad_type_id": 0, "pad_token": "[PAD]"}
    files["tokenizer.json"] = json.dumps(spec).encode()
    assert PretrainedTokenizer("bert", files).encode_batch(texts(), add_special=False) == answers("bert_cased")["ids"]


few = settings(deadline=None, max_examples=30)


@few
@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("<|endoftext|> <|endoftext|>")
def test_bytes_give_back_every_text(text):
    for name in ("gpt2", "roberta"):
        tokenizer = bytewise(name)
        if "<mask>" not in text:  # which takes the spaces before it
            assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text


@few
@given(st.lists(st.integers(0, 1100)))
def test_any_ids_decode(ids):
    for name in ("gpt2", "llama3"):
        tokenizer = bytewise(name)
        inside = [one for one in ids if one < tokenizer.vocab_size]
        assert tokenizer.decode(ids) == tokenizer.decode(inside)


CACHE: dict[str, PretrainedTokenizer] = {}


def bytewise(name: str) -> PretrainedTokenizer:
    return CACHE.setdefault(name, loaded(name))


def test_what_is_no_text_is_refused():
    tokenizer = loaded("gpt2")
    for text in (None, 5, b"bytes", ["list"]):
        with pytest.raises(ValueError, match="Expected a string. Received"):
            tokenizer.encode(text)
    for call in (tokenizer.encode, tokenizer.segments, lambda text: tokenizer.encode("a", text)):
        with pytest.raises(ValueError, match="half of a surrogate pair at place 1"):
            call("a\ud800")
    with pytest.raises(ValueError, match="Expected as many second texts as first ones, 2. Received: 1"):
        tokenizer.encode_batch(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="Expected token ids from 0. Received: -1"):
        tokenizer.decode([5, -1])


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def spoiled(name: str, file: str, by) -> dict[str, bytes]:
    """The files of a tokenizer with one of them changed."""
    files = {path.name: path.read_bytes() for path in (folders() / name).iterdir()}
    return files | {file: by(files.get(file, b""))}


DAMAGED = [
    ("bert_cased", "tokenizer.json", half, "tokenizer of bert in tokenizer.json"),
    ("bert_cased", "tokenizer.json", lambda _: b"", "tokenizer of bert in tokenizer.json"),
    ("bert_cased", "tokenizer.json", lambda _: b"\xff\xfe", "UTF-8 in tokenizer.json"),
    (
        "bert_cased",
        "tokenizer.json",
        lambda _: b'{"model": {"type": "WordPiece"}}',
        "tokenizer of bert in tokenizer.json",
    ),
    ("bert_cased", "tokenizer_config.json", half, "JSON in tokenizer_config.json"),
    ("bert_cased", "tokenizer_config.json", lambda _: b"[1]", "an object in tokenizer_config.json. Received: list"),
    ("bert_cased_old", "vocab.txt", lambda _: b"one\ntwo\n", r"'\[UNK\]' in vocab.txt. Received: 2 tokens without it"),
    ("bert_cased_old", "vocab.txt", lambda _: b"\xff", "UTF-8 in vocab.txt"),
    (
        "bert_added_old",
        "added_tokens.json",
        lambda _: b'{"NewTok": 7}',
        "added token 'NewTok' to have id 7. Received: 900",
    ),
    ("gpt2_old", "vocab.json", half, "JSON in vocab.json"),
    ("gpt2_old", "vocab.json", lambda _: b'{"a": "b"}', "tokenizer of gpt2 in vocab.json or merges.txt"),
    (
        "gpt2_old",
        "merges.txt",
        lambda _: b"#version: 0.2\na b c\n",
        "two tokens a line in merges.txt. Received: 'a b c'",
    ),
    ("gpt2_old", "merges.txt", lambda _: "猫 犬\n".encode(), "tokenizer of gpt2 in vocab.json or merges.txt"),
    ("roberta_old", "vocab.json", lambda old: old.replace(b'"<s>"', b'"<z>"'), "'</s>' and '<s>' in vocab.json"),
    ("t5_old", "spiece.model", half, "in spiece.model"),
    (
        "t5_old",
        "spiece.model",
        lambda _: b"",
        "whole unigram model of SentencePiece in spiece.model. Received: 0 pieces",
    ),
    ("xlnet_old", "spiece.model", lambda _: b"no model", "model of SentencePiece in spiece.model"),
    ("llama_old", "tokenizer.model", lambda content: content[:200], "in tokenizer.model"),
    ("llama_old", "tokenizer.model", lambda _: b"IQ== 0\nIg== 1\n", "model of SentencePiece in tokenizer.model"),
    ("bert_cased_old", "special_tokens_map.json", lambda _: b'{"mask_token": "[NEW]"}', "'\\[NEW\\]'.*as mask_token"),
    ("t5", "tokenizer_config.json", lambda _: b'{"sep_token": "<sep>"}', "special token '<sep>'.*as sep_token"),
    (
        "llama3",
        "tokenizer_config.json",
        lambda _: b'{"pad_token": {"content": "<p>"}}',
        "special token '<p>'.*pad_token",
    ),
    (
        "gpt2",
        "tokenizer_config.json",
        lambda _: b'{"additional_special_tokens": ["<x>"]}',
        "special token '<x>'.*additional",
    ),
    (
        "gpt2",
        "tokenizer_config.json",
        lambda _: b'{"pad_token": 5}',
        "special token as a string, or an object.*Received: 5",
    ),
]


@pytest.mark.parametrize(("name", "file", "by", "message"), DAMAGED)
def test_damaged_files_are_one_clear_error(name, file, by, message, tmp_path):
    for path, content in spoiled(name, file, by).items():
        (tmp_path / path).write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s){tmp_path}: Expected .*{message}"):
        load(tmp_path, {"model_type": ALL[name]})


def test_every_way_to_cut_a_file_short_is_an_error():
    """Or, where what is left is a whole file, a tokenizer; but nothing else."""
    for name, file in (("llama_old", "tokenizer.model"), ("llama3", "tokenizer.json"), ("gpt2_old", "vocab.json")):
        files = spoiled(name, file, bytes)
        length = len(files[file])
        for end in range(0, length - 1, length // 25):
            with pytest.raises(ValueError, match="Expected"):
                PretrainedTokenizer(ALL[name], files | {file: files[file][:end]})


def test_missing_files_and_kinds_are_named():
    with pytest.raises(ValueError, match="Expected the files vocab.json, merges.txt. Received: no merges.txt"):
        PretrainedTokenizer("gpt2", {"vocab.json": b"{}"})
    with pytest.raises(ValueError, match="Expected model_type bert, .*Received: 'mamba'"):
        PretrainedTokenizer("mamba", {})
    assert set(FILES) == set(tokenizers.BUILDERS) == set(tokenizers.DEFAULTS)

"""Texts as they are written: the tokens of `generate` one by one, prompts that are too long, pieces of text."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tokenizers

from models.gpt import gpt
from models.layers.streaming import text_pieces
from models.layers.writing import rounded
from models.llama import llama

SMALL = {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 12, "max_length": 16, "stddev": 0.5}
IDS = np.array([[5, 7, 4, 6, 8, 9], [9, 4, 3, 1, 2, 0]], "int32")
LENGTHS = np.array([6, 3], "int32")


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(3)
    return gpt(12, **SMALL)


def written(model, **options):
    """(m, b) of a stream."""
    return np.stack(list(model.stream(IDS, LENGTHS, **options)))


def test_a_stream_gives_the_tokens_of_generate(small):
    """Drawn and greedy; the same session serves streams one after the other."""
    options = {"max_new_tokens": 7, "temperature": 1.2, "top_k": 6, "top_p": 0.9, "repetition_penalty": 1.2}
    for more in ({"seed": 3}, {"seed": 4}, {"noise": np.random.default_rng(0).uniform(size=(7, 2))}):
        expected = small.generate(IDS, LENGTHS, **options, **more)
        np.testing.assert_array_equal(written(small, **options, **more).T, expected.token_ids)
    keras.utils.set_random_seed(3)
    model, greedy = llama(12, **SMALL), {"max_new_tokens": 7, "temperature": 0}
    np.testing.assert_array_equal(written(model, **greedy).T, model.generate(IDS, LENGTHS, **greedy).token_ids)


def test_a_stream_ends_with_its_last_text(small):
    plain = written(small, max_new_tokens=9, seed=5)
    ends = {"end_ids": (int(plain[2, 0]),), "stop": (tuple(int(one) for one in plain[3:5, 1]),), "pad_id": 11}
    expected = small.generate(IDS, LENGTHS, max_new_tokens=9, seed=5, **ends)
    found = written(small, max_new_tokens=9, seed=5, **ends)
    assert len(found) == max(expected.lengths) < 9 and min(expected.lengths) < len(found)
    np.testing.assert_array_equal(found.T, expected.token_ids[:, : len(found)])


def test_streams_at_the_same_time_do_not_meet_and_one_left_early_frees_its_place(small):
    options = {"max_new_tokens": 7, "temperature": 1.2}
    wanted = [written(small, seed=seed, **options) for seed in (1, 2)]
    streams = [small.stream(IDS, LENGTHS, seed=seed, **options) for seed in (1, 2)]
    together = np.array([[next(one) for one in streams] for _ in range(7)])
    np.testing.assert_array_equal(together[:, 0], wanted[0])
    np.testing.assert_array_equal(together[:, 1], wanted[1])
    kept = small.parts.writers
    streams = [list(one) for one in streams]
    before = {key: len(free) for key, free in kept.items() if isinstance(free, list)}
    early = small.stream(IDS, LENGTHS, seed=1, **options)
    next(early)
    early.close()
    assert {key: len(free) for key, free in kept.items() if isinstance(free, list)} == before


def test_calls_that_differ_in_values_alone_share_a_function(small):
    small.parts.writers.clear()
    for temperature, seed, width in ((0.7, 1, 6), (1.3, 2, 5), (1.0, None, 4)):
        small.generate(IDS[:, :width], max_new_tokens=3, temperature=temperature, seed=seed)
    assert len(small.parts.writers) == 1
    small.generate(IDS, max_new_tokens=3, temperature=0)
    assert len(small.parts.writers) == 2
    assert [rounded(width) for width in (1, 8, 9, 64, 65, 130)] == [8, 8, 16, 64, 128, 192]


def test_a_graph_takes_prompts_of_any_width(small):
    """A width of 1, too, which the graph knows nothing of."""
    signature = [tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None,), tf.int32)]
    write = tf.function(
        lambda ids, lengths: small.generate(ids, lengths, max_new_tokens=4, temperature=0),
        input_signature=signature,
        autograph=False,
    )
    for ids, lengths in ((IDS, LENGTHS), (IDS[:, :1], np.array([1, 1], "int32"))):
        eager = small.generate(ids, lengths, max_new_tokens=4, temperature=0)
        np.testing.assert_array_equal(write(ids, lengths).token_ids, eager.token_ids)


def test_long_prompts_are_refused_or_keep_their_ends(small):
    """Of 16 places 6 are for the answer. Learned positions have no more; rotary ones only if they are told so."""
    prompt, lengths = np.random.default_rng(1).integers(0, 12, (2, 40)), np.array([40, 5])
    cut = {"max_new_tokens": 6, "temperature": 0, "prompt_policy": "left"}
    keras.utils.set_random_seed(3)
    for model in (small, llama(12, **SMALL)):
        found = model.generate(prompt, lengths, **cut).token_ids
        both = np.zeros((2, 10), int)
        both[0], both[1, :5] = prompt[0, 30:], prompt[1, :5]
        short = model.generate(both, [10, 5], max_new_tokens=6, temperature=0)
        np.testing.assert_array_equal(found, short.token_ids)
    found = small.generate(prompt, lengths, **cut).token_ids
    np.testing.assert_array_equal(np.stack(list(small.stream(prompt, lengths, **cut))).T, found)
    traced = tf.function(lambda ids: small.generate(ids, lengths, **cut).token_ids, autograph=False)
    np.testing.assert_array_equal(traced(tf.constant(prompt)), found)
    for call in (small.generate, small.stream):
        with pytest.raises(ValueError, match=r"16 positions.*left.*Received: 40"):
            call(prompt, lengths, max_new_tokens=6)
        with pytest.raises(ValueError, match="16 positions"):
            call(prompt, max_new_tokens=16, prompt_policy="left")
    assert small.generate(prompt, lengths // 5, max_new_tokens=6, temperature=0)  # 8 tokens, whatever the padding


@pytest.mark.parametrize(
    ("prompt", "lengths", "options", "message"),
    [
        ([[1, 2], [3, 12]], None, {}, "from 0 to 11. Received: 12 at place 1 of prompt 1"),
        ([[1, -2]], None, {}, "from 0 to 11. Received: -2"),
        ([[1.5, 2.0]], None, {}, "whole numbers"),
        ([1, 2], None, {}, "whole numbers"),
        (np.zeros((1, 0), int), None, {}, "whole numbers"),
        ([[1, 2]], [3], {}, "from 1 to 2. Received"),
        ([[1, 2]], [0], {}, "from 1 to 2. Received"),
        ([[1, 2]], [1, 1], {}, "1 numbers"),
        ([[1, 2]], None, {"prompt_policy": "right"}, "prompt_policy.*'left'.*Received: 'right'"),
        ([[1, 2]], None, {"noise": np.zeros((3, 1))}, r"noise .*Received: shape \(3, 1\)"),
        ([[1, 2]], None, {"top_k": -1}, "top_k"),
    ],
)
def test_bad_calls_are_refused_before_anything_is_written(small, prompt, lengths, options, message):
    for call in (small.generate, small.stream):
        with pytest.raises(ValueError, match=message):
            call(prompt, lengths, **{"max_new_tokens": 2, **options})


def test_ids_of_padding_may_be_anything(small):
    whole = small.generate([[5, 7, 4]], max_new_tokens=3, temperature=0)
    padded = small.generate([[5, 7, 4, -1, 99]], [3], max_new_tokens=3, temperature=0)
    np.testing.assert_array_equal(whole.token_ids, padded.token_ids)


def test_linear_attention_leaves_padding_out():
    model = gpt(12, attention="linear", **SMALL)
    alone = model.generate(IDS[1:, :3], max_new_tokens=5, temperature=0)
    beside = model.generate(IDS, LENGTHS, max_new_tokens=5, temperature=0)
    np.testing.assert_array_equal(beside.token_ids[1], alone.token_ids[0])
    blocks = gpt(12, attention="block_sparse", block_size=2, **SMALL)
    with pytest.raises(ValueError, match="one length"):
        blocks.generate(IDS, LENGTHS, max_new_tokens=2)


def bytes_tokenizer():
    """A byte-level tokenizer without merges: each token is one byte."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({one: place for place, one in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


@pytest.mark.parametrize("text", ["plain", "naïve 漢字 and 🙂🙃, done", "👩‍👩‍👧", "", "a\ufffdb\ufffd"])
def test_pieces_cut_no_character_and_join_to_the_text(text):
    tokenizer = bytes_tokenizer()
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    pieces = list(text_pieces((np.array([one]) for one in ids), tokenizer.decode))
    assert "".join(pieces) == text and all(pieces)
    if "\ufffd" not in text:
        assert len(pieces) == len(text)  # as soon as a character is whole


def test_what_is_never_whole_is_said_at_the_end():
    tokenizer = bytes_tokenizer()
    ids = tokenizer.encode("a🙂").ids[:-1]
    assert list(text_pieces(ids, tokenizer.decode)) == ["a", tokenizer.decode(ids)[1:]]

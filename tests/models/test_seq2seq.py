"""The encoder-decoder: teacher forcing against steps, attention, sampling, search in the graph, saving."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import recurrent
from models.layers.decoding import END, START
from models.seq2seq import ATTENTIONS, SIZES, seq2seq

ROOT = Path(__file__).parent.parent.parent
TINY = {"width": 6, "embedding_dim": 5}
SOURCE = np.array([[5, 6, 7, 8], [9, 4, 0, 0], [3, 0, 0, 0]], "int32")
TARGET = np.array([[START, 5, 6, 7], [START, 7, 0, 0], [START, 3, 4, 0]], "int32")
NEXT = np.array([[5, 6, 7, END], [7, END, 0, 0], [3, 4, END, 0]], "int32")


def build(**arguments):
    model = seq2seq(12, 10, **(TINY | arguments))
    for index, weight in enumerate(model.trainable_weights):
        weight.assign(0.7 * np.random.default_rng(index).normal(size=weight.shape))
    return model


@pytest.fixture(scope="module")
def models():
    """One model of each attention, with different cells."""
    cells = ("gru", "lstm", "simple_rnn", "gru", "lstm")
    return {attention: build(attention=attention, cell=cell) for attention, cell in zip(ATTENTIONS, cells)}


each = pytest.mark.parametrize("attention", ATTENTIONS)


@each
def test_steps_answer_as_teacher_forcing(attention, models):
    """The score of what greedy search writes is the log-likelihood that the whole model gives it."""
    model = models[attention]
    found = model.generate(SOURCE, max_length=6, beam_width=1, length_penalty=0.0)
    written = np.asarray(found.token_ids)[:, 0]
    target = np.concatenate([np.full((3, 1), START), written[:, :-1]], axis=1)
    logs = tf.nn.log_softmax(model({"source": SOURCE, "target": target}))
    alignments = model.alignments(SOURCE, target)
    for row, (tokens, length) in enumerate(zip(written, np.asarray(found.lengths)[:, 0])):
        likelihood = sum(logs[row, place, tokens[place]] for place in range(length))
        np.testing.assert_allclose(found.scores[row, 0], likelihood, atol=1e-4)
        if attention != "none":
            np.testing.assert_allclose(found.attention[row, 0, :length], alignments[row, :length], atol=1e-5)


@each
def test_padding_does_not_change_an_answer(attention, models):
    model = models[attention]
    long = {"source": np.pad(SOURCE, ((0, 0), (0, 3))), "target": np.pad(TARGET, ((0, 0), (0, 2)))}
    together = np.asarray(model(long))
    beams = model.generate(long["source"], max_length=5, beam_width=2)
    for row, (source, target) in enumerate(zip(SOURCE, TARGET)):
        source, target = source[source > 0][None], target[target > 0][None]
        alone = np.asarray(model({"source": source, "target": target}))[0]
        np.testing.assert_allclose(together[row, : len(alone)], alone, atol=1e-5)
        single = model.generate(source, max_length=5, beam_width=2)
        np.testing.assert_array_equal(single.token_ids[0], beams.token_ids[row])
        np.testing.assert_allclose(single.scores[0], beams.scores[row], atol=1e-4)


@each
def test_alignments_sum_to_one_over_the_source(attention, models):
    found = models[attention].alignments(SOURCE, TARGET)
    if attention == "none":
        assert found is None
        return
    assert found.shape == (3, 4, 4)
    np.testing.assert_allclose(np.sum(found, axis=-1), 1, atol=1e-5)
    assert (np.asarray(found)[SOURCE[:, None, :].repeat(4, axis=1) == 0] == 0).all()


def test_the_decoder_does_not_see_what_comes(models):
    changed = TARGET.copy()
    changed[0, 3] = 9
    for model in models.values():
        one, other = (np.asarray(model({"source": SOURCE, "target": target})) for target in (TARGET, changed))
        np.testing.assert_array_equal(one[0, :3], other[0, :3])
        assert not np.allclose(one[0, 3], other[0, 3])


@pytest.mark.parametrize("attention", ["additive", "none"])
def test_gradients_reach_every_weight(attention):
    for arguments in ({"cell": "lstm", "depth": 2}, {"scheduled_sampling": 0.5})[: 2 if attention == "none" else 1]:
        model = build(attention=attention, **arguments)
        with tf.GradientTape() as tape:
            logits = model({"source": SOURCE, "target": TARGET}, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(NEXT, logits))
        found = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
        pairs = zip(model.trainable_weights, found)
        assert not [w.path for w, g in pairs if g is None or not np.any(keras.ops.convert_to_numpy(g))]


def sampler(share, steps_done=1.0, **arguments):
    model = build(scheduled_sampling=share, sampling_steps=1, dropout=0.0, **arguments)
    model.decoder.steps.assign(steps_done)
    return model


def test_without_sampled_inputs_the_loop_equals_teacher_forcing():
    for cell in ("gru", "lstm"):
        model = sampler(1.0, steps_done=0.0, cell=cell, depth=2)
        sampled = model({"source": SOURCE, "target": TARGET}, training=True)
        np.testing.assert_allclose(sampled, model({"source": SOURCE, "target": TARGET}), atol=1e-5)
        assert float(model.decoder.steps) == 1.0


def test_with_sampled_inputs_alone_the_truth_is_not_read():
    model = sampler(1.0)
    other = np.where(TARGET > START, (TARGET + 1) % 10, TARGET)
    answers = []
    for target in (TARGET, other):
        model.decoder.seed.state.assign(np.array([1, 2]))
        answers.append(np.asarray(model({"source": SOURCE, "target": target}, training=True)))
    np.testing.assert_array_equal(*answers)
    assert not np.allclose(answers[0][0, 1:], model({"source": SOURCE, "target": TARGET})[0, 1:], atol=1e-3)


def test_sampled_inputs_follow_the_distribution_of_the_network():
    """A network that answers 4 in two thirds and 5 in a third of all cases, whatever it reads."""
    model = sampler(1.0, attention="none")
    vectors = []
    model.decoder.logits.kernel.assign(np.zeros((6, 10)))
    model.decoder.logits.bias.assign(np.log(np.array([1e-9] * 4 + [2 / 3, 1 / 3] + [1e-9] * 4)))
    for tokens in ([START, 4], [START, 5]):
        model.decoder.steps.assign(0.0)
        vectors.append(decoded(model, np.array([tokens] * 300)))
    model.decoder.steps.assign(1.0)
    drawn = decoded(model, np.array([[START, 9]] * 300))
    four, five = (np.isclose(drawn, vector, atol=1e-4).all(axis=-1)[:, 1].mean() for vector in vectors)
    assert four + five == 1.0 and abs(four - 2 / 3) < 0.1


def decoded(model, target):
    """The vectors before the logits, of training, for sources that are all alike."""
    source = np.repeat(SOURCE[:1], len(target), axis=0)
    decoder = model.decoder
    memory, mask, states = model.encoder(source)
    return np.asarray(decoder._sampled(tf.constant(target, tf.int32), decoder.prepare(memory), mask, states))


def test_the_share_of_sampled_inputs_grows_to_its_bound():
    model = build(scheduled_sampling=0.5, sampling_steps=4, dropout=0.0)
    shares = []
    for _ in range(6):
        steps = float(model.decoder.steps)
        shares.append(0.5 * min(steps / 4, 1))
        model({"source": SOURCE, "target": TARGET}, training=True)
        assert float(model.decoder.steps) == steps + 1
    assert shares == [0, 0.125, 0.25, 0.375, 0.5, 0.5]
    model({"source": SOURCE, "target": TARGET})
    assert float(model.decoder.steps) == 6  # an answer is no training step


def test_one_batch_is_learned_by_heart_and_generated():
    keras.utils.set_random_seed(0)
    model = seq2seq(12, 10, width=16, embedding_dim=8, dropout=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, run_eagerly=True)  # tracing takes longer
    data = {"source": SOURCE, "target": TARGET}
    model.fit(data, NEXT, sample_weight=(NEXT > 0).astype("float32"), epochs=15, verbose=0)
    for width in (1, 3):
        found = model.generate(SOURCE, max_length=4, beam_width=width)
        np.testing.assert_array_equal(found.token_ids[:, 0], NEXT)


SCRIPT = """
import sys, keras, numpy as np
import models.recurrent, models.seq2seq
folder = sys.argv[1]
arrays = np.load(f"{folder}/arrays.npz")
model = keras.saving.load_model(f"{folder}/seq2seq.keras")
found = model.generate(arrays["source"], max_length=5, beam_width=3, coverage_penalty=0.1)
for name in ("token_ids", "scores", "attention"):
    assert np.abs(keras.ops.convert_to_numpy(getattr(found, name)) - arrays[name]).max() < 1e-4, name
model({"source": arrays["source"], "target": arrays["target"]}, training=True)
classifier = keras.saving.load_model(f"{folder}/lstm.keras")
assert np.abs(keras.ops.convert_to_numpy(classifier(arrays["source"])) - arrays["logits"]).max() < 1e-5
classifier(arrays["source"], training=True)
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_answers(tmp_path):
    model = build(depth=2, cell="lstm", attention="general", scheduled_sampling=0.3, recurrent_dropout=0.1)
    found = model.generate(SOURCE, max_length=5, beam_width=3, coverage_penalty=0.1)
    model.save(tmp_path / "seq2seq.keras")
    classifier = recurrent.lstm(12, 3, depth=2, normalization="layer", recurrent_dropout=0.2, pooling="max")
    classifier.save(tmp_path / "lstm.keras")
    arrays = {"source": SOURCE, "target": TARGET, "logits": classifier(SOURCE)} | found._asdict()
    np.savez(tmp_path / "arrays.npz", **arrays)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("width", [1, 3])
def test_the_exported_search_answers_as_the_eager_one(width, models, tmp_path):
    model = models["additive"]
    options = {"max_length": 5, "beam_width": width, "coverage_penalty": 0.1}
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda source: model.generate(source, **options)._asdict(),
        input_signature=[tf.TensorSpec((None, None), tf.int32)],
    )
    archive.write_out(tmp_path, verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    served = loaded.serve(SOURCE)
    for name, value in model.generate(SOURCE, **options)._asdict().items():
        np.testing.assert_allclose(served[name], value, atol=1e-4)


def test_mixed_precision_answers_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    logits = model({"source": SOURCE, "target": TARGET}, training=True)
    assert logits.dtype == "float32" and np.isfinite(logits).all()
    found = model.generate(SOURCE, max_length=4, beam_width=2)
    assert found.scores.dtype == "float32" and np.isfinite(found.scores).all()


def test_a_published_size_has_the_parameters_of_its_equations():
    """Luong et al. 2015 at a hundredth of the width, so that nothing large is built."""
    d = 10
    model = seq2seq(50, 40, **(SIZES["luong"] | {"width": d, "embedding_dim": d}))
    lstm, bridge = 4 * (d * (d + d) + d), d * d + d
    embeddings, attention, logits = 50 * d + 40 * d, d * d + 2 * d * d, d * 40 + 40
    assert model.count_params() == embeddings + 2 * 4 * lstm + 4 * 2 * bridge + attention + logits
    assert SIZES["luong"]["width"] == SIZES["sutskever"]["embedding_dim"] == 1000


@pytest.mark.parametrize(
    "arguments",
    [
        {"cell": "rnn"},
        {"attention": "location"},
        {"width": 0},
        {"depth": 0},
        {"dropout": 1.0},
        {"scheduled_sampling": 1.5},
        {"sampling_steps": 0},
        {"source_vocab_size": 0},
        {"target_vocab_size": 1},
    ],
)
def test_arguments_out_of_range_are_errors(arguments):
    with pytest.raises(ValueError, match="Received: "):
        seq2seq(**({"source_vocab_size": 9, "target_vocab_size": 9} | arguments))


def test_a_coverage_penalty_needs_attention(models):
    with pytest.raises(ValueError, match="coverage_penalty needs attention"):
        models["none"].generate(SOURCE, max_length=3, coverage_penalty=0.1)

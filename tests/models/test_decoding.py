"""The search against complete enumeration, against a plain program, and against itself."""

from itertools import product

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from models.layers import decoding
from models.layers.decoding import END, PAD, START, Special, beam_search, greedy, penalized, repeat

VOCAB, SOURCE, WIDTH = 5, 3, 4  # ids 3 and 4 are the words
MASK = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], bool)


class Decoder:
    """A small random network whose answer depends on all that was written, for the search and, plainly, for NumPy."""

    def __init__(self, seed, vocab=VOCAB, batch=3):
        source = np.random.default_rng(seed)
        self.vocab, self.batch = vocab, batch
        self.first = source.normal(size=(batch, WIDTH)).astype("float32")
        self.mix = source.normal(size=(WIDTH, WIDTH)).astype("float32")
        self.words = source.normal(size=(vocab, WIDTH)).astype("float32")
        self.out = 2 * source.normal(size=(WIDTH, vocab)).astype("float32")
        self.look = source.normal(size=(WIDTH, SOURCE)).astype("float32")
        self.source_mask = np.resize(MASK, (batch, SOURCE))

    def only(self, example):
        """The same network with one of its examples."""
        alone = Decoder.__new__(Decoder)
        rows = {name: getattr(self, name)[example : example + 1] for name in ("first", "source_mask")}
        alone.__dict__ = self.__dict__ | rows | {"batch": 1}
        return alone

    def step(self, mask):
        def step(token_ids, position, state):
            h = ops.tanh(ops.matmul(state["h"], self.mix) + ops.take(self.words, token_ids, axis=0))
            h = h + 0.1 * ops.cast(position, "float32")
            attention = ops.softmax(ops.where(mask, ops.matmul(h, self.look), -1e9))
            return ops.matmul(h, self.out), {"h": h}, attention

        return step

    def search(self, width=None, attend=True, **options):
        """By `beam_search`, or `greedy` if there is no width."""
        mask = ops.convert_to_tensor(self.source_mask)
        step, state = self.step(repeat(mask, width or 1)), {"h": repeat(ops.convert_to_tensor(self.first), width or 1)}
        arguments = {"vocab_size": self.vocab, **options} | ({"source_mask": mask} if attend else {})
        if width is None:
            return greedy(step, state, self.batch, **arguments)
        return beam_search(step, state, self.batch, beam_width=width, **arguments)

    def read(self, example, tokens, start=START):
        """Logarithms of probabilities (t, v) and attention (t, s) when these tokens are written."""
        h, logs, looks = self.first[example], [], []
        for position, token in enumerate([start, *tokens[:-1]]):
            h = np.tanh(h @ self.mix + self.words[token]) + 0.1 * position
            logits, scores = h @ self.out, np.where(self.source_mask[example], h @ self.look, -1e9)
            logs.append(logits - np.log(np.exp(logits).sum()))
            looks.append(np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum())
        return np.array(logs), np.array(looks)

    def score(self, example, tokens, alpha, beta):
        """Wu et al. 2016, eq. 14, by hand."""
        logs, looks = self.read(example, tokens)
        total = sum(logs[i, token] for i, token in enumerate(tokens))
        covered = np.log(np.minimum(looks.sum(axis=0), 1.0), where=self.source_mask[example], out=np.zeros(SOURCE))
        return total / ((5 + len(tokens)) / 6) ** alpha + beta * covered.sum()


def sentences(max_length, vocab=VOCAB):
    """All complete answers."""
    for length in range(max_length):
        for words in product(range(3, vocab), repeat=length):
            yield [*words, END]


def tokens_of(beams, example, place):
    length = int(beams.lengths[example, place])
    return np.asarray(beams.token_ids[example, place])[:length].tolist()


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.6, 0.0), (1.0, 0.2)])
def test_a_beam_wide_enough_finds_all_answers_in_their_order(alpha, beta):
    decoder = Decoder(1)
    found = decoder.search(16, max_length=4, length_penalty=alpha, coverage_penalty=beta)
    for example in range(3):
        every = sorted(((decoder.score(example, s, alpha, beta), s) for s in sentences(4)), reverse=True)
        assert len(every) == 15
        assert [tokens_of(found, example, place) for place in range(15)] == [tokens for _, tokens in every]
        np.testing.assert_allclose(found.scores[example, :15], [score for score, _ in every], atol=1e-4)
    assert (np.asarray(found.lengths)[:, 15] == 0).all()  # there is no sixteenth answer
    assert (np.asarray(found.scores)[:, 15] == decoding.LEAST).all()
    assert (np.asarray(found.token_ids)[:, 15] == PAD).all()


def plain_beam_search(decoder, example, k, max_length, alpha):
    """The same search in plain Python: hypotheses as lists."""
    alive, ended = [(0.0, [])], []
    for position in range(max_length):
        options = []
        for score, tokens in alive:
            logs, _ = decoder.read(example, [*tokens, END])
            last = position == max_length - 1
            words = [END] if last else [END, *range(3, decoder.vocab)]
            options += [(score + logs[-1, word], [*tokens, word]) for word in words]
        options.sort(reverse=True)
        done = [(s / ((5 + len(t)) / 6) ** alpha, t) for s, t in options[:k] if t[-1] == END]
        ended = sorted(ended + done, reverse=True)
        if len(ended) >= k:
            break
        alive = [(score, tokens) for score, tokens in options if tokens[-1] != END][:k]
    return ended[:k]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_narrow_beam_keeps_the_best_at_every_step(width):
    decoder = Decoder(2, vocab=7, batch=6)
    found = decoder.search(width, max_length=6, length_penalty=0.8)
    for example in range(6):
        expected = plain_beam_search(decoder, example, width, 6, 0.8)
        assert [tokens_of(found, example, place) for place in range(width)] == [tokens for _, tokens in expected]
        np.testing.assert_allclose(found.scores[example], [score for score, _ in expected], atol=1e-4)


OTHER = Special(pad=4, start=3, end=0, unknown=0, barred=())  # as free as Hugging Face's `generate`
FREE = {"special": OTHER, "normalization": "power", "complete": False}


def plain_free_search(decoder, example, k, max_length, alpha, early_stopping):
    """The rules of Hugging Face's `generate` in plain Python: any token may be written, and answers may be cut off."""
    alive, ended = [(0.0, [])], []
    for length in range(1, max_length + 1):
        options = []
        for score, tokens in alive:
            logs, _ = decoder.read(example, [*tokens, 0], OTHER.start)
            options += [(score + logs[-1, word], [*tokens, word]) for word in range(decoder.vocab)]
        options.sort(reverse=True)
        over = [(s / length**alpha, t) for s, t in options[:k] if t[-1] == OTHER.end or length == max_length]
        ended = sorted(ended + over, reverse=True)[:k]
        alive = [(score, tokens) for score, tokens in options if tokens[-1] != OTHER.end][:k]
        rated = max_length if early_stopping == "never" and alpha > 0 else length
        if len(ended) == k and (early_stopping is True or alive[0][0] / rated**alpha <= ended[-1][0]):
            break
    return ended


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize(("width", "alpha"), [(2, 1.0), (3, 2.0), (3, -0.5), (4, 0.0)])
def test_free_rules_are_those_of_a_plain_program(width, alpha, early_stopping):
    decoder = Decoder(27, vocab=7, batch=6)
    options = FREE | {"max_length": 8, "length_penalty": alpha, "early_stopping": early_stopping}
    found = decoder.search(width, **options)
    for example in range(6):
        expected = plain_free_search(decoder, example, width, 8, alpha, early_stopping)
        assert [tokens_of(found, example, place) for place in range(width)] == [tokens for _, tokens in expected]
        np.testing.assert_allclose(found.scores[example], [score for score, _ in expected], atol=1e-4)
        for place, (_, tokens) in enumerate(expected):
            attention = np.asarray(found.attention)[example, place]
            looks = decoder.read(example, tokens, OTHER.start)[1]
            np.testing.assert_allclose(attention[: len(tokens)], looks, atol=1e-5)
            assert (np.asarray(found.token_ids)[example, place, len(tokens) :] == OTHER.pad).all()


def test_stopping_early_and_late_find_different_answers():
    """Otherwise the test above would prove nothing of it."""
    decoder, options = Decoder(27, vocab=7, batch=6), FREE | {"max_length": 8, "length_penalty": 2.0}
    made = [decoder.search(2, **options, early_stopping=choice).token_ids for choice in (True, False, "never")]
    first, second, third = (np.asarray(token_ids) for token_ids in made)
    assert (first != second).any() and (second != third).any() and (first != third).any()
    ends = (third == OTHER.end).any(-1)
    assert ends.any() and not ends.all()  # some are cut off


def test_free_greedy_search_is_a_free_beam_of_one():
    decoder = Decoder(9, vocab=9, batch=8)
    options = FREE | {"max_length": 7, "coverage_penalty": 0.1}
    one, beam = decoder.search(**options), decoder.search(1, **options)
    np.testing.assert_array_equal(one.token_ids, beam.token_ids)
    np.testing.assert_array_equal(one.lengths, beam.lengths)
    np.testing.assert_allclose(one.scores, beam.scores, atol=1e-5)
    np.testing.assert_allclose(one.attention, beam.attention, atol=1e-6)


@pytest.mark.parametrize("width", [None, 2])
def test_special_ids_and_those_never_generated_are_options(width):
    decoder = Decoder(4, vocab=8, batch=6)
    special = Special(pad=7, start=2, end=5, unknown=5, barred=(7, 3))
    found = decoder.search(width, special=special, max_length=8)
    tokens, lengths = np.asarray(found.token_ids), np.asarray(found.lengths)[..., None]
    places = np.arange(8)
    assert (tokens[places >= lengths * np.ones(8)] == 7).all() and (
        tokens[places == lengths - 1 + 0 * places] == 5
    ).all()
    written = tokens[places < lengths - 1 + 0 * places]
    assert not np.isin(written, (7, 3, 5)).any() and np.isin((0, 1, 2), written).any()


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_a_beam_of_one(seed):
    decoder = Decoder(seed, vocab=9, batch=8)
    options = {"max_length": 7, "length_penalty": 0.6, "coverage_penalty": 0.1}
    one, beam = decoder.search(**options), decoder.search(1, **options)
    np.testing.assert_array_equal(one.token_ids, beam.token_ids)
    np.testing.assert_array_equal(one.lengths, beam.lengths)
    np.testing.assert_allclose(one.scores, beam.scores, atol=1e-5)
    np.testing.assert_allclose(one.attention, beam.attention, atol=1e-6)
    assert one.token_ids.shape == (8, 1, 7) and one.attention.shape == (8, 1, 7, SOURCE)


@pytest.mark.parametrize("width", [None, 3])
def test_attention_is_that_of_the_answer_and_zero_after_its_end(width):
    decoder = Decoder(3)
    found = decoder.search(width, max_length=5)
    for example, place in product(range(3), range(width or 1)):
        tokens = tokens_of(found, example, place)
        attention = np.asarray(found.attention)[example, place]
        np.testing.assert_allclose(attention[: len(tokens)], decoder.read(example, tokens)[1], atol=1e-5)
        assert (attention[len(tokens) :] == 0).all()
        assert tokens[-1] == END and PAD not in tokens and START not in tokens
        assert (np.asarray(found.token_ids)[example, place, len(tokens) :] == PAD).all()


def test_without_a_source_mask_there_is_no_attention():
    assert Decoder(3).search(2, attend=False, max_length=3).attention is None


@pytest.mark.parametrize("width", [None, 2])
def test_answers_do_not_depend_on_the_rest_of_the_batch(width):
    decoder = Decoder(4, vocab=8, batch=6)
    together = decoder.search(width, max_length=9)
    lengths = np.asarray(together.lengths)
    assert len(set(lengths[:, 0])) > 1  # some end before others
    for example in range(6):
        found = decoder.only(example).search(width, max_length=9)
        np.testing.assert_array_equal(found.token_ids[0], together.token_ids[example])
        np.testing.assert_allclose(found.scores[0], together.scores[example], atol=1e-5)


def test_penalties_follow_the_formula():
    logs, lengths = np.array([[-3.0, -4.0]], "float32"), np.array([[1, 7]])
    coverage = np.array([[[1.5, 0.5, 0.0], [0.25, 1.0, 0.0]]], "float32")
    mask = np.array([[True, True, False]])
    found = penalized(logs, lengths, coverage, mask, 0.6, 0.2)
    expected = [-3.0 / 1.0 + 0.2 * np.log(0.5), -4.0 / (12 / 6) ** 0.6 + 0.2 * np.log(0.25)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    np.testing.assert_allclose(penalized(logs, lengths, None, None, 0.0, 0.0), logs)
    powers = penalized(logs, lengths, coverage, mask, 0.5, 0.0, "power")
    np.testing.assert_allclose(powers[0], [-3.0, -4.0 / 7**0.5], rtol=1e-6)


def test_longer_answers_win_as_the_length_penalty_grows():
    lengths = [np.mean(Decoder(5, vocab=6).search(8, max_length=6, length_penalty=alpha).lengths[:, 0])
               for alpha in (0.0, 1.0, 3.0)]  # fmt: skip
    assert lengths[0] <= lengths[1] <= lengths[2] and lengths[0] < lengths[2]


def test_the_loop_stops_when_all_answers_are_there():
    calls = []

    def step(token_ids, position, state):
        calls.append(int(position))
        return ops.one_hot(ops.zeros((2,), "int32") + (END if len(calls) == 3 else 3), 5) * 20.0, state, None

    found = greedy(step, (), 2, vocab_size=5, max_length=50)
    assert calls == [0, 1, 2]
    np.testing.assert_array_equal(found.lengths, [[3], [3]])


@pytest.mark.parametrize("width", [None, 3])
def test_a_saved_graph_of_any_batch_answers_as_the_eager_search(width, tmp_path):
    decoder = Decoder(6)

    class Search(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, WIDTH)), tf.TensorSpec((None, None), tf.bool)])
        def __call__(self, first, mask):
            k = width or 1
            arguments = {"vocab_size": VOCAB, "max_length": 6, "source_mask": mask, "coverage_penalty": 0.1}
            step, state = decoder.step(repeat(mask, k)), {"h": repeat(first, k)}
            if width is None:
                return greedy(step, state, tf.shape(first)[0], **arguments)._asdict()
            return beam_search(step, state, tf.shape(first)[0], beam_width=k, **arguments)._asdict()

    tf.saved_model.save(Search(), str(tmp_path))
    answer = tf.saved_model.load(str(tmp_path))(decoder.first, decoder.source_mask)
    eager = decoder.search(width, max_length=6, coverage_penalty=0.1)
    for name, value in eager._asdict().items():
        np.testing.assert_allclose(answer[name], value, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_length": 0},
        {"beam_width": 0},
        {"vocab_size": 3},
        {"beam_width": 2.5},
        {"coverage_penalty": 0.1},
        {"normalization": "mean"},
        {"early_stopping": "maybe"},
        {"special": Special(end=5)},
    ],
)
def test_arguments_out_of_range_are_errors(arguments):
    sound = {"vocab_size": 5, "max_length": 3, "beam_width": 2}
    with pytest.raises(ValueError, match=r"Received: "):
        beam_search(lambda *_: None, (), 1, **(sound | arguments))


def test_a_step_without_attention_is_told_so():
    def step(token_ids, position, state):
        return keras.ops.zeros((1, 5)), state, None

    with pytest.raises(ValueError, match=r"must return attention .* Received: None"):
        greedy(step, (), 1, vocab_size=5, max_length=2, source_mask=ops.ones((1, 3), "bool"))

"""The task from files to served answers: runs, signatures, prompts of every kind, bits per byte, and bad input."""

from __future__ import annotations

import dataclasses
import json
import math
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import pipelines
from models.checkpoints import to_pretrained
from models.checkpoints.tokenizers import load
from models.gpt import gpt
from models.layers.sampling import Generated
from pipelines import checkpoints, language_modeling, runs
from pipelines import language_evaluation as evaluation
from pipelines.config import UsageError, run_cli
from pipelines.datasets import token_store
from pipelines.language_modeling import Config
from pipelines.transforms import text

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = {
    "epochs": 2,
    "batch_size": 8,
    "vocab_size": 300,
    "context": 16,
    "stride": 8,
    "max_new_tokens": 6,
    "model_args": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8, "dropout": 0.1},
    "steps_per_execution": 5,
    "steps": 20,
    "stop": ("\\n\\n",),
    "prompt": "one and ",
}
STRANGE = ["", "one", "не по-английски 漢字 🙂", "\x00\x01\ufeff", "one and two " * 200, "a\nb\tc", "    indented"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of 30 small documents."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(30):
        lines = [f"    one and two make {j + i} é\n" * (1 + j % 3) for j in range(20)]
        (folder / f"{i:02}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> runs.Run:
    out = tmp_path_factory.mktemp("runs")
    return runs.load(language_modeling.main(Config(data_dir=str(folder), out=str(out), **SMALL)))


@pytest.fixture(scope="module")
def data(run) -> pipelines.Data:
    return language_modeling.load_data(run.config)


def test_a_finished_run_holds_what_the_contract_says(run):
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    assert names >= {"config.json", "spec.json", "metrics.json", "history.csv", "model.keras", "card.md", "samples.md"}
    assert names >= {f"plots/{p}.png" for p in ("curves", "bits_per_byte", "context", "surprise")}
    for part in ("validation", "test"):
        found = run.metrics[part]
        assert 0 < found["bits_per_byte"] < 10 and 0 <= found["token_accuracy"] <= 1
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-4)
    both = [run.metrics["baseline"], *run.metrics["baselines"]]
    assert ["gram" in both[0]["model"], "xz" in both[1]["model"]] == [True, True]
    assert len(run.metrics["loss_by_place"]) == 16
    card = (run.folder / "card.md").read_text()
    assert "5-gram" in card and "plots/bits_per_byte.png" in card
    assert "|" in (run.folder / "plots/first_batch.txt").read_text()


def test_samples_go_on_from_the_same_prompts_after_every_epoch(run):
    page = (run.folder / "samples.md").read_text()
    assert [f"## Epoch {n}" in page for n in range(1, 5)] == [n <= run.metrics["epochs"] for n in range(1, 5)]
    parts = page.split("## Epoch ")[1:]
    for part in parts:
        assert part.count("At the beginning:") == 1 and "one and \n```" in part and part.count("→") == 4


def test_samples_of_an_epoch_that_comes_again_are_not_kept_twice(tmp_path):
    said = iter("abcdef")
    samples = evaluation.Samples(lambda prompts: [next(said) for _ in prompts], ["", "x```"], tmp_path / "samples.md")
    for epoch in (0, 1, 1):
        samples.on_epoch_end(epoch)
    page = (tmp_path / "samples.md").read_text()
    assert page.count("## Epoch") == 2
    assert all(f"\n{one}\n" in page for one in "abef") and "\nc\n" not in page
    assert "````text\nx```\n````" in page


# Figures.


def test_bits_per_byte_are_those_of_one_long_reading(run, data):
    """Token by token, each with the window of the longest context that a stride of 1 gives."""
    store = data.test
    found = evaluation.measured(run.model, store, 16, 1)
    tokens = np.array(store.tokens[:200], "int32")
    nats = []
    for place in range(1, 200):
        seen = tokens[max(0, place - 16) : place]
        padded = np.zeros((1, 16), "int32")
        padded[0, : len(seen)] = seen
        logits = run.model.predict_on_batch(padded)[0, len(seen) - 1].astype("float64")
        nats.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[tokens[place]])
    short = dataclasses.make_dataclass("Store", ["start_id", "num_bytes", "in_order"])
    whole = evaluation.measured(
        run.model,
        short(None, 1, lambda size, length, stride: batches_of(tokens, length, stride)),
        16,
        1,
    )
    assert whole["bits_per_byte"] == pytest.approx(sum(nats) / np.log(2), rel=1e-5)
    total = found["loss"] * (store.num_tokens - 1)
    assert found["bits_per_byte"] == pytest.approx(total / np.log(2) / store.num_bytes, rel=1e-4)


def batches_of(tokens, length, stride):
    for start in range(0, max(1, len(tokens) - length + 1), stride):
        fresh = np.ones((1, length), "float32")
        fresh[0, : length - stride] = start == 0
        yield tf.constant(tokens[None, start : start + length]), tf.constant(fresh)


def test_more_context_is_given_by_a_smaller_stride(run, data):
    found = [evaluation.measured(run.model, data.test, 16, stride)["loss"] for stride in (16, 4)]
    assert found[0] != found[1] and abs(found[0] - found[1]) < 0.5


def test_the_n_gram_model_is_a_distribution_and_as_in_the_paper():
    model = evaluation.WittenBell(b"abracadabra abracadabra", 3)
    for history in (b"ab", b"zz", b"br", b"a ", b"\0\0", b"xa"):
        start = int.from_bytes(history, "big") << 8
        shares = model.probabilities(np.arange(start, start + 256, dtype="uint64"))
        assert shares.sum() == pytest.approx(1) and (shares > 0).all()
    one = evaluation.WittenBell(b"aab", 1)  # n(a) = 2, n(b) = 1, two kinds
    expected = np.array([2, 1, 0]) / 5 + 2 / 5 / 256
    np.testing.assert_allclose(one.probabilities(np.array([97, 98, 99], "uint64")), expected)
    two = evaluation.WittenBell(b"aab", 2)  # after an a: one a, one b, two kinds
    below = 2 / 5 + 2 / 5 / 256
    assert two.probabilities(np.array([97 * 256 + 97], "uint64"))[0] == pytest.approx((1 + 2 * below) / 4)
    assert two.bits(b"") == 0


def test_baselines_learn_from_the_training_text():
    train = [b"the cat sat on the mat. " * 50] * 4
    known = evaluation.baselines(train, [b"the cat sat on the mat. "] * 3)
    other = evaluation.baselines(train, [bytes(range(65, 91))] * 3)
    for near, far in zip(known, other):
        assert near["bits_per_byte"] < 2 < far["bits_per_byte"]
        assert near["training_bytes"] == 4 * 1201 + 1


# Training.


def test_batches_are_windows_and_the_tokens_after_them(run, data):
    before, after, weights = next(iter(language_modeling.training_batches(data, run.config, 3)))
    assert before.shape == after.shape == weights.shape == (8, 16)
    np.testing.assert_array_equal(before[:, 1:], after[:, :-1])
    assert weights.numpy().all()
    again = next(iter(language_modeling.training_batches(data, run.config, 3)))
    np.testing.assert_array_equal(before, again[0])
    counted = sum(float(tf.reduce_sum(w)) for *_, w in language_modeling.evaluation_batches(data.test, data.spec))
    assert counted == data.test.num_tokens - 1  # all but the first mark


def test_start_marks_are_not_foretold():
    spec = {"marks": {"start_id": 1, "end_id": 2}}
    _, after, weights = language_modeling.shifted(tf.constant([[2, 1, 5, 6, 2, 1]]), tf.ones((1, 6)), spec)
    assert weights.numpy().tolist() == [[0, 1, 1, 1, 0]] and after.numpy().tolist() == [[1, 5, 6, 2, 1]]


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_is_continued_within_it(run, tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    original = checkpoints.ExactResume.on_train_batch_end

    def stop_at_step_15(self, batch, logs=None):
        original(self, batch, logs)
        if self.step >= 15:
            self.save()
            self.wait()
            raise Stop

    monkeypatch.setattr(checkpoints.ExactResume, "on_train_batch_end", stop_at_step_15)
    with pytest.raises(Stop):
        language_modeling.main(dataclasses.replace(run.config, out=str(tmp_path)))
    monkeypatch.undo()
    (folder,) = runs.find(tmp_path)
    language_modeling.main(Config(resume=str(folder)))
    other = runs.load(folder)
    for a, b in zip(run.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert other.metrics["test"] == run.metrics["test"]
    assert (folder / "samples.md").read_text() == (run.folder / "samples.md").read_text()


# Serving.


@pytest.fixture(scope="module")
def doors(run, tmp_path_factory):
    """All signatures as they come back from a SavedModel."""
    from serving import signatures

    target = tmp_path_factory.mktemp("saved")
    signatures.write(run.model, signatures.signatures(run), target)
    ask = signatures.read(target)
    return lambda name, **inputs: ask[name]({key: np.array(value) for key, value in inputs.items()})


def decoded(values) -> list[str]:
    return [one.decode() for one in values]


def test_every_signature_answers_the_checks_of_the_export(run, doors):
    from serving import gate

    (batch,) = language_modeling.served_checks(run.model, run.config, run.spec, limit=5)
    assert batch.keys() == {"serving_default", "generate", "score", "from_token_ids"}
    for name, (inputs, expected) in batch.items():
        assert len(next(iter(expected.values()))) == 3  # documents of the test split
        gate.compare(name, 0, expected, doors(name, **inputs))


def test_any_prompt_gets_an_answer_and_its_neighbours_do_not_matter(run, doors):
    together = doors("serving_default", prompt=STRANGE)
    assert together["truncated"].tolist() == [len(run_ids(run, one)) > 10 for one in STRANGE]
    assert together["truncated"].any() and not together["truncated"].all()
    assert (together["tokens"] <= 6).all() and (together["log_probability"] < 0).all()
    for prompt, whole, after in zip(STRANGE, decoded(together["full_text"]), decoded(together["text"])):
        assert whole == prompt + after and "\n\n" not in after
    for i, one in enumerate(STRANGE):
        alone = doors("serving_default", prompt=[one])
        assert alone["text"][0] == together["text"][i]
        np.testing.assert_allclose(alone["log_probability"][0], together["log_probability"][i], atol=1e-4)


def run_ids(run, prompt):
    return text.tokenizer(run.spec["tokenizer"]).encode([prompt])[0].numpy()


def test_of_a_long_prompt_the_end_is_read(run, doors):
    ids = run_ids(run, STRANGE[4])
    tokenizer = text.tokenizer(run.spec["tokenizer"])
    end = tokenizer.decode(ids[None, -10:]).numpy()[0].decode()
    long, short = (doors("serving_default", prompt=[one]) for one in (STRANGE[4], end))
    assert long["text"][0] == short["text"][0] and long["truncated"][0] and not short["truncated"][0]
    kept, cut = language_modeling.preprocess(STRANGE, tokenizer, run.spec, 10)
    assert kept[4].numpy().tolist() == ids[-10:].tolist() and cut.numpy().tolist() == long_ones(run)
    assert kept[0].numpy().tolist() == [text.END]
    always = run.spec | {"marks": {"start_id": 7, "end_id": 2}}
    kept, _ = language_modeling.preprocess(["", "one", STRANGE[4]], tokenizer, always, 10)
    assert [row[0] for row in kept.to_list()] == [7, 7, 7] and kept.row_lengths().numpy()[2] == 10


def long_ones(run):
    return [len(run_ids(run, one)) > 10 for one in STRANGE]


def test_each_prompt_has_its_own_temperature_and_seed(run, doors):
    prompts = ["one and "] * 6

    def texts(temperature, seeds):
        warm = np.full(6, temperature, "float32")
        return doors("generate", prompt=prompts, temperature=warm, seed=np.array(seeds, "int32"))["text"].tolist()

    warm, same = texts(1.5, range(6)), texts(1.5, [3, 3, 4, 3, 9, 2])
    assert len(set(warm)) > 1 and same[0] == same[1] == same[3] == warm[3]
    greedy = language_modeling.serving_fn(run.model, dataclasses.replace(run.config, temperature=0.0), run.spec)[0]
    assert texts(0, range(6)) == greedy(tf.constant(prompts))["text"].numpy().tolist()
    default = doors("serving_default", prompt=prompts)["text"].tolist()
    assert texts(run.config.temperature, [run.config.seed] * 6) == default


def test_stop_strings_are_cut_off_however_they_are_spelled(run):
    """What the model writes is given; "w" is in the middle of a word here."""

    class Writes:
        def generate(self, prompt, lengths, *, max_new_tokens, stop, **others):
            self.stop = stop
            ids = run_ids(run, " make two\nand three")[None]
            return Generated(tf.constant(ids), tf.constant([ids.shape[1]]), tf.zeros(ids.shape))

    tokenizer, model = text.tokenizer(run.spec["tokenizer"]), Writes()
    for stop, expected in ((("o\\n", "w"), " make t"), (("o\\n",), " make tw"), (("x",), " make two\nand three")):
        config = dataclasses.replace(run.config, stop=stop)
        found = language_modeling.written(model, tf.constant(["one"]), config, run.spec, tokenizer)
        assert found["text"].numpy()[0].decode() == expected
        assert found["full_text"].numpy()[0].decode() == f"one{expected}"
        assert [decoded(tokenizer.decode(np.array([row])).numpy()) for row in model.stop] == [
            [one.replace("\\n", "\n")] for one in stop
        ]


def test_a_score_is_that_of_the_model_for_texts_of_any_length(run, doors):
    texts = ["one and two", "", "one and two make 3 é\n" * 9]
    found = doors("score", text=texts)
    for i, one in enumerate(texts):
        ids = run_ids(run, one)
        assert found["tokens"][i] == len(ids)
        nats, before = 0.0, np.concatenate([[text.END], ids]).astype("int32")
        for start in range(0, len(ids), 16):
            part = before[start : start + 17]
            padded = np.zeros((1, 16), "int32")
            padded[0, : len(part) - 1] = part[:-1]
            logs = tf.nn.log_softmax(run.model.predict_on_batch(padded)[0]).numpy()
            nats -= logs[np.arange(len(part) - 1), part[1:]].sum()
        assert -found["log_probability"][i] == pytest.approx(nats, rel=1e-4, abs=1e-4)
        size = max(1, len(one.encode()))
        assert found["bits_per_byte"][i] == pytest.approx(nats / np.log(2) / size, rel=1e-4, abs=1e-4)


# Published checkpoints.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny GPT-2 with a real tokenizer, as `to_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with tarfile.open(GOLDEN / "tokenizers/golden.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    tokenizer = load(folder / "gpt2", {"model_type": "gpt2"})
    keras.utils.set_random_seed(0)
    model = gpt(tokenizer.vocab_size, width=8, depth=1, num_heads=2, hidden_dim=8, max_length=24)
    return to_pretrained(model, folder / "tiny", tokenizer)


@pytest.mark.slow
def test_a_published_model_goes_on_with_its_own_tokenizer(checkpoint, folder, tmp_path):
    given = {name: SMALL[name] for name in ("batch_size", "context", "stride", "max_new_tokens", "stop")}
    config = Config(data_dir=str(folder), pretrained=str(checkpoint), steps=2, out=str(tmp_path), **given)
    run = runs.load(language_modeling.main(config))
    assert run.spec["tokenizer"]["kind"] == text.PUBLISHED and run.spec["marks"]["start_id"] is None
    assert run.model.arguments["max_length"] == 24
    serve, _ = language_modeling.serving_fn(run.model, run.config, run.spec)
    found = serve(tf.constant(["one and", "", "two " * 40]))
    assert found["full_text"].numpy()[0].startswith(b"one and") and found["truncated"].numpy().tolist() == [0, 0, 1]
    with pytest.raises(UsageError, match="Expected --context of at most 24"):
        language_modeling.build_model(dataclasses.replace(config, context=32), run.spec | {"context": 32})
    with pytest.raises(UsageError, match="Expected a checkpoint of llama"):
        language_modeling.load_data(dataclasses.replace(config, model="llama"))


# Bad input.


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--dataset", "tiny_cod"], 2, "Did you mean 'tiny_code'"),
        (["--data_dir", "nowhere"], 2, "Expected --data_dir"),
        (["--model", "gtp"], 2, "Did you mean 'gpt'"),
        (["--tokenizer", "word"], 2, "Expected --tokenizer, one of bpe, sentencepiece"),
        (["--vocab_size", "100"], 2, "Expected a vocabulary of at least 261 for bpe"),
        (["--max_new_tokens", "256"], 2, "Expected --max_new_tokens below --context, 256"),
        (["--stride", "300"], 2, "Expected --stride of at most --context, 256"),
        (["--top_p", "0"], 2, "Expected --top_p above 0"),
        (["--repetition_penalty", "0"], 2, "Expected --repetition_penalty above 0"),
        (["--temperature", "-1"], 2, "Expected --temperature of at least 0"),
        (["--model_args", "widht=8"], 2, "Did you mean 'width'"),
        (["--model_args", "width=7"], 2, "num_heads"),
        (["--context", "100000", "--limit", "8"], 1, "Expected at least 200001 tokens"),
    ],
)
def test_wrong_flags_and_data_end_in_a_line_and_leave_no_run(words, code, expected, folder, tmp_path, capsys):
    given = [] if {"--dataset", "--data_dir"} & set(words) else ["--data_dir", str(folder)]
    with pytest.raises(SystemExit) as ended:
        run_cli(language_modeling, [*words, *given, "--out", str(tmp_path / "runs")])
    error = capsys.readouterr().err
    assert ended.value.code == code and expected in error and error.count("\n") == 1
    assert not runs.find(tmp_path / "runs")


def test_a_resumed_run_needs_the_same_texts(run, folder, tmp_path):
    import shutil

    copy = tmp_path / "texts"
    shutil.copytree(folder, copy)
    config = dataclasses.replace(run.config, data_dir=str(copy))
    before = language_modeling.load_data(config).spec
    (copy / "00.txt").write_text("another text\n" * 300)
    assert language_modeling.load_data(config).spec["bytes"] != before["bytes"]


def test_stores_lie_beside_the_data_sets(run, data):
    assert data.train.folder.parent == token_store.root()
    assert json.loads((data.train.folder / "about.json").read_text())["documents"] == run.spec["documents"]["train"]

"""Learning runs of pretraining: the numbers that its docstring promises, and what they are worth. Minutes."""

from __future__ import annotations

import json
import time

import pytest

from pipelines import pretraining, text_classification

pytestmark = pytest.mark.slow


def test_bert_names_masked_tokens_better_than_their_neighbours_do(tmp_path):
    begin = time.monotonic()
    folder = pretraining.main(pretraining.Config(out=str(tmp_path)))
    seconds = time.monotonic() - begin
    found = json.loads((folder / "metrics.json").read_text())
    print(found["test"], found["baseline"], found["baselines"], f"{seconds:.0f} s")
    assert found["test"]["token_accuracy"] >= found["baseline"]["token_accuracy"] + 0.01
    assert found["test"]["loss"] <= found["baselines"][0]["loss"] - 2
    assert seconds < 300


@pytest.mark.parametrize("model", ["gpt", "llama", "t5", "xlnet"])
def test_every_objective_learns_more_than_what_is_frequent(model, tmp_path):
    folder = pretraining.main(pretraining.Config(model=model, epochs=2, out=str(tmp_path)))
    found = json.loads((folder / "metrics.json").read_text())
    print(model, found["test"], found["baseline"], found["baselines"])
    assert found["test"]["loss"] <= found["baselines"][0]["loss"] - 0.5


def test_what_was_learned_from_text_helps_to_tell_topics_of_text_that_was_not_there(tmp_path):
    flags = {"dataset": "tiny_code_apart", "sentences": "nsp", "epochs": 15, "out": str(tmp_path)}
    pretrained = pretraining.main(pretraining.Config(**flags))
    nothing = pretraining.main(pretraining.Config(**flags, steps=1, learning_rate=1e-12, evaluated=64))
    accuracy = []
    for source in (pretrained, nothing):
        config = text_classification.Config(
            dataset="tiny_snippets",
            model="bert_classifier",
            pretrained=str(source),
            max_length=96,
            epochs=3,
            batch_size=32,
            learning_rate=5e-4,
            out=str(tmp_path),
        )
        folder = text_classification.main(config)
        accuracy.append(json.loads((folder / "metrics.json").read_text())["test"]["accuracy"])
    print(accuracy)
    assert accuracy[0] >= accuracy[1] + 0.03

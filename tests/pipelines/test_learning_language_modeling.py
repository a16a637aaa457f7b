"""Learning runs of language modeling: the numbers that its docstring promises. Minutes; make test-slow."""

from __future__ import annotations

import json
import time

import pytest

from pipelines import language_modeling

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", language_modeling.MODELS)
def test_unseen_modules_take_fewer_bits_than_with_the_5_gram_model_within_5_minutes(model, tmp_path):
    begin = time.monotonic()
    folder = language_modeling.main(language_modeling.Config(model=model, out=str(tmp_path)))
    seconds = time.monotonic() - begin
    found = json.loads((folder / "metrics.json").read_text())
    bits, gram = found["test"]["bits_per_byte"], found["baseline"]["bits_per_byte"]
    print(f"{model}: {bits} bits per byte, 5-gram {gram}, xz {found['baselines'][0]['bits_per_byte']}, {seconds:.0f} s")
    assert bits < gram - 0.05
    assert seconds < 300
    by_place = found["loss_by_place"]
    assert sum(by_place[-50:]) < sum(by_place[:50])  # context helps

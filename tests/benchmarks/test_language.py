"""The benchmarks of language models: what they compute, and that the one for GPUs runs anywhere. Nothing is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpt2_gpu, language, speculation

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_training_on_a_device_runs_under_jax_and_says_what_it_cost(tmp_path):
    words = ["-m", "benchmarks.gpt2_gpu", "--size", "tiny", "--steps", "2", "--batch", "2", "--length", "16"]
    words += ["--vocabulary", "50", "--precision", "float32", "--peak", "1e12", "--out", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["tokens a row"] == 16 and 3 < found["loss after"] < 5  # log(50) is 3.9
    needed = gpt2_gpu.flops_per_token(found["parameters"] - 64 * 32, 2, 32, 16)
    share = found["tokens/s"] * needed / 1e12
    assert found["model-FLOP utilization"] == pytest.approx(share, abs=1e-4)
    wrong = subprocess.run([sys.executable, *words[:4], "--steps", "0"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "at least 1" in wrong.stderr


def test_utilization_counts_what_the_paper_counts():
    """GPT-2 small over 1024 tokens: 6 * 124 M and 12 * 12 * 768 * 1024 for a token."""
    assert gpt2_gpu.flops_per_token(124_000_000, 12, 768, 1024) == 744_000_000 + 113_246_208
    assert gpt2_gpu.peak_of("NVIDIA H100 80GB HBM3", None) == 989e12
    assert gpt2_gpu.peak_of("NVIDIA H100 PCIe", None) == 756e12
    assert gpt2_gpu.peak_of("NVIDIA H100 PCIe", 5.0) == 5.0 and gpt2_gpu.peak_of("cpu", None) is None


def test_goals_that_are_missed_are_named():
    def row(what, by, rate):
        return {"network": "gpt2", "what": what, "by": by, "tokens/s": rate}

    rows = [row("forward", "ours, XLA", 90), row("forward", "ours, no XLA", 110), row("forward", language.EAGER, 100)]
    rows += [row("generation", "ours, XLA", 140), row("generation", language.EAGER, 100)]
    rows += [row("generation", "speculative decoding", 50)]
    (found,) = language.missed(rows).values()
    assert found == {"generation, gpt2, transformers, eager": 1.4}
    (found,) = language.missed(rows[:3]).values()
    assert found == "none"


def test_speculation_learns_from_other_modules_than_it_writes_on():
    (ids, after), (test, _) = next(speculation.windows("train", 3, 8)), next(speculation.windows("test", 3, 8))
    assert ids.shape == after.shape == (3, 8) and (ids[:, 1:] == after[:, :-1]).all() and ids.max() < 256
    assert (ids != test).any()


@pytest.mark.skipif(not os.environ.get("DLE_TORCH_PYTHON"), reason="needs an interpreter with torch and transformers")
def test_the_peer_has_our_weights(tmp_path):
    from benchmarks import sides
    from models.checkpoints import to_pretrained

    python = sides.torch_python("transformers")
    sizes = {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8}
    case = language.Case("gpt2 small", 50, sizes, 2, 4, writes=((2, 4, 3),))
    model = language.network(case)
    folder = to_pretrained(model, tmp_path / "checkpoint")
    peer = sides.Peer([str(python), str(language.PEER), str(folder)])
    language.same(case, model, peer)
    peer.end()

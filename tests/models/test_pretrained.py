"""What `from_pretrained` refuses, how it finds a checkpoint, and how little memory it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.checkpoints import from_pretrained, to_pretrained
from models.checkpoints.tensors import Tensors
from models.mlp import mlp

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests/golden"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "gpt2_lm", tmp_path / "gpt2"))


def changed(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def tensors(folder, change):
    path = folder / "model.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path, {"format": "pt"})


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_a_part(folder):
    index = {"weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "JSON"),
        (lambda f: changed(f, model_type="gpt3"), "Did you mean 'gpt2'"),
        (lambda f: changed(f, architectures=["GPT2ForTokenClassification"]), "GPT2LMHeadModel"),
        (lambda f: changed(f, scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
        (lambda f: changed(f, activation_function="swiglu"), "activation_function"),
        (lambda f: changed(f, n_layer=3), "transformer.h.2.attn.c_attn.weight"),
        (lambda f: changed(f, n_layer=1), "nothing for the file's transformer.h.1"),
        (lambda f: changed(f, vocab_size=61), r"wte.weight as \(61, 24\), where the file has \(60, 24\)"),
        (lambda f: tensors(f, lambda a: a.pop("transformer.ln_f.bias")), "transformer.ln_f.bias .* lacks"),
        (lambda f: tensors(f, lambda a: a.update(more=np.ones(2, "float32"))), "nothing for the file's more"),
        (cut_short, "whole safetensors file"),
        (only_a_pickle, "pickle"),
        (without_a_part, "model-00001-of-00002"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(damage, message, folder):
    damage(folder)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        from_pretrained(folder)
    assert mlp((2, 2, 1), 2).count_params()  # and Keras is as it was


def test_an_unknown_head_is_refused(folder):
    with pytest.raises(ValueError, match=r"Did you mean 'features'\?.*Received: 'feature'"):
        from_pretrained(folder, head="feature")


def test_parts_and_half_precision_and_old_names_are_read(folder, tmp_path):
    expected = [weight.numpy() for weight in from_pretrained(folder).model.weights]
    arrays = {
        f"transformer.{k.removeprefix('transformer.')}": v for k, v in load_file(folder / "model.safetensors").items()
    }
    (folder / "model.safetensors").unlink()
    names = sorted(arrays)
    old = {name: name.replace("ln_f.weight", "ln_f.gamma").replace("ln_f.bias", "ln_f.beta") for name in names}
    index = {}
    for part, chosen in enumerate((names[::2], names[1::2])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file(
            {old[name].removeprefix("transformer."): arrays[name].astype("float16") for name in chosen}, folder / file
        )
        index |= {old[name].removeprefix("transformer."): file for name in chosen}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for weight, before in zip(from_pretrained(folder).model.weights, expected):
        assert weight.dtype == "float32"
        np.testing.assert_allclose(weight, before, atol=2e-3)


def test_big_checkpoints_are_written_in_parts(folder, tmp_path, monkeypatch):
    from models.checkpoints import tensors as file

    write = file.write
    monkeypatch.setattr(file, "write", lambda folder, arrays: write(folder, arrays, limit=20_000))
    model = from_pretrained(folder).model
    written = to_pretrained(model, tmp_path / "parts")
    assert len(list(written.glob("model-*.safetensors"))) > 2 and not (written / "model.safetensors").exists()
    assert len(Tensors(written)) == len(load_file(folder / "model.safetensors"))
    for ours, again in zip(model.weights, from_pretrained(written).model.weights):
        np.testing.assert_array_equal(ours, again)


def test_a_folder_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    from models.checkpoints import tensors as file

    def full(folder, arrays):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(file, "write", full)
    model = from_pretrained(folder).model
    with pytest.raises(OSError, match="No space"):
        to_pretrained(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]
    with pytest.raises(ValueError, match="empty. Received"):
        to_pretrained(model, folder)
    with pytest.raises(ValueError, match="Expected a model of bert"):
        to_pretrained(mlp((2, 2, 1), 2), tmp_path / "out")


def test_a_repository_is_found_in_the_cache_of_the_hub(folder, tmp_path, monkeypatch):
    """The layout of `huggingface_hub`'s cache, read without a network."""
    import huggingface_hub.constants

    base, commit = tmp_path / "hub/models--someone--tiny", "0" * 40
    shutil.copytree(folder, base / "snapshots" / commit)
    (base / "refs").mkdir()
    (base / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert from_pretrained("someone/tiny").report.head == "lm"
    with pytest.raises(ConnectionError, match="network to fetch someone/else"):
        from_pretrained("someone/else")
    with pytest.raises(ValueError, match="owner/name"):
        from_pretrained("no such folder")


MEMORY = """
import json, re, sys, threading, time
from models.checkpoints import from_pretrained

def memory():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def watch():
    while True:
        seen.append(memory())
        time.sleep(0.002)

from_pretrained(sys.argv[1])
before, seen = memory(), []
threading.Thread(target=watch, daemon=True).start()
model = from_pretrained(sys.argv[2]).model
print(json.dumps({"grown": max(seen) - before, "weights": 4 * model.count_params()}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured by Linux")
def test_loading_takes_the_memory_of_the_weights(folder, tmp_path):
    from models.gpt import gpt

    big = to_pretrained(gpt(20_000, width=384, depth=8, num_heads=4, hidden_dim=1536, max_length=64), tmp_path / "big")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, folder, big], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["grown"] <= 1.2 * found["weights"], found


def test_the_policy_of_the_caller_is_left_as_it_was(folder):
    model = from_pretrained(folder, dtype="mixed_bfloat16").model
    assert model.arguments["dtype"] == "mixed_bfloat16"
    assert keras.config.dtype_policy().name == "float32"

"""What every task and every architecture has to offer, checked over TASKS × MODELS, and the direction of imports."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import shlex
from pathlib import Path

import keras
import pytest

import pipelines
from pipelines import runs

ROOT = Path(__file__).parent.parent
PAIRS = [(task, model) for task in pipelines.TASKS for model in pipelines.get(task).MODELS]
# A model that another task has shown to work takes its further tasks in `make test-slow`, but for a task's first model.
REPEATED = [
    (task, model)
    for place, (task, model) in enumerate(PAIRS)
    if model in [one for _, one in PAIRS[:place]] and model != next(iter(pipelines.get(task).MODELS))
]
RUNS = [pytest.param(*pair, marks=[pytest.mark.slow] if pair in REPEATED else []) for pair in PAIRS]
# Small enough to train in seconds: flags of a task, and the arguments that an architecture needs for that. Steps of
# plain gradient descent are the quickest to trace.
QUICK: dict[str, dict] = {
    "image_classification": {"image_size": 8, "limit": 64, "optimizer": "sgd"},
    "text_classification": {"limit": 64, "vocab_size": 300, "optimizer": "sgd"},
    "token_classification": {"limit": 64, "optimizer": "sgd"},
    "question_answering": {"limit": 64, "optimizer": "sgd"},
    "translation": {"limit": 64, "beam_width": 2, "optimizer": "sgd"},
    "text_to_text": {"limit": 64, "beam_width": 2, "optimizer": "sgd"},
    "forecasting": {"limit": 64, "baselines": ("seasonal_naive",), "optimizer": "sgd"},
    "language_modeling": {
        "limit": 8,
        "steps": 8,
        "vocab_size": 300,
        "context": 32,
        "stride": 32,
        "max_new_tokens": 4,
        "optimizer": "sgd",
    },
    "pretraining": {
        "limit": 8,
        "epoch_rows": 64,
        "batch_size": 16,
        "vocab_size": 300,
        "max_length": 32,
        "evaluated": 64,
        "max_new_tokens": 4,
        "optimizer": "sgd",
    },
}
SMALL: dict[str, dict] = {
    "mlp": {},
    "lenet": {},
    "convnet": {"widths": (8, 8), "depth": 1},
    "vgg": {"width": 8},
    "resnet": {"depths": (1, 1), "width": 8},
    "inception": {"width_coefficient": 0.05},
    "efficientnet": {"stages": ((3, 1, 8, 1, 1), (3, 2, 8, 2, 1)), "head_width": 16},
    "vit": {"depth": 2, "hidden_dim": 16, "num_heads": 2},
    "simple_rnn": {"width": 8},
    "lstm": {"width": 8},
    "gru": {"width": 8},
    "text_cnn": {"filters": 8},
    "text_transformer": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8},
    "bert_classifier": {"width": 8, "depth": 1, "hidden_dim": 8},
    "bert_question_answering": {"width": 8, "depth": 1, "hidden_dim": 8},
    "bert_token_classifier": {"width": 8, "depth": 1, "hidden_dim": 8},
    "bert": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8},
    "xlnet": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8},
    "lstm_tagger": {"width": 8},
    "xlnet_classifier": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8},
    "gpt": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8},
    "llama": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8},
    "seq2seq": {"width": 8},
    "transformer": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8},
    "t5": {"width": 8, "depth": 1, "num_heads": 2, "head_dim": 4, "hidden_dim": 8},
    "recurrent_forecaster": {"width": 8},
    "tcn_forecaster": {"width": 8, "depth": 2},
    "transformer_forecaster": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8},
}
RANK = {"models.layers": 0, "models": 1, "pipelines": 2, "tuning": 3, "serving": 3, "benchmarks": 4}


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def layer(name: str) -> str | None:
    return "models.layers" if name.startswith("models.layers") else name.partition(".")[0]


@pytest.mark.parametrize(
    "path", files("models", "pipelines", "tuning", "serving"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_go_one_way(path):
    own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imports(path):
        other = layer(name)
        if other in RANK and other != own:
            assert RANK[other] < RANK[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", files("models"), ids=lambda p: str(p.relative_to(ROOT)))
def test_models_run_on_every_backend_so_they_import_no_tensorflow(path):
    roots = {name.partition(".")[0] for name in imports(path)}
    assert not roots & {"tensorflow", "tf_keras", "jax", "torch"}


def test_nobody_uses_legacy_keras_outside_the_files_of_reinforcement_learning():
    for path in files("models", "pipelines", "tuning", "serving", "benchmarks"):
        if not re.search(r"agents|environments|reinforcement_learning|rl_", path.stem):
            assert not re.search(r"\btf\.keras\b|tf_keras|tf_agents", path.read_text()), path


@pytest.mark.parametrize("task", pipelines.TASKS)
def test_a_task_offers_the_names_of_the_contract(task):
    module = pipelines.get(task)
    assert dataclasses.is_dataclass(module.Config) and issubclass(module.Config, pipelines.BaseConfig)
    assert module.OBJECTIVE[1] in ("max", "min")
    assert callable(module.main) and callable(module.serving_fn)
    for field in dataclasses.fields(module.Config):
        assert field.metadata["help"]


@pytest.mark.parametrize(("task", "model"), PAIRS, ids=lambda x: x)
def test_a_name_is_the_file_the_builder_the_space_and_the_flag(task, model):
    builder = pipelines.get(task).MODELS[model]
    assert builder.function.__name__ == model
    assert hasattr(importlib.import_module("tuning.spaces"), model)
    assert Path(importlib.import_module(builder.module).__file__).parent == ROOT / "models"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("contract")


@pytest.mark.parametrize(("task", "model"), RUNS, ids=lambda x: x)
def test_every_architecture_goes_through_its_task(task, model, out, monkeypatch):
    """Trains, reports, loads, and serves raw inputs with the answers that were evaluated."""
    import tensorflow as tf
    from matplotlib.figure import Figure

    from pipelines import report
    from serving import gate

    module = pipelines.get(task)
    if model != next(iter(module.MODELS)):  # the pictures of a task are the same for all: drawing one's is enough
        monkeypatch.setattr(Figure, "tight_layout", lambda figure: None)
        monkeypatch.setattr(report, "save", lambda figure, path: path)
    config = module.Config(model=model, model_args=SMALL[model], epochs=1, out=str(out), **QUICK[task])
    folder = module.main(config)
    run = runs.load(folder)
    assert run.metrics["test"].keys() >= {module.OBJECTIVE[0]}
    assert run.metrics["baseline"].keys() >= {module.OBJECTIVE[0], "model"}
    serve, signature = module.serving_fn(run.model, run.config, run.spec)
    batch = next(iter(module.served_checks(run.model, run.config, run.spec, limit=3)))
    inputs, expected = batch["serving_default"]
    assert inputs.keys() == signature.keys()
    answer = tf.function(serve)(*(tf.constant(inputs[name]) for name in signature))
    gate.compare(f"{task} {model}", 0, expected, {name: value.numpy() for name, value in answer.items()})


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line.strip(), comments=True) for line in re.findall(r"^ {4}(python -m \S.*)$", text, re.M)]


def documented() -> list[list[str]]:
    """Every `python -m pipelines.<task> …` of a docstring or a page that needs nothing but what is built in."""
    found = []
    for path in [*files("models", "pipelines"), ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if path.exists():
            text = path.read_text()
            found += [words for words in commands(text) if re.fullmatch(r"pipelines\.\w+", words[2])]
    unique = {shlex.join(words): words for words in found}
    return [words for words in unique.values() if words[2].rpartition(".")[2] in pipelines.TASKS]


OUTSIDE = {
    "--data_dir",
    "--dataset",
    "--pretrained",
    "--resume",
    "--size",
    "--help",
}  # needs files, a network, or hours


@pytest.mark.slow
@pytest.mark.parametrize("words", [w for w in documented() if not OUTSIDE & set(w)], ids=shlex.join)
def test_documented_commands_run(words, command, tmp_path):
    """Those that need nothing but what is built in, cut short; test_docs checks that the others are accepted."""
    done = command(*words[2:], "--limit", 64, "--epochs", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert runs.is_finished(runs.find(tmp_path)[0])


def test_the_lock_holds_no_addresses_and_every_entry_a_hash():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    entries = re.findall(r"^[a-z0-9][^\n]*==[^\n]*\n(.*?)(?=^[a-z0-9]|\Z)", text, re.M | re.S)
    assert len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_saved_model_loads_by_keras_alone_once_its_file_is_imported(tiny_run):
    assert isinstance(keras.saving.load_model(tiny_run / "model.keras"), keras.Model)
    assert json.loads((tiny_run / "state.json").read_text())["state"] == "finished"

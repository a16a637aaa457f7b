"""README.md says how an architecture is added; here its own lines are put into a copy of the project, and it trains."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAME = "allconv"


def recipe() -> dict[str, str]:
    """The titled blocks of the README's section: {title: code}."""
    text = (ROOT / "README.md").read_text()
    part = re.search(r"^## Add an architecture in ten lines$(.*?)^## ", text, re.M | re.S)
    assert part
    return dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```', part[1], re.M | re.S))


def inserted(path: Path, opening: str, lines: str) -> None:
    """Put lines behind the line that begins with `opening`, which must be there once."""
    text = path.read_text()
    found = re.findall(rf"^{re.escape(opening)}.*\n", text, re.M)
    assert len(found) == 1, f"{opening} in {path.name}"
    path.write_text(text.replace(found[0], found[0] + lines))


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the architecture of the README in it."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("models", "pipelines", "tuning", "serving", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, root / name)
    code = recipe()
    (root / f"models/{NAME}.py").write_text(code.pop(f"models/{NAME}.py"))
    inserted(
        root / "pipelines/image_classification.py",
        "MODELS = {",
        code.pop("pipelines/image_classification.py, in MODELS"),
    )
    with open(root / "tuning/spaces.py", "a") as file:
        file.write("\n\n" + code.pop("tuning/spaces.py"))
    inserted(root / "tests/test_contract.py", "SMALL: ", code.pop("tests/test_contract.py, in SMALL"))
    assert not code
    return root


def python(root: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ten_lines_are_ten_lines():
    lines = [line for title, code in recipe().items() if "tests/" not in title for line in code.splitlines()]
    assert sum(bool(line.strip()) and not line.startswith('"""') for line in lines) == 10


def test_the_new_architecture_trains_and_is_listed(copy):
    assert NAME in python(copy, "pipelines")
    python(
        copy, "pipelines.image_classification", "--model", NAME, "--model_args", "depth=1",
        "--limit", "100", "--epochs", "1", "--out", "runs",
    )  # fmt: skip
    (folder,) = (copy / "runs/image_classification").glob(f"{NAME}-*")
    assert json.loads((folder / "state.json").read_text())["state"] == "finished"
    assert json.loads((folder / "config.json").read_text())["model_args"] == {"depth": 1}


@pytest.mark.slow
def test_the_contract_holds_for_it(copy):
    said = python(copy, "pytest", "-p", "no:cacheprovider", "tests/test_contract.py", "-k", NAME)
    assert re.search(r"\b[1-9]\d* passed", said), said

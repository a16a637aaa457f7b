"""README and docs/: generated parts are current, links and paths exist, every command is one, and the tour works."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from ports import free_ports

import pipelines
from docs import make_pages
from pipelines.config import parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = [path for folder in make_pages.FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
WRITTEN = ("runs/", "searches/", "exported/", "site/")  # by commands, not in the project


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", text, re.M | re.S)


def commands() -> list[str]:
    """Every `python -m …` line of the pages and of the docstrings, once."""
    lines = []
    for path in PAGES:
        for block in blocks(path.read_text()):
            lines += block.splitlines()
    for path in CODE:
        lines += re.findall(r"^ {4}(python -m \S.*)$", make_pages.docstring(path), re.M)
    found = [re.split(r" {3,}", line.strip())[0] for line in lines if line.strip().startswith("python -m")]
    return sorted(set(found))


@pytest.fixture(scope="module")
def pages():
    return make_pages.pages()


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_generated_parts_are_current(path, pages):
    assert pages.get(path, path.read_text()) == path.read_text(), "stale: python -m docs.make_pages"


def test_every_published_size_has_its_parameters_counted_and_the_counts_are_right():
    counts = make_pages.read(make_pages.PARAMETERS)
    models = make_pages.every_model()
    assert {name: {"", *builder.sizes} for name, builder in models.items()} == {k: {*v} for k, v in counts.items()}
    for name, sizes in counts.items():
        for size, number in sizes.items():
            if number < 400_000:
                assert make_pages.count(name, size) == number, f"{name} {size}"


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_links_and_pictures_lead_to_files(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" not in target and not target.startswith("#"):
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_files_that_the_text_names_exist(path):
    folders = "|".join([*make_pages.FOLDERS, "docs", "tests"])
    for name in re.findall(rf"`((?:{folders})/[\w./*-]*)`", path.read_text()):
        assert list(ROOT.glob(name)) or name.startswith(WRITTEN), name


def test_pictures_are_small_and_all_are_shown():
    images = sorted((ROOT / "docs/images").glob("*.png"))
    assert sum(path.stat().st_size for path in images) < 300_000
    text = "".join(path.read_text() for path in PAGES)
    assert [path.name for path in images if f"images/{path.name}" not in text] == []


@pytest.mark.parametrize("line", commands())
def test_documented_commands_are_accepted(line):
    words = shlex.split(line.rstrip("&"), comments=True)
    module, arguments = words[2], words[3:]
    assert importlib.util.find_spec(module), module
    arguments = [word.removeprefix("[").removesuffix("]") for word in arguments]
    task = module.rpartition(".")[2]
    if "--help" in arguments:
        return
    if task in pipelines.TASKS:
        pipeline = pipelines.get(task)
        config = parse(pipeline.Config, arguments, models=pipeline.MODELS)
        pipeline.MODELS[config.model].arguments(config.size, config.model_args)
    elif module == "tuning.search":
        from tuning.search import read

        read(arguments)
    elif arguments and module != "docs.make_results":
        make_pages.parser_of(module).parse_args(arguments)


def test_the_real_server_is_called_with_flags_that_the_embedded_one_has():
    lines = [line for page in PAGES for block in blocks(page.read_text()) for line in block.splitlines()]
    real = [shlex.split(line)[1:] for line in lines if line.startswith("tensorflow_model_server")]
    assert len(real) >= 2
    for words in real:
        make_pages.parser_of("serving.server").parse_args(words)


def test_targets_of_make_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in PAGES:
        text = path.read_text()
        named = re.findall(r"`make ([a-z-]+)`", text) + re.findall(r"^make ([a-z-]+)", "".join(blocks(text)), re.M)
        assert set(named) <= targets, path


def test_the_site_builds_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first = (tmp_path / "site/index.html").read_text()
    assert "Two commands" in first
    fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", first)
    assert fetched == []


def section(title: str) -> str:
    """The shell lines under a bold word of the five-minute tour."""
    found = re.search(rf"^\*\*{title}\.\*\*.*?^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert found, title
    return found[1]


def test_the_tour_works_as_it_is_written(tiny_run, tmp_path):
    """Export, serve and ask, in the words of README.md and docs/serving.md; the ports alone are others."""
    runs = tmp_path / "runs/image_classification"
    shutil.copytree(tiny_run, runs / tiny_run.name)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    rest, grpc = free_ports(2)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def moved(text: str) -> str:
        return text.replace("8501", str(rest)).replace("8500", str(grpc)).replace("python -m", f"{sys.executable} -m")

    def shell(text: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", moved(text)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    shell(section("Export").replace("--format both", ""))
    served = "exec " + moved(section("Serve").strip().rstrip("&"))
    process = subprocess.Popen(["sh", "-c", served], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                answer = urllib.request.urlopen(f"http://localhost:{rest}/v1/models/digits", timeout=5).read()
                if b"AVAILABLE" in answer:
                    break
            except OSError:
                assert process.poll() is None
            time.sleep(0.1)
        asked = [line for line in section("Ask").splitlines() if "curl" not in line]
        curled = [
            line
            for path in PAGES
            for block in blocks(path.read_text())
            for line in block.splitlines()
            if "| curl" in line
        ]
        if not shutil.which("curl"):
            curled = []
        answers = [shell(line) for line in asked]
        assert all("digit-3.png" in answer for answer in answers)
        assert len(answers) == 2 and answers[0] == answers[1]
        snippets = [one for one in blocks((ROOT / "docs/serving.md").read_text(), "python") if "localhost" in one]
        (tmp_path / "snippets.py").write_text(moved("".join(snippets)))
        assert len(shell("python snippets.py").splitlines()) == len(snippets) == 2  # each prints the label
        for line in sorted(set(curled)):
            assert re.search(r'"(predictions|outputs|results)"', shell(line)), line
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0

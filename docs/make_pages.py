"""Writes the generated parts of README.md and docs/ from the code and from the files that runs left behind.

    python -m docs.make_pages             rewrite what stands between <!-- begin NAME --> and <!-- end NAME -->
    python -m docs.make_pages --check     change nothing; exit code 1 if something is stale
    python -m docs.make_pages --count     count the parameters of the published sizes anew first (a minute or two)

Nothing in these parts is written by hand. Numbers come from docs/results/ (docs/make_results.py, docs/make_demo.py) and
benchmarks/results/ (make bench). `make docs` builds the site from the pages as they are; a test fails when they are
stale.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import re
import statistics
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pipelines
from pipelines import config as configuration

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results"
PARAMETERS = RESULTS / "parameters.json"
PERCENT = ("accuracy", "f1", "exact_match")
SHOWN = {"translation": "exact_match"}  # the measure of a page, where it is not the objective of the task
MARKER = re.compile(r"(<!-- begin ([\w .-]+?) -->\n).*?(<!-- end \2 -->)", re.S)
FOLDERS = ("models", "pipelines", "tuning", "serving", "benchmarks")
# What the builders of a task are given beside their keyword arguments, for a small data set of the task.
SMALL: dict[str, tuple] = {
    "image_classification": ((8, 8, 1), 10),
    "text_classification": (4000, 2),
    "token_classification": (4000, 13),
    "question_answering": (4000,),
    "translation": (100, 20),
    "text_to_text": (1000, 1000),
    "forecasting": ((36, 1), 12),
    "language_modeling": (2048,),
    "pretraining": (2048,),
}
# What a published size was made for; sizes that are not named take the first, models that are not named ImageNet.
INPUTS: dict[str, dict[str, tuple]] = {
    "mlp": {"": ((29, 29, 1), 10)},
    "lenet": {"": ((32, 32, 1), 10)},
    "convnet": {"": ((32, 32, 3), 10)},
    "resnet": {"": ((224, 224, 3), 1000)} | dict.fromkeys(("20", "56", "110"), ((32, 32, 3), 10)),
    "inception": {"": ((299, 299, 3), 1000)},
    "text_cnn": {"": (20_000, 2)},
    "text_transformer": {"": (30_522, 2)},
    "bert_classifier": {"": (30_522, 2)} | dict.fromkeys(("roberta-base", "roberta-large"), (50_265, 2)),
    "bert_question_answering": {"": (30_522,)} | dict.fromkeys(("roberta-base", "roberta-large"), (50_265,)),
    "bert_token_classifier": {"": (30_522, 9)} | dict.fromkeys(("roberta-base", "roberta-large"), (50_265, 9)),
    "bert": {"": (30_522,)} | dict.fromkeys(("roberta-base", "roberta-large"), (50_265,)),
    "xlnet": {"": (32_000,)},
    "xlnet_classifier": {"": (32_000, 2)},
    "transformer": {"": (37_000, 37_000)},
    "t5": {"": (32_128,)},
    "gpt": {"": (50_257,)},
    "llama": {"": (32_000,), "3-8b": (128_256,)},
}
IMAGENET = ((224, 224, 3), 1000)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def summary(text: str) -> str:
    """The first sentence of a docstring, without its full stop."""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[^A-Z ])[.](?: |$)", first)[0].rstrip(".:")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of Markdown; `|` in cells is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def input_of(model: str, size: str) -> tuple:
    """The positional arguments of a builder: of a published size, or with "" of a small data set of its task."""
    if not size:
        found = SMALL[next(task for task in pipelines.TASKS if model in pipelines.get(task).MODELS)]
        return found[:1] if model == "t5" else found  # it has one vocabulary for both sides
    known = INPUTS.get(model, {"": IMAGENET})
    return known.get(size, known[""])


def every_model() -> dict[str, Any]:
    """The builders of all tasks, once each."""
    return {name: builder for task in pipelines.TASKS for name, builder in pipelines.get(task).MODELS.items()}


def count(model: str, size: str) -> int:
    """Parameters of a published size with its own head; with "", of the defaults on a small data set."""
    import keras

    builder = every_model()[model]
    try:
        with keras.StatelessScope(initialize_variables=False):  # weights have shapes, and no values
            return builder(*input_of(model, size), **(builder.sizes[size] if size else {})).count_params()
    finally:
        keras.utils.clear_session()  # Keras would make them when the next model is built


def count_all() -> None:
    """Write docs/results/parameters.json."""
    found = {
        name: {size: count(name, size) for size in ("", *builder.sizes)} for name, builder in every_model().items()
    }
    PARAMETERS.write_text(json.dumps(found, indent=1) + "\n")


def short(number: int) -> str:
    """25.6 M, 272 k, 4,210."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if number >= 10 * unit or (number >= unit and unit == 1e6):
            return f"{number / unit:.3g}{name}" if number < 100 * unit else f"{number / unit:.0f}{name}"
    return f"{number:,}"


def idea(name: str, builder: Any) -> str:
    text = summary(docstring(ROOT / f"{builder.module.replace('.', '/')}.py"))
    return text.partition(": ")[2] or text


def catalogue() -> str:
    """Tasks × models with rounded sizes, for the README."""
    counts, blocks = read(PARAMETERS), []
    for task in pipelines.TASKS:
        module: Any = pipelines.get(task)
        rows = []
        for name, builder in module.MODELS.items():
            sizes = " · ".join(f"`{size}` {short(n)}" for size, n in counts[name].items() if size)
            rows.append([f"`{name}`", idea(name, builder), short(counts[name][""]), sizes])
        link = f"[`{task}`](docs/tasks/{task}.md)"
        head = f"**{link}**: {summary(module.__doc__)} Data: {module.DATA}."
        blocks += [head, "", table(["`--model`", "idea", "small", "`--size`: parameters"], rows)]
    return "\n".join(blocks)


def sizes() -> str:
    """Every published size with its exact number of parameters."""
    counts, rows = read(PARAMETERS), []
    for name, builder in every_model().items():
        for size in ("", *builder.sizes):
            given = (
                " × ".join(map(str, one)) if isinstance(one, tuple) else f"{one:,}" for one in input_of(name, size)
            )
            head = [f"`{name}`", ""] if not size else ["", f"`{size}`"]
            rows.append([*head, ", ".join(given), f"{counts[name].get(size, 0):,}"])
    return table(["model", "`--size`", "input and output", "parameters"], rows)


def data_sets() -> str:
    """The built-in data sets."""
    rows = []
    for path in sorted((ROOT / "pipelines/datasets").glob("tiny_*.py")):
        name, _, what = docstring(path).replace("\n", " ").partition(": ")
        rows.append([f"`{name}`", " ".join(what.split()).replace("  ", " ")])
    return table(["`--dataset`", "what it is"], rows)


def flag_value(field: Any) -> str:
    default = field.default_factory() if field.default is dataclasses.MISSING else field.default
    if default in (None, "", {}, (), False):
        return ""
    return f"`{' '.join(map(str, default)) if isinstance(default, tuple) else default}`"


def flags(task: str) -> str:
    """The flags of a task, in the order of its configuration."""
    module: Any = pipelines.get(task)
    hints = typing.get_type_hints(module.Config)
    rows = []
    for field in dataclasses.fields(module.Config):
        line = field.metadata["help"]
        if field.metadata["choices"]:
            line += f": {', '.join(f'`{choice}`' for choice in field.metadata['choices'])}"
        switch = hints[field.name] is bool
        rows.append([f"`--{field.name}`" + (f", `--no-{field.name}`" if switch else ""), flag_value(field), line])
    return table(["flag", "default", "what it does"], rows)


def flag_names(task: str) -> str:
    names = [field.name for field in dataclasses.fields(pipelines.get(task).Config)]
    return " ".join(f"`--{name}`" for name in names)


class Found(Exception):
    """Carries the parser of a command out of its `main`."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of `python -m COMMAND`, whether its module has a function for it or makes it in `main`."""
    name = "serving.server.__main__" if command == "serving.server" else command
    module = importlib.import_module(name)
    if hasattr(module, "parser"):
        return module.parser()

    def caught(self, *_: Any, **__: Any) -> Any:
        raise Found(self)

    kept = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = caught  # type: ignore[method-assign, assignment]
    try:
        module.main(*[[]] * len(inspect.signature(module.main).parameters))
    except Found as found:
        return found.args[0]
    finally:
        argparse.ArgumentParser.parse_args = kept  # type: ignore[method-assign]
    raise LookupError(f"Expected a parser in {command}. Received: none")


def command_flags(command: str) -> str:
    """The flags of a command whose parser is written with argparse."""
    rows = []
    for action in parser_of(command)._actions:
        if "--help" in action.option_strings:
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        line = action.help or ""
        if action.choices:
            line += f" ({', '.join(map(str, action.choices))})"
        rows.append([f"`{name}`", line])
    return table(["flag", "what it does"], rows)


def search_flags() -> str:
    """The flags that a search adds to those of its task."""
    from tuning.search import SearchFlags

    rows = []
    for field in dataclasses.fields(SearchFlags):
        line = field.metadata["help"]
        if field.metadata["choices"]:
            line += f": {', '.join(f'`{choice}`' for choice in field.metadata['choices'])}"
        rows.append([f"`--{field.name}`", flag_value(field), line])
    return table(["flag", "default", "what it does"], rows)


def spaces() -> str:
    """What a search varies, by architecture: read from the source of tuning/spaces.py."""
    tree = ast.parse((ROOT / "tuning/spaces.py").read_text())
    rows = []
    for node in tree.body:
        calls = [one for one in ast.walk(node) if isinstance(one, ast.Call) and is_draw(one)]
        if isinstance(node, ast.FunctionDef) and calls:
            calls.sort(key=lambda one: (one.lineno, one.col_offset))
            rows.append([f"`{node.name}`", ", ".join(drawn(one) for one in calls)])
    return table(["function", "hyperparameters"], rows)


def is_draw(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "hp"


def drawn(call: ast.Call) -> str:
    name, *rest = (ast.unparse(argument) for argument in call.args)
    return f"{ast.literal_eval(name)} ({' – '.join(rest)})" if rest else f"{ast.literal_eval(name)}"


def augmentations() -> str:
    from pipelines.transforms import augment

    rows = []
    for name, entry in augment.NAMES.items():
        amounts = [f"{entry.default:g}", f"{entry.low:g} – {entry.high:g}"] if entry.low < entry.high else ["", ""]
        rows.append([f"`{name}`", entry.help, *amounts])
    return table(["`--augment`", "what it does", "amount", "from – to"], rows)


def deviations() -> str:
    """What the docstrings of the architectures say about their papers."""
    rows = []
    for name, builder in every_model().items():
        text = " ".join(docstring(ROOT / f"{builder.module.replace('.', '/')}.py").split())
        said = re.search(r"(Deviations?|There is no single paper)\b.*", text)
        if said is None:
            raise LookupError(
                f"Expected deviations from the paper in the docstring of {builder.module}. Received: none"
            )
        rows.append([f"`{name}`", re.sub(r"^Deviations? ?(from the papers?)?[:,]? ?", "", said[0])])
    return table(["model", "what differs from the paper"], rows)


def tree() -> str:
    """The files of the project with the first sentence of each."""
    lines = ["```text"]
    for folder in FOLDERS:
        lines += branch(ROOT / folder, 0)
    lines.append(f"{'tests/':<38}mirrors these folders; test_contract.py runs every task × model")
    lines.append(f"{'docs/':<38}the pages of the site, and the scripts that write their numbers and pictures")
    return "\n".join([*lines, "```"])


def branch(folder: Path, depth: int) -> list[str]:
    own = folder / "__init__.py"
    lines = [entry(f"{folder.name}/", docstring(own) if own.exists() else "", depth)]
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            lines.append(entry(path.name, docstring(path), depth + 1))
    for path in sorted(folder.iterdir()):
        if path.is_dir() and any(path.glob("*.py")):
            lines += branch(path, depth + 1)
    return lines


def entry(name: str, text: str, depth: int) -> str:
    line = f"{'  ' * depth + name:<30}{re.sub(r': python -m .*', '', summary(text))}"
    return (line if len(line) <= 150 else line[:149].rsplit(" ", 1)[0].rstrip(",;:") + " …").rstrip()


def results(task: str) -> str:
    """What default runs of a task reached on the test split, from docs/results/<task>.json."""
    path = RESULTS / f"{task}.json"
    if not path.exists():
        return f"No results are recorded yet: `python -m docs.make_results {task}` writes them."
    found, measure = read(path), SHOWN.get(task, pipelines.get(task).OBJECTIVE[0])
    shown = "{:.2%}".format if measure in PERCENT else "{:.3f}".format
    rows, grouped = [], any(row.get("groups") for row in found["rows"])
    for row in found["rows"]:
        test, baseline = row["test"][measure], row["baseline"][measure]
        flags = "".join(f" `--{name} {value}`" for name, value in row["flags"].items())
        rows.append(
            [
                f"`{row['model']}`{flags}",
                f"{row['parameters']:,}",
                ", ".join(map(str, row["seeds"])),
                ", ".join(map(shown, test)),
                shown(sum(test) / len(test)),
                f"{shown(sum(baseline) / len(baseline))} ({row['baseline_model']})",
                *([apart(row["groups"], measure, shown)] if grouped else []),
                f"{sum(row['train_seconds']) / len(row['train_seconds']):.0f}",
            ]
        )
    name = measure.replace("_", " ")
    head = ["model", "parameters", "seeds", f"test {name}", "mean", f"baseline's {name}"]
    head += [*(["apart, mean"] if grouped else []), "seconds of training"]
    versions = ", ".join(f"{name} {version}" for name, version in found["machine"].items())
    note = f"Written by `python -m docs.make_results {task}` on {found['date']}: {versions}."
    return f"{table(head, rows)}\n\n{note}"


def apart(groups: dict[str, Any], measure: str, shown: Any) -> str:
    """The groups of a test split, each with its mean over the seeds."""
    return ", ".join(f"{group} {shown(sum(one[measure]) / len(one[measure]))}" for group, one in groups.items())


def demo() -> str:
    """What `make demo` printed when docs/make_demo.py ran it."""
    return f"```text\n{(RESULTS / 'demo.txt').read_text().rstrip()}\n```"


def benchmark(name: str) -> str:
    """benchmarks/results/<name>.json as tables: `rows` side by side, everything else as lines."""
    path = ROOT / f"benchmarks/results/{name}.json"
    if not path.exists():
        return f"No results are recorded yet: `python -m benchmarks.{name}` writes them."
    found = read(path)
    lines = []
    for key, value in found.items():
        if key != "rows":
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            lines.append(f"- {key}: {text}")
    blocks = ["\n".join(lines)] if lines else []
    if found.get("rows"):
        columns = list(dict.fromkeys(column for row in found["rows"] for column in row))
        blocks.append(table(columns, ([row.get(column, "") for column in columns] for row in found["rows"])))
    return "\n\n".join(blocks)


def transfer() -> str:
    """What pretraining is worth in fine-tuning, from docs/results/transfer.json."""
    path = RESULTS / "transfer.json"
    if not path.exists():
        return "No results are recorded yet: `python -m docs.make_transfer` writes them."
    found = read(path)
    rows = []
    for name, accuracies in found["accuracy"].items():
        mean, spread = sum(accuracies) / len(accuracies), statistics.stdev(accuracies)
        rows.append([name, ", ".join(f"{one:.2%}" for one in accuracies), f"{mean:.2%} ± {100 * spread:.2f}"])
    gain, before = found["gain"], found["pretraining"]
    told = [
        table(
            ["the same model", f"test accuracy of seeds {', '.join(map(str, found['seeds']))}", "mean ± deviation"],
            rows,
        ),
        f"Pretraining is worth {100 * gain['mean']:.2f} points of accuracy, with a deviation of "
        f"{100 * gain['deviation']:.2f} over the seeds; the least of them is {100 * min(gain['each']):.2f}. TF-IDF and "
        f"a logistic regression have {found['tfidf_accuracy']:.2%}.",
        f"Pretrained with `{flags_of(before['flags'])}`: {before['parameters']:,} parameters, {before['steps']:,} "
        f"steps, {before['train_seconds']:.0f} s, test loss {before['test']['loss']:.3f} "
        f"({before['baseline']['loss']:.3f} by {before['baseline']['model']}). "
        f"Fine-tuned with `{flags_of(found['fine_tuning'])}`.",
        f"Written by `python -m docs.make_transfer` on {found['date']}: "
        + ", ".join(f"{name} {version}" for name, version in found["machine"].items())
        + ".",
    ]
    return "\n\n".join(told)


def flags_of(given: dict[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in given.items())


GENERATORS: dict[str, Callable[..., str]] = {
    "catalogue": catalogue,
    "sizes": sizes,
    "data sets": data_sets,
    "flags": flags,
    "flag names": flag_names,
    "command flags": command_flags,
    "search flags": search_flags,
    "spaces": spaces,
    "augmentations": augmentations,
    "deviations": deviations,
    "tree": tree,
    "results": results,
    "transfer": transfer,
    "demo": demo,
    "benchmark": benchmark,
}


def generated(name: str) -> str:
    """The content of a part: `tree`, or a generator with one argument: `flags image_classification`."""
    if name in GENERATORS:
        return GENERATORS[name]()
    head, _, argument = name.rpartition(" ")
    configuration.one_of(head, GENERATORS, "a generated part")
    return GENERATORS[head](argument)


def pages() -> dict[Path, str]:
    """The pages with generated parts, each as it should be."""
    found = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        if MARKER.search(text):
            found[path] = MARKER.sub(lambda part: f"{part[1]}\n{generated(part[2])}\n\n{part[3]}", text)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is stale")
    parser.add_argument("--count", action="store_true", help="count the parameters of all published sizes anew")
    flags = parser.parse_args()
    configuration.quiet_tensorflow()
    if flags.count:
        count_all()
    stale = {path: text for path, text in pages().items() if path.read_text() != text}
    for path, text in stale.items():
        print(f"{'stale' if flags.check else 'written'}: {path.relative_to(ROOT)}")
        if not flags.check:
            path.write_text(text)
    return 1 if flags.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

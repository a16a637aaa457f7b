"""Run folders: list them, compare them, prune them, and load one.

    python -m pipelines.runs                     a table of all runs, newest first
    python -m pipelines.runs compare RUN RUN     their results and differing flags, and their curves over each other
    python -m pipelines.runs prune --keep 5      delete all but the five best of each task (asks first, or --yes)

A run is `running`, `finished` or `failed`; one whose process is gone without a word is `interrupted` and can be
continued with `--resume`. Nothing here imports TensorFlow, except `load` for the model itself.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import errno
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pipelines
from pipelines.config import BaseConfig, Failure, Parser, UsageError, guarded, nearest

FINISHED_FILES = ("config.json", "spec.json", "metrics.json", "model.keras")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder that was loaded: its files as objects."""

    folder: Path
    task: str
    config: Any
    spec: dict[str, Any]
    metrics: dict[str, Any]
    model: Any = None


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run folder.

    Raises:
        Failure: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Failure(f"Expected a readable {path.name} in the run folder {path.parent}. Received: {error}")


def to_json(config: BaseConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_json(task: str, content: dict[str, Any]) -> BaseConfig:
    """The configuration of a task from `config.json`; tuples come back as tuples."""
    config = pipelines.get(task).Config
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name in content.keys() - fields.keys():
        raise Failure(f"Expected the fields of {task}'s configuration.{nearest(name, fields)} Received: {name!r}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return config(**values)


class Lock:
    """Held by the process that works in a run folder, and let go by the system when that process ends, however."""

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        self.file: IO[str] | None = None

    def take(self, *, patience: float = 1.0) -> bool:
        """Try to hold the lock, for `patience` seconds (others look for an instant); False where a process holds it."""
        import fcntl

        self.file = open(self.path, "a")  # noqa: SIM115 (held open on purpose)
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= end:
                    self.release()
                    return False
                time.sleep(0.02)

    def release(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def state(folder: Path) -> dict[str, Any]:
    """What `state.json` says, with `interrupted` for a run that says `running` and is not.

    Raises:
        UsageError: the folder is no run folder.
        Failure: its state is damaged.
    """
    if not (folder / "state.json").exists():
        raise UsageError(f"Expected a run folder (with a state.json; see python -m pipelines.runs). Received: {folder}")
    found = read_json(folder / "state.json")
    if found.get("state") == "running":
        lock = Lock(folder)
        if lock.take(patience=0):
            found = read_json(folder / "state.json")  # it may have ended in between
            lock.release()
            if found["state"] == "running":
                found["state"] = "interrupted"
    return found


def resumed(task: str, config: Any) -> Any:
    """The configuration to run: the given one, or with `--resume` that of the run folder.

    Raises:
        UsageError: the folder is no run of this task, or other flags were given beside `--resume`.
    """
    if config.resume is None:
        return config
    folder = Path(config.resume)
    found = state(folder)
    if found.get("task") != task:
        raise UsageError(f"Expected a run of {task} to resume. Received: {folder}, a run of {found.get('task')}")
    defaults = dataclasses.asdict(type(config)())
    free = {"resume", "out", "verbose", "export"}
    other = [k for k, v in dataclasses.asdict(config).items() if k not in free and v != defaults[k]]
    if other:
        raise UsageError(f"Expected --resume alone: a resumed run keeps its own flags. Received: --{other[0]}")
    kept = from_json(task, read_json(folder / "config.json"))
    return dataclasses.replace(kept, resume=str(folder), verbose=config.verbose, export=config.export or kept.export)


@contextmanager
def start(task: str, config: Any, spec: dict[str, Any]) -> Iterator[Path]:
    """A run folder to work in: `running` inside, `finished` after, `failed` with the reason after an exception.

    Raises:
        Failure: `--resume` names a folder that a live process works in, or whose data were different.
    """
    if config.resume:
        folder = Path(config.resume)
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = Path(config.out) / task / f"{config.model}-{stamp}-{uuid.uuid4().hex[:6]}"
        folder.mkdir(parents=True)
    lock = Lock(folder)
    if not lock.take():
        raise Failure(f"Expected a run that no process works in. Received: {folder}, which is still running")
    info = {"task": task, "state": "running", "pid": os.getpid(), "started": time.strftime("%Y-%m-%dT%H:%M:%S")}
    try:
        if config.resume:
            if read_json(folder / "spec.json") != json.loads(json.dumps(spec)):
                raise Failure(f"Expected the data that {folder} was trained on; its spec.json describes other data")
            info["started"] = read_json(folder / "state.json")["started"]
        else:
            write_json(folder / "config.json", to_json(dataclasses.replace(config, verbose=False)))
            write_json(folder / "spec.json", spec)
        for name in ("plots", "logs", "checkpoints"):
            (folder / name).mkdir(exist_ok=True)
        write_json(folder / "state.json", info)
        yield folder
        for name in FINISHED_FILES:
            if not (folder / name).exists():
                raise Failure(f"Expected {name} in the finished run folder {folder}. Received: none")
        write_json(folder / "state.json", info | {"state": "finished", "ended": time.strftime("%Y-%m-%dT%H:%M:%S")})
    except BaseException as error:
        reason = " ".join(str(error).split())[:2000] or type(error).__name__
        try:
            write_json(folder / "state.json", info | {"state": "failed", "error": reason})
        except OSError as second:  # a full disk: make room with what is only worth something to a finished run
            if second.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise
            print(f"warning: {folder} could not record its failure: {second}", file=sys.stderr)
        raise
    finally:
        lock.release()


def save_model(model: Any, path: Path) -> None:
    """Write a `.keras` file atomically."""
    part = path.with_name("part.keras")
    model.save(part)
    os.replace(part, path)


def peak_memory_mb() -> int:
    """Most memory this process has held so far, in megabytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def export(folder: Path) -> None:
    """Run the next command of the road, `python -m serving.export RUN`, for `--export`.

    A process and not an import: pipelines know nothing of serving.
    """
    import subprocess

    done = subprocess.run([sys.executable, "-m", "serving.export", str(folder)])
    if done.returncode:
        raise Failure(f"Expected the export of {folder} to succeed. Received: exit code {done.returncode}")


def is_finished(folder: Path) -> bool:
    return state(folder)["state"] == "finished"


def already_finished(config: Any) -> Path:
    """What `--resume` does with a finished run: it says so, and exports it where `--export` asks for that."""
    print(f"already finished: {config.resume}")
    if config.export:
        export(Path(config.resume))
    return Path(config.resume)


def load(folder: str | Path, *, model: bool = True) -> Run:
    """Load a finished run: configuration, spec, metrics and, unless `model=False`, the Keras model.

    Raises:
        UsageError: no run folder, or one that is not finished.
        Failure: a file of it is missing or damaged.
    """
    folder = Path(folder)
    found = state(folder)
    if found["state"] != "finished":
        why = f" ({found['error']})" if found.get("error") else ""
        hint = "" if found["state"] == "running" else f"; continue it with --resume {folder}"
        raise UsageError(f"Expected a finished run. Received: {folder}, which is {found['state']}{why}{hint}")
    config = from_json(found["task"], read_json(folder / "config.json"))
    spec, metrics = read_json(folder / "spec.json"), read_json(folder / "metrics.json")
    network = None
    if model:
        import keras

        pipelines.get(found["task"]).MODELS[config.model].function  # noqa: B018 (its file registers its layers)
        try:
            network = keras.saving.load_model(folder / "model.keras", compile=False)
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise Failure(f"Expected a readable model.keras in {folder}. Received: {text}") from error
    return Run(folder, found["task"], config, spec, metrics, network)


def find(root: str | Path, task: str | None = None) -> list[Path]:
    """All run folders under `root`, newest first."""
    folders = [path.parent for path in Path(root).glob(f"{task or '*'}/*/state.json")]
    return sorted(folders, key=lambda folder: (folder / "state.json").stat().st_mtime, reverse=True)


def history(folder: Path) -> list[dict[str, float]]:
    """The rows of `history.csv`, `[]` before the first epoch."""
    if not (folder / "history.csv").exists():
        return []
    with open(folder / "history.csv", newline="") as file:
        return [{name: float(item) for name, item in row.items() if item} for row in csv.DictReader(file)]


def seen(folder: Path) -> dict[str, Any]:
    """`state`, with `damaged` and the reason where the files of the run cannot be read."""
    try:
        found = state(folder)
        if (folder / "metrics.json").exists() and "objective" not in read_json(folder / "metrics.json"):
            return {"state": "damaged", "error": "Expected an objective in metrics.json. Received: none"}
        return found
    except Failure as error:
        return {"state": "damaged", "error": str(error)}


def result(folder: Path) -> tuple[str, float | None, float | None, float | None]:
    """Name of the objective and its validation, test and baseline values; None where there is none yet."""
    path = folder / "metrics.json"
    if not path.exists():
        return "", None, None, None
    metrics = read_json(path)
    name = metrics["objective"][0]
    return name, *(metrics.get(part, {}).get(name) for part in ("validation", "test", "baseline"))


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A table of plain text, columns as wide as they must be."""
    shown = [[f"{c:.4f}" if isinstance(c, float) else "" if c is None else str(c) for c in r] for r in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*shown)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in shown)


def list_runs(root: str, task: str | None) -> str:
    rows = []
    for folder in find(root, task):
        found = seen(folder)
        name, validation, test, baseline = result(folder) if found["state"] != "damaged" else ("", None, None, None)
        seconds = history(folder)[-1]["seconds"] if history(folder) else None
        note = found.get("error", "")[:60]
        rows.append([str(folder), found["state"], name, validation, test, baseline, seconds, note])
    if not rows:
        return f"no runs under {root}; make one: python -m pipelines.image_classification"
    return table(["run", "state", "metric", "validation", "test", "baseline", "seconds", ""], rows)


def compare(folders: list[Path]) -> str:
    """Results and differing flags of runs side by side."""
    configs = [read_json(folder / "config.json") for folder in folders if state(folder)]
    differing = [
        k for k in configs[0] if any(c.get(k) != configs[0][k] for c in configs) and k not in ("out", "resume")
    ]
    rows: list[list[Any]] = [["state", *(state(folder)["state"] for folder in folders)]]
    names = [result(folder)[0] or "objective" for folder in folders]
    for part, i in (("validation", 1), ("test", 2), ("baseline", 3)):
        rows.append([f"{part} {names[0]}", *(result(folder)[i] for folder in folders)])
    rows += [[f"--{key}", *(str(config.get(key)) for config in configs)] for key in differing]
    return table(["", *(folder.name for folder in folders)], rows)


def prunable(root: str, keep: int, task: str | None = None) -> list[Path]:
    """Finished runs that are not among the `keep` best of their task, and failed and interrupted ones."""
    victims: list[Path] = []
    finished: dict[str, list[Path]] = {}
    for folder in find(root, task):
        found = seen(folder)
        if found["state"] == "finished":
            finished.setdefault(found["task"], []).append(folder)
        elif found["state"] in ("failed", "interrupted"):
            victims.append(folder)
    for name, folders in finished.items():
        sign = 1 if pipelines.get(name).OBJECTIVE[1] == "max" else -1
        victims += sorted(folders, key=lambda folder: -sign * (result(folder)[1] or 0.0))[keep:]
    return victims


def delete(folder: Path) -> None:
    """Delete a run folder unless a process works in it."""
    lock = Lock(folder)
    if not lock.take(patience=0):
        print(f"left alone, since a process works in it: {folder}")
        return
    shutil.rmtree(folder)
    lock.release()


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m pipelines.runs", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", nargs="?", default="list", choices=("list", "compare", "prune"))
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, for compare")
    parser.add_argument("--out", default="runs", help="where run folders are (default runs)")
    parser.add_argument("--task", help="only this task")
    parser.add_argument("--keep", type=int, default=5, help="how many of each task prune leaves (default 5)")
    parser.add_argument("--yes", action="store_true", help="prune without asking")
    parser.add_argument("--plot", type=Path, default=Path("comparison.png"), help="where compare draws the curves")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    flags = parser.parse_args(argv)
    if flags.command == "list":
        print(list_runs(flags.out, flags.task))
    elif flags.command == "compare":
        if len(flags.runs) < 2:
            raise UsageError(f"Expected two run folders or more to compare. Received: {len(flags.runs)}")
        print(compare(flags.runs), flush=True)  # at once; drawing needs a second
        from pipelines.report import overlaid_curves

        print(f"curves: {overlaid_curves({folder.name: history(folder) for folder in flags.runs}, flags.plot)}")
    else:
        if flags.keep < 0:
            raise UsageError(f"Expected --keep of at least 0. Received: {flags.keep}")
        victims = prunable(flags.out, flags.keep, flags.task)
        print("\n".join(map(str, victims)) or "nothing to prune")
        if victims and (flags.yes or input(f"delete these {len(victims)} run folders? [y/N] ").lower() == "y"):
            for folder in victims:
                delete(folder)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), verbose="--verbose" in sys.argv))

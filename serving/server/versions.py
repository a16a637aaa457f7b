"""The life of model versions: found on disk, loaded, served, drained, unloaded.

Each model has a folder of version folders whose names are integers. Every poll asks the model's policy which of them
should be served. New ones are loaded first, and old ones leave only when a wanted one is available, after their last
request has been answered (TensorFlow Serving's availability-preserving policy). A folder counts as soon as it is a
complete SavedModel; one that cannot be loaded is reported, ends in state END with the error, leaves the others alone,
and is tried again when its files change.

All state belongs to the event loop: only loading and closing run in threads, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from serving.server.config import ModelConfig
from serving.server.errors import ServingError, as_serving_error, invalid

Fingerprint = tuple[tuple[str, int, int], ...]


class State(IntEnum):
    """ModelVersionStatus.State of get_model_status.proto."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass
class Version:
    """A version of a model. `in_flight` counts the requests it is answering."""

    model: str
    number: int
    path: Path
    fingerprint: Fingerprint = ()
    state: State = State.START
    error: ServingError | None = None
    servable: Any = None
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """One request fewer."""
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()


@dataclass
class Model:
    """A configured model and every version seen of it, by number."""

    config: ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)
    told: str = ""
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def available(self) -> list[int]:
        return sorted(number for number, version in self.versions.items() if version.state == State.AVAILABLE)


def fingerprint(folder: Path) -> Fingerprint:
    """Names, sizes and times of the files of a version; empty while it is not a complete SavedModel.

    Complete means: the graph is there, and if there is a folder of variables, its index and every shard are too.
    """
    files = {str(p.relative_to(folder)): p.stat() for p in folder.rglob("*") if p.is_file()}
    if not files.keys() & {"saved_model.pb", "saved_model.pbtxt"}:
        return ()
    if (folder / "variables").is_dir():
        shards = [re.fullmatch(r"variables/variables\.data-(\d+)-of-(\d+)", name) for name in files]
        found = [int(match[1]) for match in shards if match]
        wanted = max((int(match[2]) for match in shards if match), default=0)
        if "variables/variables.index" not in files or sorted(found) != list(range(wanted)):
            return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in files.items()))


def scan(base_path: Path) -> tuple[dict[int, tuple[Path, Fingerprint]], list[str]]:
    """The complete versions under a base path by number, and the names of the folders that are not complete yet.

    Raises:
        FileNotFoundError: the base path does not exist: nothing is known, so nothing should change.
    """
    found: dict[int, tuple[Path, Fingerprint]] = {}
    waiting: list[str] = []
    for child in sorted(base_path.iterdir()):
        if re.fullmatch(r"\d+", child.name) and child.is_dir():
            try:
                marks = fingerprint(child)
            except OSError:  # the folder is being moved or removed while we look
                marks = ()
            if marks:
                found[int(child.name)] = child, marks
            else:
                waiting.append(child.name)
    return found, waiting


class Manager:
    """Keeps the configured models loaded, and hands versions to requests.

    Args:
        configs: the models.
        load: makes the servable of a version folder, with a `close` method; runs in a thread.
        log: takes a line for people.
    """

    def __init__(self, configs: Sequence[ModelConfig], load: Callable[[Version], Any], log: Callable[[str], None]):
        self.models = {config.name: Model(config) for config in configs}
        self._load, self._log = load, log
        self._tasks: set[asyncio.Task] = set()

    async def poll(self) -> None:
        """Look at every model once; returns when what was new is loaded or has failed."""
        await asyncio.gather(*[self.update(model) for model in list(self.models.values())])

    async def poll_forever(self, seconds: float) -> None:
        """Look again and again. A slow load of one model does not keep the others waiting."""
        while True:
            await asyncio.sleep(seconds)
            for model in list(self.models.values()):
                if not model.busy.locked():
                    self._spawn(self.update(model))

    async def reload(self, configs: Sequence[ModelConfig]) -> None:
        """Serve these models from now on; returns when they are loaded.

        Raises:
            ServingError: FAILED_PRECONDITION where a label names a version that is not available.
        """
        for config in configs:
            known = self.models.get(config.name)
            for label, number in config.labels.items():
                if number not in (known.available() if known else ()):
                    raise ServingError(
                        "FAILED_PRECONDITION",
                        f"Request to assign label to version {number} of model {config.name}, which is not currently "
                        f"available for inference (label {label})",
                    )
        kept = {config.name for config in configs}
        for name in [name for name in self.models if name not in kept]:
            model = self.models.pop(name)
            for number in model.available():
                self._spawn(self._unload(model.versions[number]))
        for config in configs:
            self.models.setdefault(config.name, Model(config)).config = config
        await self.poll()

    async def update(self, model: Model) -> None:
        """Load what the policy wants and unload what it no longer wants, in this order."""
        async with model.busy:
            config = model.config
            try:
                found, waiting = await asyncio.to_thread(scan, config.base_path)
            except OSError as error:
                self._tell(model, f"could not find base path {config.base_path} ({error.strerror}); still looking")
                return
            if waiting:
                self._tell(model, f"waiting for version {', '.join(waiting)}: not yet a complete SavedModel")
            elif not found:
                self._tell(model, f"no versions found under base path {config.base_path}: expected folders such as 1")
            else:
                self._tell(model, "")
            wanted = config.policy.aspired(found)
            for number in wanted:
                path, marks = found[number]
                known = model.versions.get(number)
                if known is None or (known.state == State.END and not (known.error and known.fingerprint == marks)):
                    await self._load_version(model, Version(config.name, number, path, marks))
            available = model.available()
            if not (found or waiting) or any(number in wanted for number in available):
                for number in available:
                    if number not in wanted:
                        self._spawn(self._unload(model.versions[number]))

    async def _load_version(self, model: Model, version: Version) -> None:
        model.versions[version.number] = version
        version.state = State.LOADING
        try:
            version.servable = await asyncio.to_thread(self._load, version)
        except Exception as error:  # whatever is wrong with these files, the other versions are still served
            version.state, version.error = State.END, as_serving_error(error)
            self._log(f"model {version.model} version {version.number} failed to load: {version.error.message}")
            return
        version.state = State.AVAILABLE
        path = "" if getattr(version.servable, "fast", True) else ", through the signature functions"
        seconds = getattr(version.servable, "load_seconds", 0.0)
        self._log(f"model {version.model} version {version.number} loaded in {seconds:.2f} s{path}")

    async def _unload(self, version: Version) -> None:
        version.state = State.UNLOADING
        while version.in_flight:
            version.idle.clear()
            await version.idle.wait()
        servable, version.servable = version.servable, None
        await asyncio.to_thread(servable.close)
        version.state = State.END
        self._log(f"model {version.model} version {version.number} unloaded")

    async def close(self) -> None:
        """Unload everything, after the last request of each version."""
        versions = [model.versions[number] for model in self.models.values() for number in model.available()]
        await asyncio.gather(*self._tasks, *map(self._unload, versions), return_exceptions=True)

    def acquire(self, name: str, number: int | None = None, label: str | None = None) -> Version:
        """The version that should answer a request; the caller owes a `release()`.

        Raises:
            ServingError: NOT_FOUND for models and versions that are not served, INVALID_ARGUMENT for unknown labels.
        """
        version = self.find(name, number, label)
        version.in_flight += 1
        return version

    def find(self, name: str, number: int | None = None, label: str | None = None) -> Version:
        """Like `acquire`, without promising to use it."""
        if not name:
            raise invalid("ModelSpec has no name specified.")
        model = self.models.get(name)
        if label:
            number = self.labelled(name, label)
        if number is not None:
            version = model.versions.get(number) if model else None
            if version is None or version.state != State.AVAILABLE:
                raise ServingError("NOT_FOUND", f"Servable not found for request: Specific({name}, {number})")
            return version
        available = model.available() if model else []
        if not model or not available:
            raise ServingError("NOT_FOUND", f"Servable not found for request: Latest({name})")
        return model.versions[available[-1]]

    def labelled(self, name: str, label: str) -> int:
        """The version number behind a label."""
        labels: Mapping[str, int] = self.models[name].config.labels if name in self.models else {}
        if label not in labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return labels[label]

    def status(self, name: str, number: int | None = None, label: str | None = None) -> list[Version]:
        """Every version seen of a model, newest first, or one of them.

        Raises:
            ServingError: NOT_FOUND where there is none.
        """
        if label:
            number = self.labelled(name, label)
        versions = self.models[name].versions if name in self.models else {}
        if number is not None:
            if number not in versions:
                raise ServingError("NOT_FOUND", f"Could not find version {number} of model {name}")
            return [versions[number]]
        if not versions:
            raise ServingError("NOT_FOUND", f"Could not find any versions of model {name}")
        return [versions[key] for key in sorted(versions, reverse=True)]

    def _tell(self, model: Model, remark: str) -> None:
        """Say a remark about a model once, not at every poll."""
        if remark and remark != model.told:
            self._log(f"model {model.config.name}: {remark}")
        model.told = remark

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

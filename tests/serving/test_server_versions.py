"""Policies, configuration files and the life of versions, with folders of fake models and no TensorFlow."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import UsageError
from serving.server import config
from serving.server.config import ModelConfig, Policy
from serving.server.errors import ServingError
from serving.server.versions import Manager, State

NUMBERS = st.lists(st.integers(0, 50), max_size=8, unique=True)


class Fake:
    """A servable that knows whether it was closed."""

    def __init__(self, version):
        if (version.path / "damaged").exists():
            raise ValueError("damaged")
        self.number, self.closed = version.number, False

    def close(self):
        self.closed = True


def put(base: Path, number: int, *, complete: bool = True, damaged: bool = False) -> Path:
    folder = base / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("saved_model.pb" if complete else "part")).write_bytes(b"x")
    if damaged:
        (folder / "damaged").touch()
    return folder


def states(manager: Manager, name: str = "m") -> dict[int, State]:
    return {version.number: version.state for version in manager.status(name)}


async def settled(manager: Manager) -> None:
    await manager.poll()
    while manager._tasks:
        await asyncio.sleep(0.001)


def manager_of(base: Path, policy: Policy | None = None, **labels: int) -> tuple[Manager, list[str]]:
    lines: list[str] = []
    return Manager([ModelConfig("m", base, policy or Policy(), labels)], Fake, lines.append), lines


@given(found=NUMBERS, few=st.integers(0, 4), chosen=NUMBERS)
def test_policies_choose_among_what_was_found(found, few, chosen):
    assert Policy("all").aspired(found) == sorted(found, reverse=True)
    assert Policy("latest", few).aspired(found) == sorted(found, reverse=True)[: max(1, few)]
    assert Policy("specific", versions=tuple(chosen)).aspired(found) == sorted({*found} & {*chosen}, reverse=True)


def test_a_config_file_gives_models_policies_and_labels(tmp_path):
    file = tmp_path / "models.config"
    file.write_text(
        """model_config_list {
          config { name: "a" base_path: "/models/a" model_platform: "tensorflow" }
          config { name: "b" base_path: "/models/b" model_platform: "tensorflow"
                   model_version_policy { latest { num_versions: 3 } } }
          config { name: "c" base_path: "/models/c" model_platform: "tensorflow" model_version_policy { all {} } }
          config { name: "d" base_path: "/models/d" model_platform: "tensorflow"
                   model_version_policy { specific { versions: 4 versions: 2 } }
                   version_labels { key: "stable" value: 2 } version_labels { key: "canary" value: 4 } } }"""
    )
    a, b, c, d = config.read(file)
    assert (a.name, a.base_path, a.policy) == ("a", Path("/models/a"), Policy())
    assert (b.policy, c.policy) == (Policy("latest", 3), Policy("all"))
    assert d.policy == Policy("specific", versions=(4, 2)) and d.labels == {"canary": 4, "stable": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list { config { nmae: 'a' } }", "no field named"),
        ('model_config_list { config { name: "a" base_path: "/a" } }', "model_platform"),
        ('model_config_list { config { name: "a" base_path: "/a" model_platform: "torch" } }', "torch"),
        ('model_config_list { config { name: "a" model_platform: "tensorflow" } }', "base_path"),
        (
            'model_config_list { config { name: "a" base_path: "models/a" model_platform: "tensorflow" } }',
            "Expected model a to have an absolute path on this machine. Received: base_path 'models/a'",
        ),
        ('model_config_list { config { base_path: "/a" model_platform: "tensorflow" } }', "name"),
        (
            'model_config_list { config { name: "a" base_path: "/a" model_platform: "tensorflow" } '
            'config { name: "a" base_path: "/b" model_platform: "tensorflow" } }',
            "Illegal to list model a multiple times in config list",
        ),
        (
            'model_config_list { config { name: "a" base_path: "/a" model_platform: "tensorflow" '
            "model_version_policy { specific {} } } }",
            "Expected versions in the specific policy",
        ),
    ],
)
def test_a_wrong_config_file_is_a_usage_error(tmp_path, text, message):
    file = tmp_path / "models.config"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        config.read(file)


def test_a_new_version_is_loaded_before_the_old_one_is_drained_and_closed(tmp_path):
    async def story():
        put(tmp_path, 1)
        manager, _ = manager_of(tmp_path)
        await settled(manager)
        held = manager.acquire("m")
        old = held.servable
        put(tmp_path, 2)
        await manager.poll()
        await asyncio.sleep(0.01)
        assert states(manager) == {2: State.AVAILABLE, 1: State.UNLOADING}
        assert manager.find("m").number == 2 and not old.closed
        held.release()
        await settled(manager)
        assert old.closed and states(manager) == {2: State.AVAILABLE, 1: State.END}
        with pytest.raises(ServingError, match=r"Servable not found for request: Specific\(m, 1\)"):
            manager.acquire("m", 1)

    asyncio.run(story())


def test_a_damaged_version_ends_with_its_error_and_the_old_one_stays(tmp_path):
    async def story():
        put(tmp_path, 1)
        manager, lines = manager_of(tmp_path)
        await settled(manager)
        folder = put(tmp_path, 2, damaged=True)
        for _ in range(3):
            await settled(manager)
        assert states(manager) == {2: State.END, 1: State.AVAILABLE}
        assert manager.status("m", 2)[0].error.message == "ValueError: damaged"
        assert sum("failed to load" in line for line in lines) == 1, "not tried again while nothing changed"
        (folder / "damaged").unlink()
        await settled(manager)
        assert states(manager) == {2: State.AVAILABLE, 1: State.END}, "tried again when its files change"

    asyncio.run(story())


def test_only_complete_folders_named_by_integers_are_versions(tmp_path):
    async def story():
        manager, lines = manager_of(tmp_path, Policy("all"))
        await settled(manager)
        assert "no versions found" in lines[-1]
        put(tmp_path, 3, complete=False)
        shards = put(tmp_path, 4) / "variables"
        shards.mkdir()
        (shards / "variables.index").touch()
        (shards / "variables.data-00000-of-00002").touch()
        (put(tmp_path, 5) / "saved_model.pb").rename(tmp_path / "saved_model.pb")
        (tmp_path / "latest").mkdir()
        await settled(manager)
        assert "waiting for version 3, 4, 5" in lines[-1]
        with pytest.raises(ServingError, match="Could not find any versions of model m"):
            manager.status("m")
        (shards / "variables.data-00001-of-00002").touch()
        await settled(manager)
        assert states(manager) == {4: State.AVAILABLE}

    asyncio.run(story())


def test_nothing_changes_while_the_base_path_is_missing(tmp_path):
    async def story():
        base = tmp_path / "base"
        manager, lines = manager_of(base)
        await settled(manager)
        await settled(manager)
        assert len(lines) == 1 and "could not find base path" in lines[0]
        put(base, 1)
        await settled(manager)
        base.rename(tmp_path / "away")
        await settled(manager)
        assert states(manager) == {1: State.AVAILABLE}

    asyncio.run(story())


def test_labels_and_versions_choose_and_unknown_ones_are_told_apart(tmp_path):
    async def story():
        for number in (1, 2):
            put(tmp_path, number)
        manager, _ = manager_of(tmp_path, Policy("all"), stable=1, future=9)
        await settled(manager)
        assert manager.find("m").number == 2
        assert manager.find("m", label="stable").number == 1
        for arguments, code, message in (
            (("",), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
            (("x",), "NOT_FOUND", "Servable not found for request: Latest(x)"),
            (("m", 7), "NOT_FOUND", "Servable not found for request: Specific(m, 7)"),
            (("m", None, "future"), "NOT_FOUND", "Servable not found for request: Specific(m, 9)"),
            (("m", None, "beta"), "INVALID_ARGUMENT", "Unrecognized servable version label: beta"),
        ):
            with pytest.raises(ServingError) as error:
                manager.acquire(*arguments)
            assert (error.value.code, error.value.message) == (code, message)

    asyncio.run(story())


def test_reload_adds_and_removes_models_and_refuses_labels_of_unavailable_versions(tmp_path):
    async def story():
        put(tmp_path / "a", 1)
        put(tmp_path / "b", 1)
        manager = Manager([ModelConfig("a", tmp_path / "a")], Fake, lambda line: None)
        await settled(manager)
        with pytest.raises(ServingError, match="not currently available for inference") as error:
            await manager.reload([ModelConfig("b", tmp_path / "b", labels={"stable": 1})])
        assert error.value.code == "FAILED_PRECONDITION" and manager.find("a").number == 1
        await manager.reload([ModelConfig("b", tmp_path / "b")])
        assert manager.find("b").number == 1
        with pytest.raises(ServingError, match=r"Latest\(a\)"):
            manager.find("a")
        await manager.reload([ModelConfig("b", tmp_path / "b", labels={"stable": 1})])
        assert manager.find("b", label="stable").number == 1

    asyncio.run(story())

"""A container's state on disk, and what it says of a process that may be gone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import ClocheError, ConfigError, DamagedError, NotFoundError
from cloche.model.state import (
    State,
    check_id,
    list_states,
    load_state,
    process_start_time,
)


def fields(pid: int, **changes: object) -> dict[str, Any]:
    """What a supervisor with *pid* writes."""
    started = process_start_time(pid)
    state = {"pid": pid, "pid_start": started, "status": "running", "bundle": "/b"}
    return {**state, "rootfs": "/b/rootfs", "created": "2026-01-01T00:00:00Z", **changes}


def saved(root: Path, name: str = "box", **changes: object) -> State:
    """A state file of a container whose supervisor is this process."""
    (root / name).mkdir(parents=True)
    state = State(str(root), name, fields(os.getpid(), **changes))
    state.save()
    return state


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = saved(tmp_path, annotations={"a": "ü"})
    loaded = load_state(str(tmp_path), "box")
    assert loaded.fields == state.fields
    assert os.stat(tmp_path / "box/state.json").st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "box") == ["state.json"]


def test_a_living_supervisor(tmp_path: Path) -> None:
    state = saved(tmp_path)
    assert state.is_alive()
    assert (state.pid, state.current_status()) == (os.getpid(), "running")
    assert state.oci()["pid"] == os.getpid()


def test_a_supervisor_that_has_ended(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    (tmp_path / "box").mkdir()
    state = State(str(tmp_path), "box", fields(process.pid))
    assert state.is_alive()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not state.is_alive(), "a zombie counts as ended"
    process.wait()
    assert not state.is_alive()
    assert (state.pid, state.current_status()) == (0, "stopped")
    assert state.runc()["pid"] == 0


def test_another_process_with_the_same_pid(tmp_path: Path) -> None:
    state = saved(tmp_path, pid_start=process_start_time(os.getpid()) - 1)
    assert (state.pid, state.current_status()) == (0, "stopped")


def test_annotations_are_printed_only_where_there_are_some(tmp_path: Path) -> None:
    assert "annotations" not in saved(tmp_path).runc()
    assert saved(tmp_path, "other", annotations={"a": "b"}).runc()["annotations"] == {"a": "b"}
    assert saved(tmp_path, "third").oci()["annotations"] == {}


def test_an_unknown_container(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="container does not exist"):
        load_state(str(tmp_path), "box")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"x"', "1", "{}", '{"pid": 1}'])
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    saved(tmp_path, "good")
    saved(tmp_path, "bad")
    (tmp_path / "bad/state.json").write_text(text)
    with pytest.raises(DamagedError, match=r"bad/state\.json: damaged state file"):
        load_state(str(tmp_path), "bad")
    told: list[ClocheError] = []
    assert [state.id for state in list_states(str(tmp_path), told.append)] == ["good"]
    assert len(told) == 1


def test_containers_are_listed_by_id(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        saved(tmp_path, name)
    (tmp_path / "being-made").mkdir()
    (tmp_path / "accel.json").write_text("{}")
    told: list[ClocheError] = []
    assert [state.id for state in list_states(str(tmp_path), told.append)] == ["a", "b", "c"]
    assert list_states(str(tmp_path / "nowhere"), told.append) == []
    assert told == []


@pytest.mark.parametrize("name", ["a", "A-1_b.c+d", "x" * 1024, "...", "a..b"])
def test_ids(name: str) -> None:
    assert check_id(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "a\n", "x" * 1025, "a\0b"])
def test_what_is_no_id(name: str) -> None:
    with pytest.raises(ConfigError, match="invalid id format"):
        check_id(name)


def test_start_times() -> None:
    text = Path("/proc/self/stat").read_text()
    assert process_start_time(os.getpid()) == int(text.rpartition(")")[2].split()[19])
    assert process_start_time(0) == process_start_time(1 << 30) == 0


def test_the_file_is_json(tmp_path: Path) -> None:
    saved(tmp_path)
    assert json.loads((tmp_path / "box/state.json").read_text())["status"] == "running"

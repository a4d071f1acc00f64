"""Editing daemon.json: only our own entry changes, and only in a file that can be understood."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from cloche.base.errors import ClocheError, ConfigError
from cloche.engine.docker import install_docker, main_install, main_uninstall, uninstall_docker
from cloche.engine.dockerd import find_dockerd
from cloche.engine.program import NAME

RUNTIME = Path(sys.executable)
"""Any program will do: it is named in the file and not started."""

OTHERS = {
    "log-driver": "journald",
    "runtimes": {"runsc": {"path": "/usr/bin/runsc", "runtimeArgs": ["--debug"]}},
    "insecure-registries": ["registry.local:5000"],
    "max-concurrent-downloads": 3,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A daemon.json; it names a pid file that is not there, so no dockerd of this machine."""
    path = tmp_path / "etc" / "daemon.json"
    path.parent.mkdir()
    _fill(path, OTHERS)
    return path


def _fill(path: Path, config: dict[str, object]) -> None:
    path.write_text(json.dumps({"pidfile": str(path.with_name("no.pid")), **config}, indent=2))


def _content(path: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads(path.read_text())
    config.pop("pidfile", None)
    return config


def _backups(path: Path) -> list[Path]:
    return sorted(path.parent.glob("daemon.json.cloche-backup-*"))


def test_install_keeps_the_rest(file: Path) -> None:
    before = file.read_bytes()
    report = install_docker(file, RUNTIME, default=False)
    runtimes = {**OTHERS["runtimes"], "cloche": {"path": str(RUNTIME)}}  # type: ignore[dict-item]
    assert _content(file) == {**OTHERS, "runtimes": runtimes}
    assert report.changed
    assert report.backup is not None
    assert report.backup.read_bytes() == before
    assert "starts" in report.daemon


def test_order_and_indentation_stay(file: Path) -> None:
    install_docker(file, RUNTIME, default=True)
    assert list(_content(file)) == [*OTHERS, "default-runtime"]
    assert '\n  "log-driver"' in file.read_text()


def test_install_twice_changes_nothing(file: Path) -> None:
    install_docker(file, RUNTIME, default=True)
    before, backups = file.read_bytes(), _backups(file)
    report = install_docker(file, RUNTIME, default=True)
    assert not report.changed
    assert report.backup is None
    assert (file.read_bytes(), _backups(file)) == (before, backups)


def test_install_without_default_leaves_default(file: Path) -> None:
    _fill(file, {"default-runtime": "runsc"})
    install_docker(file, RUNTIME, default=False)
    assert _content(file)["default-runtime"] == "runsc"


def test_install_moves_to_a_new_path(file: Path) -> None:
    _fill(file, {"runtimes": {"cloche": {"path": "/old", "runtimeArgs": ["--debug"]}}})
    install_docker(file, RUNTIME, default=False)
    entry = {"path": str(RUNTIME), "runtimeArgs": ["--debug"]}
    assert _content(file) == {"runtimes": {"cloche": entry}}


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_install_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr("cloche.engine.dockerd.PID_FILE", tmp_path / "no.pid")
    path = tmp_path / "new" / "daemon.json"
    if content is not None:
        path.parent.mkdir()
        path.write_text(content)
    report = install_docker(path, RUNTIME, default=True)
    expected = {"runtimes": {"cloche": {"path": str(RUNTIME)}}, "default-runtime": "cloche"}
    assert json.loads(path.read_text()) == expected
    assert (report.backup is None) == (content is None)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param('{"a": 1,\n "b": }', "line 2, column 7", id="syntax"),
        pytest.param('{"a": 1', "line 1, column 8", id="cut-off"),
        pytest.param("[]", "not an object", id="list"),
        pytest.param('{"runtimes": []}', "'runtimes' is not an object", id="runtimes"),
        pytest.param('{"runtimes": {"cloche": 1}}', "'cloche' is not an object", id="entry"),
        pytest.param('{"a": 1, "a": 2}', "'a' is there twice", id="twice"),
    ],
)
def test_unusable_file_is_named_and_untouched(file: Path, content: str, complaint: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        install_docker(file, RUNTIME, default=False)
    assert str(file) in caught.value.message
    assert (file.read_text(), _backups(file)) == (content, [])


def test_not_utf8(file: Path) -> None:
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="utf-8"):
        uninstall_docker(file)
    assert file.read_bytes() == b'{"a": "\xff"}'


@pytest.mark.parametrize("default", [False, True])
def test_uninstall_undoes_install(file: Path, default: bool) -> None:
    before = json.loads(file.read_text())
    install_docker(file, RUNTIME, default=default)
    report = uninstall_docker(file)
    assert report.changed
    assert json.loads(file.read_text()) == before
    assert len(_backups(file)) == 2


def test_uninstall_leaves_no_empty_table(file: Path) -> None:
    _fill(file, {"runtimes": {"cloche": {"path": "/x"}}, "default-runtime": "cloche"})
    uninstall_docker(file)
    assert _content(file) == {}


def test_uninstall_leaves_the_default_of_others(file: Path) -> None:
    _fill(file, {"runtimes": {"cloche": {"path": "/x"}}, "default-runtime": "runsc"})
    uninstall_docker(file)
    assert _content(file) == {"default-runtime": "runsc"}


@pytest.mark.parametrize("config", [{}, {"runtimes": {}}, OTHERS])
def test_uninstall_of_nothing_changes_nothing(file: Path, config: dict[str, object]) -> None:
    _fill(file, config)
    before = file.read_bytes()
    report = uninstall_docker(file)
    assert (report.changed, report.backup) == (False, None)
    assert (file.read_bytes(), _backups(file)) == (before, [])


def test_uninstall_without_a_file_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloche.engine.dockerd.PID_FILE", tmp_path / "no.pid")
    assert not uninstall_docker(tmp_path / "daemon.json").changed
    assert list(tmp_path.iterdir()) == []


def test_mode_and_link_stay(file: Path, tmp_path: Path) -> None:
    file.chmod(0o600)
    link = tmp_path / "daemon.json"
    link.symlink_to(file)
    install_docker(link, RUNTIME, default=False)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "cloche" in file.read_text()


@pytest.mark.parametrize(
    ("runtime", "complaint"),
    [
        pytest.param("cloche", "not an absolute path", id="relative"),
        pytest.param("/nosuch/cloche", "not a program", id="missing"),
        pytest.param("/etc/passwd", "not a program", id="not-executable"),
        pytest.param("/usr", "not a program", id="folder"),
    ],
)
def test_unusable_runtime(file: Path, runtime: str, complaint: str) -> None:
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=complaint):
        install_docker(file, Path(runtime), default=False)
    assert file.read_bytes() == before


def test_two_backups_in_one_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloche.engine.docker.time.strftime", lambda _: "20260102-030405")
    install_docker(file, RUNTIME, default=False)
    uninstall_docker(file)
    stamp = "daemon.json.cloche-backup-20260102-030405"
    assert [path.name for path in _backups(file)] == [stamp, f"{stamp}-0"]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClocheError, match=r"daemon\.json: cannot read it: Not a directory"):
        install_docker(tmp_path / "file" / "daemon.json", RUNTIME, default=False)


def test_pid_of_another_program_is_no_dockerd(tmp_path: Path) -> None:
    pid_file = tmp_path / "docker.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    assert find_dockerd({"pidfile": str(pid_file)}) is None


def test_main(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["docker", "--config", str(file)]
    assert main_install([*arguments, "--default", "--runtime", str(RUNTIME)]) == 0
    assert _content(file)["default-runtime"] == NAME
    assert f"{file}: changed" in capsys.readouterr().out
    assert main_uninstall(arguments) == 0
    assert _content(file) == OTHERS


def test_main_needs_an_engine_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main_install(["nosuch"])
    assert "docker" in capsys.readouterr().err

"""podman's drop-in: written, changed and removed; what is not ours is never touched."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from cloche.base.errors import ConfigError
from cloche.engine.podman import FILE, install_podman, main_install, uninstall_podman

RUNTIME = Path(sys.executable)
"""Any program will do: it is named in the file and not started."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "containers.conf.d"


def _engine(folder: Path) -> dict[str, object]:
    config: dict[str, dict[str, object]] = tomllib.loads((folder / FILE).read_text())
    return config["engine"]


def test_install(folder: Path) -> None:
    assert install_podman(folder, RUNTIME, default=False).done == "written"
    assert _engine(folder) == {"runtimes": {"cloche": [str(RUNTIME)]}}


def test_install_again_changes_nothing(folder: Path) -> None:
    install_podman(folder, RUNTIME, default=True)
    before = (folder / FILE).stat()
    for default in (True, False):
        again = install_podman(folder, RUNTIME, default=default)
        assert again.done == "already as it should be"
    assert (folder / FILE).stat() == before
    assert _engine(folder)["runtime"] == "cloche"


def test_another_program(folder: Path) -> None:
    install_podman(folder, RUNTIME, default=True)
    assert install_podman(folder, Path("/bin/sh"), default=False).done == "changed"
    assert _engine(folder) == {"runtime": "cloche", "runtimes": {"cloche": ["/bin/sh"]}}


def test_odd_name(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / 'a "quoted" \\ näme'
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    install_podman(folder, program, default=False)
    assert _engine(folder) == {"runtimes": {"cloche": [str(program)]}}


def test_uninstall(folder: Path) -> None:
    install_podman(folder, RUNTIME, default=True)
    other = folder / "other.conf"
    other.write_text("[engine]\nnum_locks = 4096\n")
    assert uninstall_podman(folder).done == "removed"
    assert list(folder.iterdir()) == [other]
    assert "nothing to do" in uninstall_podman(folder).done


@pytest.mark.parametrize(
    "text",
    [
        "[engine]\nnum_locks = 4096\n",
        '[engine.runtimes]\ncloche = ["/x"]\ncrun = ["/y"]\n',
        "[network]\n",
        "not TOML",
    ],
)
def test_a_file_that_is_not_ours(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / FILE).write_text(text)
    with pytest.raises(ConfigError, match=FILE):
        install_podman(folder, RUNTIME, default=False)
    with pytest.raises(ConfigError, match=FILE):
        uninstall_podman(folder)
    assert (folder / FILE).read_text() == text


def test_files_that_are_read_later(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.conf").write_text('[engine]\nruntime = "runc"\n')
    (folder / "z.conf").write_text('[engine]\nruntime = "crun"\n')
    (folder / "y.conf").write_text('[engine.runtimes]\ncloche = ["/elsewhere"]\n')
    (folder / "x.conf").write_text("damaged")
    notes = install_podman(folder, RUNTIME, default=True).overruled
    assert len(notes) == 3
    assert "x.conf" in notes[0]
    assert "/elsewhere" in notes[1]
    assert "makes crun the default" in notes[2]
    (folder / FILE).unlink()
    assert len(install_podman(folder, RUNTIME, default=False).overruled) == 2


def test_what_cannot_be_called(folder: Path) -> None:
    for program in (Path("cloche"), Path("/etc/passwd"), Path("/etc")):
        with pytest.raises(ConfigError):
            install_podman(folder, program, default=False)
    assert not folder.exists()


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["podman", "--config-dir", str(folder), "--runtime", str(RUNTIME)]
    assert main_install(words) == 0
    printed = capsys.readouterr().out
    assert "written" in printed
    assert "podman --runtime cloche run" in printed

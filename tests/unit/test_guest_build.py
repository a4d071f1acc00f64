"""The guest's folder: made whole, found cheaply, seen to be out of date, cleared away."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cloche.base.errors import ClocheError, DamagedError, NotFoundError
from cloche.guest.agent_binary import agent_candidates, find_agent, require_agent
from cloche.guest.build import (
    build_guest,
    check_whole,
    guest_is_stale,
    refresh_guest,
    remove_unused,
    wanted_guests,
)
from cloche.guest.guest import (
    Guest,
    changed_source,
    current_guest,
    guest_for,
    is_current,
    load_guest,
)
from cloche.guest.kernel import Kernel, load_kernel
from cloche.guest.tools import explained_os_errors, new_directory

from .guest_samples import RELEASE, elf_kernel, unpacked_kernel


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def agent(tmp_path: Path) -> str:
    path = tmp_path / "cloche-agent"
    path.write_bytes(b"\x7fELF agent")
    return str(path)


@pytest.fixture
def kernel(data: Path) -> Kernel:
    kernel = load_kernel(unpacked_kernel(data / "kernels" / RELEASE))
    assert kernel is not None
    return kernel


@pytest.fixture
def guest(data: Path, kernel: Kernel, agent: str) -> Guest:
    return build_guest(data, kernel, agent)


def _inodes(data: Path) -> dict[str, int]:
    """What tells that a file below *data* was written: all of ours are replaced, not changed."""
    found = {}
    for name in ("guests", "agents"):
        for path in (data / name).rglob("*"):
            found[str(path)] = path.lstat().st_ino
    return found


def test_a_guest_is_whole_and_current(data: Path, guest: Guest, agent: str) -> None:
    found = current_guest(data)
    assert found is not None
    assert (found.key, found.manifest) == (guest.key, guest.manifest)
    assert len(found.key) == 16
    assert Path(found.vmlinux).read_bytes() == elf_kernel()
    assert b"\x7fELF agent" in Path(found.initramfs).read_bytes()
    assert found.kernel_release == RELEASE
    assert is_current(found, agent)


def test_building_again_changes_nothing(data: Path, kernel: Kernel, agent: str) -> None:
    first = build_guest(data, kernel, agent)
    before = _inodes(data)
    assert build_guest(data, kernel, agent).key == first.key
    assert _inodes(data) == before
    assert sorted(os.listdir(data / "guests")) == sorted([first.key, "current"])


def test_there_is_no_guest_before_setup(data: Path) -> None:
    assert current_guest(data) is None
    assert guest_is_stale(None, None, None) == "there is no guest yet"


@pytest.mark.parametrize("name", ["vmlinux", "initramfs", "manifest.json"])
def test_a_guest_that_lost_a_file_is_none_and_is_made_again(
    data: Path, kernel: Kernel, agent: str, guest: Guest, name: str
) -> None:
    Path(guest.directory, name).unlink()
    assert current_guest(data) is None
    assert build_guest(data, kernel, agent).key == guest.key
    assert current_guest(data) is not None


def test_a_cut_off_initramfs_is_noticed(data: Path, guest: Guest) -> None:
    os.truncate(guest.initramfs, 100)
    assert current_guest(data) is None


@pytest.mark.parametrize("name", ["vmlinux", "initramfs"])
def test_a_flipped_bit_is_noticed_before_others_start_from_it(guest: Guest, name: str) -> None:
    check_whole(guest)
    path = Path(guest.directory, name)
    data = bytearray(path.read_bytes())
    path.unlink()  # the kernel's own file may be the same one
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert load_guest(guest.directory) is not None  # a start looks at sizes only
    with pytest.raises(DamagedError, match=f"{re.escape(guest.directory)}: damaged"):
        check_whole(guest)


def test_a_guest_of_another_recipe_is_none(data: Path, guest: Guest) -> None:
    path = Path(guest.directory, "manifest.json")
    path.write_text(json.dumps(guest.manifest | {"recipe": 0}))
    assert current_guest(data) is None


def test_a_new_agent_is_noticed_and_makes_a_new_guest(data: Path, guest: Guest, agent: str) -> None:
    Path(agent).write_bytes(b"\x7fELF agent, built anew")
    assert not is_current(guest, agent)
    assert changed_source(guest, agent) == agent
    assert guest_is_stale(guest, agent, None) == f"{agent} has changed"
    new = refresh_guest(data, guest, agent)
    assert new.key != guest.key
    assert is_current(new, agent)
    found = current_guest(data)
    assert found is not None
    assert found.key == new.key


def test_an_agent_written_again_with_the_same_bytes_keeps_the_key(
    data: Path, guest: Guest, agent: str
) -> None:
    os.utime(agent, ns=(1, 1))
    assert not is_current(guest, agent)
    again = refresh_guest(data, guest, agent)
    assert again.key == guest.key
    assert is_current(again, agent)


@pytest.mark.parametrize("contents", [b"\x7fELF agent", b"\x7fELF another agent"])
def test_two_installations_do_not_make_each_others_guest_stale(
    data: Path, kernel: Kernel, agent: str, tmp_path: Path, contents: bytes
) -> None:
    installed = tmp_path / "installed-agent"
    installed.write_bytes(contents)
    first = build_guest(data, kernel, agent)
    second = build_guest(data, kernel, str(installed))
    assert (first.key == second.key) == (contents == Path(agent).read_bytes())
    before = _inodes(data)
    for _ in range(2):
        for path, built in ((agent, first), (str(installed), second)):
            found = guest_for(data, path)
            assert found is not None
            assert found.key == built.key
            assert is_current(found, path)
            assert guest_is_stale(found, path, Path(found.manifest["kernel_directory"])) is None
    assert _inodes(data) == before
    assert wanted_guests(data) == {first.key, second.key}


def test_another_installations_guest_of_an_older_kernel_is_not_booted(
    data: Path, guest: Guest, agent: str, tmp_path: Path
) -> None:
    installed = tmp_path / "installed-agent"
    installed.write_bytes(b"\x7fELF another agent")
    newer = load_kernel(unpacked_kernel(data / "kernels" / "new", "6.1.0-99-amd64", source="new"))
    assert newer is not None
    current = build_guest(data, newer, str(installed))
    found = guest_for(data, agent)
    assert found is not None
    assert found.key == current.key
    assert not is_current(found, agent)
    made = refresh_guest(data, found, agent)
    assert made.key not in {guest.key, current.key}
    assert made.manifest["kernel_directory"] == str(newer.directory)


def test_an_agent_that_changed_or_went_is_forgotten(
    data: Path, kernel: Kernel, agent: str, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.write_bytes(b"\x7fELF gone")
    build_guest(data, kernel, str(gone))
    build_guest(data, kernel, agent)
    Path(agent).write_bytes(b"\x7fELF agent, built anew")
    gone.unlink()
    current = current_guest(data)
    assert current is not None
    assert wanted_guests(data) == {current.key}
    assert os.listdir(data / "agents") == []


def test_a_damaged_record_of_an_agent_only_costs_a_build(
    data: Path, guest: Guest, agent: str, tmp_path: Path
) -> None:
    installed = tmp_path / "installed-agent"
    installed.write_bytes(b"\x7fELF agent")
    refresh_guest(data, guest, str(installed))
    for text in ("", "[]", '{"agent": 3}', '{"agent": {}, "guest": "none"}'):
        for path in (data / "agents").iterdir():
            path.write_text(text)
        assert refresh_guest(data, guest, agent).key == guest.key
        assert refresh_guest(data, guest, str(installed)).key == guest.key


def test_of_two_starts_with_a_new_agent_one_makes_the_guest(
    data: Path, guest: Guest, agent: str
) -> None:
    Path(agent).write_bytes(b"\x7fELF agent, built anew")
    made = refresh_guest(data, guest, agent)
    before = _inodes(data)
    assert refresh_guest(data, guest, agent).key == made.key
    assert _inodes(data) == before


def test_an_agent_that_is_gone_leaves_the_guest_current(guest: Guest, agent: str) -> None:
    os.unlink(agent)
    assert is_current(guest, agent)
    assert is_current(guest, None)


def test_another_configured_kernel_makes_the_guest_stale(
    guest: Guest, agent: str, tmp_path: Path
) -> None:
    folder = Path(guest.manifest["kernel_directory"])
    assert guest_is_stale(guest, agent, folder) is None
    other = guest_is_stale(guest, agent, tmp_path / "other")
    assert other == f"the configuration names the kernel {tmp_path}/other, the guest has a test"


def test_a_changed_kernel_image_is_noticed(data: Path, agent: str, tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"image")
    status = image.stat()
    print_ = {"path": str(image), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    kernel = load_kernel(unpacked_kernel(data / "kernels" / "k", image=print_))
    assert kernel is not None
    guest = build_guest(data, kernel, agent)
    assert is_current(guest, agent)
    image.write_bytes(b"another image")
    assert changed_source(guest, agent) == str(image)


def test_what_is_not_used_is_removed(data: Path, kernel: Kernel, agent: str, guest: Guest) -> None:
    kept = build_guest(data, kernel, _changed(agent, b"second"))
    now = build_guest(data, kernel, _changed(agent, b"third"))
    unpacked_kernel(data / "kernels" / "5.10", release="5.10")
    (data / "guests" / ".interrupted").mkdir()
    removed = remove_unused(data, keep=[kept.key])
    assert sorted(removed) == sorted([f"guests/{guest.key}", "kernels/5.10"])
    assert sorted(os.listdir(data / "guests")) == sorted([kept.key, now.key, "current"])
    assert os.listdir(data / "kernels") == [RELEASE]
    assert current_guest(data) is not None


def _changed(agent: str, contents: bytes) -> str:
    Path(agent).write_bytes(contents)
    return agent


def test_nothing_to_remove_is_no_error(data: Path) -> None:
    assert remove_unused(data) == []


def test_a_failed_folder_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError, match="half way"):
        _fill(target, fail=True)
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(target) == ["old"]
    _fill(target, fail=False)
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(target) == ["new"]


def _fill(target: Path, *, fail: bool) -> None:
    with new_directory(target) as work:
        (work / "new").touch()
        if fail:
            raise RuntimeError("half way")


@pytest.mark.parametrize(
    ("number", "words", "hint"),
    [
        (errno.ENOSPC, "/x: test: no space left on the device", "data_root"),
        (errno.EACCES, "/x: test: Permission denied", "root"),
        (errno.EIO, "/x: test: Input/output error", ""),
    ],
)
def test_system_errors_are_explained(number: int, words: str, hint: str) -> None:
    with pytest.raises(ClocheError) as caught, explained_os_errors("test"):
        raise OSError(number, os.strerror(number), "/x")
    assert caught.value.message == words
    assert hint in caught.value.hint


def test_the_agent_named_in_the_environment_is_the_only_candidate(
    monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    monkeypatch.setenv("CLOCHE_AGENT", agent)
    assert (agent_candidates(), find_agent()) == ([agent], agent)
    monkeypatch.setenv("CLOCHE_AGENT", f"{agent}.not")
    assert find_agent() is None
    with pytest.raises(NotFoundError, match=r"cloche-agent\.not") as caught:
        require_agent()
    assert "CLOCHE_AGENT" in caught.value.hint


def test_the_start_path_imports_little() -> None:
    """Every VM start imports this: os and json, nothing that costs milliseconds."""
    code = "import sys, cloche.guest.guest, cloche.guest.agent_binary; print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "cloche.guest.guest" in loaded
    assert loaded.isdisjoint({"pathlib", "typing", "dataclasses", "subprocess", "hashlib"})


def test_one_containers_kernel_of_the_same_bytes_is_not_everybodys(
    data: Path, guest: Guest, agent: str, tmp_path: Path
) -> None:
    """Else all starts would need a kernel that may be gone with that container."""
    other = unpacked_kernel(tmp_path / "other")
    again = load_kernel(other)
    assert again is not None
    assert build_guest(data, again, agent, current=False).key == guest.key
    found = current_guest(data)
    assert found is not None
    assert found.manifest == guest.manifest

"""What is missing, full, damaged or dead: an error that explains itself, or a cold boot."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.guest.build import build_guest
from cloche.guest.guest import Guest, current_guest
from cloche.guest.kernel import load_kernel
from cloche.model.config import load_settings
from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .runtime import Runtime

SMALL = 64 << 20
# mov eax, 1 (write); mov edi, 1; lea rsi, [rip + text]; mov edx, length; syscall;
# mov eax, 60 (exit); mov edi, 7; syscall; text
SAY_AND_EXIT = "b801000000 bf01000000 488d3513000000 ba{length} 0f05 b83c000000 bf07000000 0f05"
MILESTONE = b"cloche-agent: mounting\n"


@pytest.fixture
def guest(program: Path) -> Guest:
    """The guest that VMs boot, made ready for this agent."""
    found = current_guest(load_settings().data_root)
    assert found is not None, "run `cloche setup` first"
    return found


@pytest.fixture
def data_root(cloche: Runtime, guest: Guest, folder: Path) -> Path:
    """A data folder of the test's own: the guest of the real one, and no templates."""
    root = folder / "data"
    root.mkdir()
    (root / "guests").symlink_to(Path(guest.directory).parent)
    cloche.env["CLOCHE_DATA_ROOT"] = str(root)
    return root


@pytest.fixture
def small(bundle: Bundle) -> Bundle:
    """A bundle for the smallest VM, whose template is made in the least time."""
    bundle.linux["resources"] = {"memory": {"limit": SMALL}}
    return bundle.sh("echo ran")


def templates(root: Path) -> list[str]:
    """What is in the folder of templates, the lock aside."""
    return sorted(path.name for path in (root / "templates").iterdir() if path.name != ".lock")


def failure(cloche: Runtime, bundle: Bundle) -> str:
    """The one line that a `run` of *bundle* fails with; nothing may be left of it."""
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert cloche.leftovers() == []
    return message


def test_no_guest(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    cloche.env["CLOCHE_DATA_ROOT"] = str(folder / "empty")
    message = failure(cloche, bundle)
    assert f"guest: no kernel and initramfs in {folder}/empty" in message
    assert "run `cloche setup`" in message


def test_an_agent_that_is_named_and_not_there(cloche: Runtime, bundle: Bundle) -> None:
    cloche.env["CLOCHE_AGENT"] = "/does/not/exist"
    assert "cloche-agent: not found at /does/not/exist" in failure(cloche, bundle)


def test_a_kernel_that_is_named_and_not_in_the_guest(
    cloche: Runtime, guest: Guest, bundle: Bundle
) -> None:
    cloche.env["CLOCHE_KERNEL"] = "/does/not/exist"
    message = failure(cloche, bundle)
    assert "guest: the configuration names the kernel /does/not/exist, the guest has" in message
    assert "run `cloche setup`" in message
    cloche.env["CLOCHE_KERNEL"] = str(guest.manifest["kernel_directory"])
    assert cloche.run(bundle.sh("echo ran")).output == "ran"


def test_no_qemu(cloche: Runtime, bundle: Bundle) -> None:
    cloche.env["CLOCHE_QEMU"] = "/does/not/exist"
    message = failure(cloche, bundle)
    assert "QEMU: /does/not/exist is missing or not executable" in message
    assert "install qemu-system-x86" in message


def test_a_qemu_that_fails(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    program = folder / "qemu"
    program.write_text("#!/bin/sh\necho 'no such machine' >&2\nexit 9\n")
    program.chmod(0o755)
    cloche.env |= {"CLOCHE_QEMU": str(program), "CLOCHE_TEMPLATE": "off"}
    message = failure(cloche, bundle)
    assert "QEMU ended with exit status 9" in message
    assert "QEMU: no such machine" in message


@pytest.mark.parametrize("template", ["on", "off"])
def test_a_qemu_that_cannot_be_executed(
    cloche: Runtime, data_root: Path, bundle: Bundle, folder: Path, template: str
) -> None:
    """Said as it is, not as a template that could not be saved or a guest that does not boot."""
    program = folder / "qemu"
    program.write_text("#!/does/not/exist\n")
    program.chmod(0o755)
    cloche.env |= {"CLOCHE_QEMU": str(program), "CLOCHE_TEMPLATE": template}
    message = failure(cloche, bundle)
    assert "VM: QEMU was not executed: cannot start QEMU: exec: [Errno 2]" in message
    assert "milestone" not in message


@pytest.mark.parametrize("key", ["machine", "accel", "template"])
def test_a_setting_that_cannot_be(cloche: Runtime, bundle: Bundle, key: str) -> None:
    cloche.env[f"CLOCHE_{key.upper()}"] = "what"
    assert f"{key} = 'what': unknown value (use one of " in failure(cloche, bundle)


def test_a_missing_template_is_made_once_by_two(
    cloche: Runtime, data_root: Path, small: Bundle
) -> None:
    small.save()
    processes = [cloche.popen("run", "--bundle", small.path, cloche.new_id()) for _ in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert (output, process.returncode) == (b"ran\n", 0)
    assert len(templates(data_root)) == 1
    notes = cloche.messages("warning")
    assert any("VM: no template of 1 vCPU and 256 MiB" in note for note in notes)
    cloche.log.unlink()
    assert cloche.run(small).output == "ran"
    assert cloche.messages("warning") == []


def test_a_killed_maker_of_a_template_leaves_nothing_in_the_end(
    cloche: Runtime, data_root: Path, small: Bundle
) -> None:
    process = cloche.popen("run", "--bundle", small.save(), name := cloche.new_id())
    wait_until(lambda: list(data_root.glob("templates/.new-*/qemu.log")) != [], "QEMU boots")
    for pid, _ in host.processes(cloche.root):
        os.kill(pid, 9)
    process.wait()
    cloche("delete", "--force", name)
    assert cloche.run(small).output == "ran"
    (template,) = templates(data_root)
    assert not template.startswith(".")


@pytest.fixture
def full_disk(data_root: Path) -> Iterator[Path]:
    """The folder of templates on a disk of 1 MiB."""
    yield from mounted(data_root / "templates", "size=1m")


@pytest.fixture
def read_only_disk(data_root: Path) -> Iterator[Path]:
    """The folder of templates on a disk that cannot be written."""
    yield from mounted(data_root / "templates", "ro")


def mounted(path: Path, options: str) -> Iterator[Path]:
    """A tmpfs at *path*."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize(
    ("disk", "cause"),
    [("full_disk", "1 MiB free"), ("read_only_disk", "read-only file system")],
)
def test_a_template_that_cannot_be_saved_means_a_cold_boot(
    request: pytest.FixtureRequest, cloche: Runtime, small: Bundle, disk: str, cause: str
) -> None:
    path: Path = request.getfixturevalue(disk)
    assert cloche.run(small).output == "ran"
    (warning,) = cloche.messages("warning")
    assert warning.startswith("VM: cold boot: the template could not be saved: ")
    assert str(path) in warning
    assert cause in warning
    assert templates(path.parent) == []


def damaged(data_root: Path, name: str, size: int) -> None:
    """Give *data_root* the template that all tests use, with one of its files cut to *size*.

    It has no frozen QEMU: a start with one would not look at the template.
    """
    real = Path(load_settings().data_root) / "templates"
    for template in real.glob("microvm-*-1cpu-2048m-*"):
        copy = data_root / "templates" / template.name
        copy.mkdir(parents=True)
        for file in (path for path in template.iterdir() if path.is_file()):
            if file.name == "memory" and name != "memory":
                (copy / "memory").symlink_to(file)
            else:
                subprocess.run(["cp", "--sparse=always", file, copy / file.name], check=True)
        os.truncate(copy / name, size)


@pytest.mark.parametrize(("name", "size"), [("device", 5000), ("memory", 1 << 20)])
def test_a_damaged_template_is_made_anew(
    cloche: Runtime, bundle: Bundle, data_root: Path, name: str, size: int
) -> None:
    damaged(data_root, name, size)
    assert cloche.run(bundle.sh("echo ran")).output == "ran"
    assert any("no template of 1 vCPU" in note for note in cloche.messages("warning"))
    cloche.log.unlink()
    assert cloche.run(bundle).output == "ran"
    assert cloche.messages("warning") == []


def program_that_says_and_exits() -> bytes:
    """A static x86-64 program: it prints a boot milestone and exits, in 160 bytes."""
    length = len(MILESTONE).to_bytes(4, "little").hex()
    code = bytes.fromhex(SAY_AND_EXIT.format(length=length).replace(" ", "")) + MILESTONE
    base, header = 0x400000, 64 + 56
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += (2).to_bytes(2, "little") + (62).to_bytes(2, "little") + (1).to_bytes(4, "little")
    elf += (base + header).to_bytes(8, "little") + (64).to_bytes(8, "little") + bytes(12)
    elf += b"".join(number.to_bytes(2, "little") for number in (64, 56, 1, 0, 0, 0))
    size = (header + len(code)).to_bytes(8, "little")
    segment = (1).to_bytes(4, "little") + (5).to_bytes(4, "little") + bytes(8)
    segment += base.to_bytes(8, "little") * 2 + size * 2 + (4096).to_bytes(8, "little")
    return elf + segment + code


@pytest.mark.parametrize("template", ["on", "off"])
def test_a_guest_that_does_not_come_up(
    cloche: Runtime, guest: Guest, bundle: Bundle, folder: Path, template: str
) -> None:
    agent = folder / "agent"
    agent.write_bytes(program_that_says_and_exits())
    agent.chmod(0o755)
    kernel = load_kernel(Path(str(guest.manifest["kernel_directory"])))
    assert kernel is not None
    build_guest(folder / "data", kernel, agent)
    cloche.env |= {
        "CLOCHE_DATA_ROOT": str(folder / "data"),
        "CLOCHE_AGENT": str(agent),
        "CLOCHE_TEMPLATE": template,
    }
    message = failure(cloche, bundle)
    assert "VM: booting the guest kernel: " in message
    assert "last boot milestone: mounting" in message
    assert "Attempted to kill init" in message
    assert "QEMU: (silent)" in message
    left = {path.name for path in (folder / "data").glob("templates/*")}
    assert left <= {".lock"}


def test_a_full_disk_under_the_root(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    disk = folder / "disk"
    for path in mounted(disk, "size=4k,nr_inodes=4"):
        (path / "filler").write_bytes(bytes(4096))
        arguments = ("--root", path / "root", "create", "--bundle", bundle.save(), "full")
        message = cloche.fails(*arguments)
        assert "no space left on device" in message.lower()
        assert host.processes(path / "root") == []
        assert not (path / "root/full").exists()


def test_a_disk_that_is_full_when_the_program_is_to_start(
    cloche: Runtime, bundle: Bundle, folder: Path
) -> None:
    for path in mounted(folder / "disk", "size=256k"):
        cloche.root = path / "root"
        container = cloche.create(bundle.sh("sleep 300"))
        with contextlib.suppress(OSError), (path / "filler").open("wb") as filler:
            filler.write(bytes(1 << 20))
        message = cloche.fails("start", container.id)
        assert "state.json: cannot write it: no space left on device" in message
        # It has not run, and can do so as soon as there is room.
        assert container.status == "created"
        (path / "filler").unlink()
        container.start()
        assert container.status == "running"
        cloche.clean_up()


def test_a_guest_whose_kernel_is_gone(
    cloche: Runtime, guest: Guest, bundle: Bundle, folder: Path
) -> None:
    copy = folder / "data/guests" / guest.key
    shutil.copytree(guest.directory, copy)
    (folder / "data/guests/current").symlink_to(guest.key)
    (copy / "vmlinux").unlink()
    cloche.env["CLOCHE_DATA_ROOT"] = str(folder / "data")
    assert "run `cloche setup`" in failure(cloche, bundle)

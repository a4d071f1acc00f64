"""A frozen QEMU that is damaged, out of date or impossible: the container runs all the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloche.guest.guest import guest_for
from cloche.heart.frozen_maker import SHARES, make_frozen, work_prefix
from cloche.heart.machine import boot_of, choose_shape, find_variants
from cloche.model.config import load_settings
from cloche.vmm import preload
from cloche.vmm.frozen import RETRY_SOON_S, load_frozen
from cloche.vmm.script import PAGE, RETURN, SPAWN
from cloche.vmm.template import template_image
from cloche.vmm.template_maker import make_template
from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .frozen import (
    SMALL,
    FrozenQemu,
    is_thawed,
    limited,
    made_by_a_start,
    open_files,
    own_data_root,
    qemu,
    warnings,
)
from .runtime import Container, Runtime

NOT_THAWED = "QEMU could not be thawed ("
# A system call that no kernel has, and its error.
NO_CALL, ENOSYS = 9999, 38
PAUSE, SECCOMP, MMAP = 34, 317, 9
SIZE = "1 vCPU and 256 MiB"


@pytest.fixture(scope="module")
def made(program: Path, busybox_root: Path, tmp_path_factory: pytest.TempPathFactory) -> FrozenQemu:
    """A frozen QEMU that the tests of this module share; each gets it whole."""
    frozen, told = made_by_a_start(program, busybox_root, tmp_path_factory.mktemp("frozen"))
    assert f"VM: no template of {SIZE}: booted and saved one" in told
    assert f"VM: no frozen QEMU of {SIZE}: made one" in told
    frozen.keep()
    return frozen


@pytest.fixture
def frozen(cloche: Runtime, made: FrozenQemu) -> Iterator[FrozenQemu]:
    """The frozen QEMU that starts of this test take."""
    cloche.env["CLOCHE_DATA_ROOT"] = str(made.root)
    yield made
    made.repair()


@pytest.fixture
def small(bundle: Bundle) -> Bundle:
    """A bundle for its VM."""
    return limited(bundle)


def steps_of(frozen: FrozenQemu, number: int) -> list[int]:
    """Where the steps with this number are."""
    found = [offset for offset, words in frozen.steps().items() if words[0] == number]
    assert found, f"no step {number}"
    return found


def zeroed(frozen: FrozenQemu) -> str:
    """The script is gone."""
    frozen.write(0, bytes(PAGE))
    return "cloche-thaw: call 00000017: error 00000032"  # what was read is no image


def first_step_fails(frozen: FrozenQemu) -> str:
    """At once."""
    frozen.replace_step(next(iter(frozen.steps())), NO_CALL)
    return f"cloche-thaw: call {NO_CALL:08}: error {ENOSYS:08}"


def memory_is_taken(frozen: FrozenQemu) -> str:
    """A region is where another one is already: EEXIST."""
    first, second = steps_of(frozen, MMAP)[:2]
    address = frozen.steps()[first][1]
    words = frozen.steps()[second]
    frozen.replace_step(second, words[0], address, *words[2:])
    return f"cloche-thaw: call {MMAP:08}: error {17:08}"


def sandbox_fails(frozen: FrozenQemu) -> str:
    """The filters cannot be installed."""
    frozen.replace_step(steps_of(frozen, SECCOMP)[0], NO_CALL)
    return f"cloche-thaw: call {NO_CALL:08}: error {ENOSYS:08}"


def fails_among_threads(frozen: FrozenQemu) -> str:
    """The other threads go on already, and the filters are in force."""
    offset = steps_of(frozen, SPAWN)[-1] + 64
    frozen.replace_step(offset, NO_CALL)
    return f"cloche-thaw: call {NO_CALL:08}: error {ENOSYS:08}"


def crashes(frozen: FrozenQemu) -> str:
    """There is no frame to return from."""
    frozen.replace_step(steps_of(frozen, RETURN)[-1], RETURN, 0)
    return "signal 11; "


def hangs(frozen: FrozenQemu) -> str:
    """The main thread waits for a signal that never comes: QEMU is given 5 s."""
    frozen.replace_step(steps_of(frozen, RETURN)[-1], PAUSE)
    return "(it did not go on within 15 s; "


DAMAGES = [zeroed, first_step_fails, memory_is_taken, sandbox_fails, fails_among_threads, crashes]


@pytest.mark.parametrize("damage", [*DAMAGES, hangs])
def test_a_thaw_that_fails_means_a_start_from_the_template(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle, damage: Callable[[FrozenQemu], str]
) -> None:
    cause = damage(frozen)
    result = cloche.run(small.sh("echo ran; exit 7"), code=7)
    assert (result.output, result.stderr) == ("ran", "")
    (warning,) = cloche.messages("warning")
    assert NOT_THAWED in warning
    assert cause in warning
    assert cloche.leftovers() == []
    # The next start does not try that again.
    cloche.log.unlink()
    frozen_anew(cloche, frozen, small)
    frozen.keep()


def cgroups_of(pid: int) -> str:
    """What it is in, in every hierarchy."""
    return Path(f"/proc/{pid}/cgroup").read_text()


@pytest.fixture
def fallen_back(cloche: Runtime, frozen: FrozenQemu, small: Bundle) -> Container:
    """A running container whose thaw has failed late."""
    fails_among_threads(frozen)
    small.mount("/data", "bind", small.path, "bind")
    container = cloche.create(small)
    container.start()
    return container


def test_a_container_whose_thaw_has_failed_is_as_any_other(
    fallen_back: Container, frozen: FrozenQemu, small: Bundle
) -> None:
    cloche = fallen_back.runtime
    assert not is_thawed(fallen_back)
    assert NOT_THAWED in warnings(cloche)
    frozen.repair()
    cloche.env["CLOCHE_FREEZE"] = "off"
    usual = cloche.create(small)
    usual.start()
    for container in (fallen_back, usual):
        assert container.sh("cat; ls /data/config.json", data=b"in\n").lines[0] == "in"
        assert container.state()["status"] == "running"
    # QEMU is in the same cgroups, of its own container.
    ours, theirs = (cgroups_of(qemu(each)).replace(each.id, "ID") for each in (fallen_back, usual))
    assert ours == theirs
    assert "/ID\n" in ours
    # Neither QEMU nor the supervisor holds anything of the one that has failed.
    for pids in ((qemu(fallen_back), qemu(usual)), (fallen_back.pid, usual.pid)):
        files = [open_files(pid) for pid in pids]
        names = [
            sorted(each.replace(container.id, "ID") for each in found)
            for found, container in zip(files, (fallen_back, usual), strict=True)
        ]
        assert names[0] == names[1]
    fallen_back.end()
    wait_until(lambda: host.processes(cloche.root / fallen_back.id) == [], "QEMU has ended")


@pytest.fixture
def damaged_template(frozen: FrozenQemu) -> Iterator[Path]:
    """The state of the devices, cut off; the frozen QEMU does not thaw."""
    zeroed(frozen)
    device = frozen.folder.parent / "device"
    state = device.read_bytes()
    device.write_bytes(state[:5000])
    yield device
    device.write_bytes(state)


def test_what_a_failed_thaw_leads_to_is_told_too(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle
) -> None:
    zeroed(frozen)
    template = frozen.folder.parent
    aside = template.rename(frozen.root / "aside")
    template.mkdir()
    (template / "frozen").symlink_to(aside / "frozen")
    try:
        assert cloche.run(small.sh("echo ran")).output == "ran"
    finally:
        shutil.rmtree(template)
        aside.rename(template)
    told = warnings(cloche)
    assert NOT_THAWED in told
    assert f"VM: no template of {SIZE}: booted and saved one" in told


def test_a_failed_thaw_and_a_failed_restore(
    cloche: Runtime, damaged_template: Path, small: Bundle
) -> None:
    """One error that says so, and nothing is left."""
    manifest = damaged_template.parent / "manifest.json"
    known = manifest.read_text()
    checksum = zlib.crc32(damaged_template.read_bytes())
    manifest.write_text(json.dumps(json.loads(known) | {"device_crc32": checksum}))
    message = cloche.fails("run", "--bundle", small.save(), cloche.new_id())
    manifest.write_text(known)
    assert "VM: restoring the template: " in message
    assert cloche.leftovers() == []


def test_a_failed_thaw_and_a_damaged_kernel(
    cloche: Runtime, frozen: FrozenQemu, damaged_template: Path, small: Bundle
) -> None:
    """The same where the template cannot be made anew: no QEMU is to boot such a kernel."""
    guests = frozen.root / "guests"
    real = guests.readlink()
    guests.unlink()
    shutil.copytree(real, guests, symlinks=True)
    for kernel in guests.glob("*/vmlinux"):
        size = kernel.stat().st_size
        os.truncate(kernel, 0)
        os.truncate(kernel, size)
    process = cloche.popen("run", "--bundle", small.save(), cloche.new_id())
    try:
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        for pid, _ in host.processes(cloche.root):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(guests)
        guests.symlink_to(real)
    assert process.returncode == 1
    assert b"damaged: its checksum is not the maker's" in errors
    assert cloche.leftovers() == []


def frozen_anew(cloche: Runtime, frozen: FrozenQemu, small: Bundle) -> None:
    """The next start makes one, with a warning; the one after it thaws."""
    assert cloche.run(small.sh("echo ran")).output == "ran"
    assert cloche.messages("warning") == [f"VM: no frozen QEMU of {SIZE}: made one"]
    cloche.log.unlink()
    container = cloche.start(small.args("sleep", "1000"))
    assert cloche.messages("warning") == []
    assert is_thawed(container)
    container.end()
    assert frozen.manifest["problem"] == ""


def library_is_newer(frozen: FrozenQemu) -> None:
    """As if libc had been upgraded."""

    def change(manifest: dict[str, list[list[int]]]) -> None:
        (libc,) = [each for each in manifest["files"] if "/libc.so" in str(each[0])]
        libc[2] -= 1

    frozen.write_manifest(change)


def kernel_is_newer(frozen: FrozenQemu) -> None:
    """As if the host had another kernel, after a reboot."""
    release = os.uname().release

    def change(manifest: dict[str, list[str]]) -> None:
        parts = manifest["identity"]
        parts[parts.index(release)] = "5.10.0-1-amd64"

    frozen.write_manifest(change)


@pytest.mark.parametrize(
    "damage",
    [
        library_is_newer,
        kernel_is_newer,
        lambda frozen: os.truncate(frozen.image, 1 << 20),
        lambda frozen: frozen.image.unlink(),
    ],
    ids=["library", "kernel", "short image", "no image"],
)
def test_one_that_does_not_fit_is_made_anew(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle, damage: Callable[[FrozenQemu], None]
) -> None:
    damage(frozen)
    frozen_anew(cloche, frozen, small)
    frozen.keep()


def test_of_two_that_want_the_same_one_makes_it(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle
) -> None:
    library_is_newer(frozen)
    small.sh("echo ran").save()
    processes = [cloche.popen("run", "--bundle", small.path, cloche.new_id()) for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert (output, process.returncode) == (b"ran\n", 0), errors
    # One makes it; the other one does not wait for that.
    assert warnings(cloche) == f"VM: no frozen QEMU of {SIZE}: made one"
    assert is_thawed(cloche.start(small.args("sleep", "1000")))
    assert cloche.messages("warning") == []
    frozen.keep()


def test_a_killed_maker_leaves_nothing_in_the_end(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle
) -> None:
    library_is_newer(frozen)
    process = cloche.popen("run", "--bundle", small.save(), name := cloche.new_id())
    templates = frozen.root / "templates"
    prefix = work_prefix(os.path.realpath(templates))
    wait_until(lambda: list(Path(SHARES).glob(f"{prefix}*/qemu.log")) != [], "QEMU runs")
    for pid, _ in host.processes(cloche.root):
        os.kill(pid, 9)
    process.wait()
    cloche("delete", "--force", name)
    frozen_anew(cloche, frozen, small)
    frozen.keep()
    assert list(Path(SHARES).glob(f"{prefix}*")) == []


def test_what_this_host_cannot_do_is_not_tried_at_each_start(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle
) -> None:
    """A problem that was noted: the template does, and nothing is said at each start."""

    def change(manifest: dict[str, object]) -> None:
        manifest |= {"problem": "ptrace of 7: not permitted", "time": time.time()}

    frozen.write_manifest(change)
    for _ in range(2):
        container = cloche.start(small)
        assert not is_thawed(container)
        assert cloche.messages("warning") == []
        container.end()


def test_without_the_preload_none_is_made(
    made: FrozenQemu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """GnuTLS's random generator would be in its memory, and go on alike in all VMs."""
    guest = guest_for(str(made.root), None)
    assert guest is not None
    variants, root = find_variants(load_settings()), str(tmp_path)
    shape = choose_shape(variants, guest, SMALL, None)
    template = make_template(root, shape, variants, lambda: boot_of(guest, shape))
    monkeypatch.setattr(preload, "preload_candidates", list)
    assert make_frozen(root, shape, template, again=True) is None
    _, problem = load_frozen(root, shape)
    assert "all VMs would draw the same random numbers" in problem
    monkeypatch.undo()
    assert make_frozen(root, shape, template, again=True) is not None


def test_a_copy_of_a_data_folder_is_on_its_own(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle, folder: Path
) -> None:
    """A frozen QEMU knows its files by their names: with another name it is another one."""
    root = own_data_root(folder / "copy")
    subprocess.run(["cp", "-a", "--sparse=always", frozen.root / "templates", root], check=True)
    cloche.env["CLOCHE_DATA_ROOT"] = str(root)
    assert cloche.run(small.sh("echo ran")).output == "ran"
    container = cloche.start(small.args("sleep", "1000"))
    maps = Path(f"/proc/{qemu(container)}/maps").read_text()
    assert f"{root}/" in maps
    assert f"{frozen.root}/" not in maps


def test_a_data_folder_that_is_a_link(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle, folder: Path
) -> None:
    (folder / "link").symlink_to(frozen.root)
    library_is_newer(frozen)
    cloche.env["CLOCHE_DATA_ROOT"] = str(folder / "link")
    frozen_anew(cloche, frozen, small)


def mounted(path: Path, options: str) -> Iterator[Path]:
    """A tmpfs at *path*."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def full_disk(cloche: Runtime, made: FrozenQemu, folder: Path) -> Iterator[Path]:
    """A folder of templates with a template, and hardly any room for more."""
    root = own_data_root(folder / "data")
    (root / "templates").mkdir()
    cloche.env["CLOCHE_DATA_ROOT"] = str(root)
    for path in mounted(root / "templates", "size=200m"):
        template = made.folder.parent
        (path / template.name).mkdir()
        for name in ("device", "memory", "manifest.json"):
            target = path / template.name / name
            subprocess.run(["cp", "--sparse=always", template / name, target], check=True)
        # Else it is read after the first start, and the file system is in use for so long.
        template_image(str(path / template.name)).note_known()
        yield path


def test_no_space_for_one_means_a_start_from_the_template(
    cloche: Runtime, full_disk: Path, small: Bundle
) -> None:
    (template,) = full_disk.glob("*/manifest.json")
    container = cloche.start(small)
    assert not is_thawed(container)
    (warning,) = cloche.messages("warning")
    assert warning.startswith("VM: started from its template: no frozen QEMU could be made: ")
    assert f"{full_disk} has " in warning
    assert "free some space" in warning
    assert not (template.parent / "frozen").exists()


def test_a_disk_that_fills_up_meanwhile(cloche: Runtime, full_disk: Path, small: Bundle) -> None:
    """There is enough room at first. It is said and noted, and not tried again for 5 minutes."""
    has = sum(1 for _ in full_disk.rglob("*")) + 1  # itself
    # Room for the lock, its folder and its memory; the manifest takes the memory's place.
    options = f"remount,size=1g,nr_inodes={has + 3}"
    subprocess.run(["mount", "-o", options, full_disk], check=True)
    for told in (1, 0):
        container = cloche.start(small)
        assert not is_thawed(container)
        warnings = cloche.messages("warning")
        assert len(warnings) == told
        assert all("no frozen QEMU could be made: " in each for each in warnings)
        assert all("No space left on device" in each for each in warnings)
        cloche.log.unlink(missing_ok=True)
        container.end()
    (manifest,) = full_disk.glob("*/frozen/manifest.json")
    noted = json.loads(manifest.read_text())
    assert "No space left on device" in noted["problem"]
    assert noted["retry"] == RETRY_SOON_S
    assert [path.name for path in manifest.parent.iterdir()] == [manifest.name]

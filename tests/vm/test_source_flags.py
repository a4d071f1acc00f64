"""Bind mounts have the flags of the mounts that their sources lie on, as runc's have."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .bundles import Bundle
from .programs import TELLS_USER, write_program
from .runtime import Runtime
from .test_mount_options import told
from .test_process import same_under_runc

SOURCES = (
    "", "nosuid", "nodev", "noexec", "ro", "noatime", "nodiratime", "strictatime", "nosymfollow",
    "nosuid,nodev", "nosuid,nodev,noexec,ro,noatime",
)  # fmt: skip
OPTIONS = (
    (), ("rw",), ("rprivate", "nodev"), ("nosuid",), ("noexec",), ("noatime",), ("nodiratime",),
    ("relatime",), ("rnodev",), ("suid", "dev"), ("ro",), ("silent",),
)  # fmt: skip


@contextmanager
def mounted(folder: Path, options: str = "", kind: str = "tmpfs") -> Iterator[Path]:
    """A new file system on *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    # In two steps: flags of the mount, not of the file system.
    subprocess.run(["mount", "-t", kind, kind, str(folder)], check=True)
    try:
        (folder / "file").write_text("there\n")
        if options:
            subprocess.run(["mount", "-o", f"remount,bind,{options}", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def trap(folder: Path) -> Iterator[Path]:
    """A file system with nosuid and nodev, and on it a program of root's and a device for all."""
    with mounted(folder / "trap", "nosuid,nodev") as trap:
        write_program(trap / "euid", TELLS_USER)
        (trap / "euid").chmod(0o4755)
        os.mknod(trap / "null", 0o20666, os.makedev(1, 3))
        (trap / "null").chmod(0o666)
        yield trap


@pytest.mark.parametrize("options", [("bind",), ("rbind", "rprivate"), ("bind", "rw")])
def test_neither_setuid_programs_nor_devices_where_the_host_trusts_none(
    cloche: Runtime, runc: Runtime, bundle: Bundle, trap: Path, options: tuple[str, ...]
) -> None:
    bundle.mount("/trap", "bind", trap, *options)
    bundle.config["process"] |= {"user": {"uid": 1000, "gid": 1000}, "noNewPrivileges": False}
    bundle.linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    result = same_under_runc(
        cloche, runc, bundle.sh("/trap/euid; echo $?; cat /trap/null || echo closed")
    )
    assert result.lines == [str(1000 % 256), "closed"]


def test_the_flags_are_as_under_runc(
    cloche: Runtime, runc: Runtime, bundle: Bundle, folder: Path
) -> None:
    with ExitStack() as mounts:
        for number, source in enumerate(SOURCES):
            place = mounts.enter_context(mounted(folder / f"source{number}", source))
            for options in OPTIONS:
                name = f"/m/{source}+{','.join(options)}"
                bundle.mount(name, "bind", place, "rbind", "rprivate", *options)
            bundle.mount(f"/m/{source}+file", "bind", place / "file", "bind", "rprivate")
        ours, theirs = (told(runtime, bundle, "/m/") for runtime in (cloche, runc))
    assert len(ours) == len(SOURCES) * (len(OPTIONS) + 1)
    # What is read-only on the host stays so here.
    lost = {name for name in theirs if ours[name] != theirs[name]}
    for name in lost:
        assert "ro" in name[3:].partition("+")[0].split(",")
        assert ours[name][0].split(",")[1:] == theirs[name][0].split(",")[1:], name
        assert (ours[name][0][:3], theirs[name][0][:3]) == ("ro,", "rw,")
    assert lost
    assert ours["/m/nosuid,nodev+"] == ["rw,nosuid,nodev,relatime"]
    assert ours["/m/nosuid,nodev+noexec"] == ["rw,noexec,relatime"]


def test_mounts_below_a_recursive_bind_keep_theirs(
    cloche: Runtime, runc: Runtime, bundle: Bundle, folder: Path
) -> None:
    """Those that do not do where theirs do: cloche adds the flags of what is above them."""
    with ExitStack() as mounts:
        top = mounts.enter_context(mounted(folder / "top"))
        for path, options in (
            ("plain", ""), ("plain/deep", "nosuid"), ("closed", "nosuid,noexec"),
            ("closed/same", "noexec"), ("with space", "nodev,ro"), ("hidden/inner", "nosuid"),
            ("hidden", ""),
        ):  # fmt: skip
            mounts.enter_context(mounted(top / path, options))
        subprocess.run(["mount", "--bind", "/etc/hostname", str(top / "file")], check=True)
        mounts.callback(subprocess.run, ["umount", "-l", str(top / "file")], check=True)
        remount = ["mount", "-o", "remount,bind,nosuid", str(top / "file")]
        subprocess.run(remount, check=True)
        bundle.mount("/m", "bind", top, "rbind", "rprivate")
        bundle.mount("/n", "bind", top, "bind", "rprivate")
        bundle.mount("/named", "bind", top, "rbind", "rprivate", "noatime", "nodev")
        ours, theirs = (told(runtime, bundle, "/") for runtime in (cloche, runc))
    for path, flags in {
        "/m": "rw", "/m/plain/deep": "rw,nosuid", "/m/closed": "rw,nosuid,noexec",
        r"/m/with\040space": "ro,nodev", "/m/file": "rw,nosuid",
    }.items():  # fmt: skip
        assert ours[path] == theirs[path] == [f"{flags},relatime"]
    assert {path for path in ours if path.startswith("/n/")} == set()
    assert "/m/plain" not in ours  # as what is above it
    assert theirs["/m/closed/same"][0].startswith("rw,noexec")
    assert ours["/named/closed"][0].startswith("rw,nosuid,nodev,noexec")


def test_a_root_on_a_file_system_that_trusts_no_setuid_programs(
    cloche: Runtime, runc: Runtime, new_bundle: Callable[[], Bundle], trap: Path
) -> None:
    bundle = new_bundle()
    shutil.copytree(bundle.rootfs, trap / "rootfs", symlinks=True)
    shutil.copy(trap / "euid", trap / "rootfs/euid")
    bundle.config["root"]["path"] = str(trap / "rootfs")
    bundle.config["process"] |= {"user": {"uid": 1000, "gid": 1000}, "noNewPrivileges": False}
    script = "/euid; echo $?; awk '$5 == \"/\" {print $6}' /proc/self/mountinfo"
    for readonly, uid in ((False, "232"), (True, "0")):
        # Read-only is a flag that is named, as of a bind mount.
        bundle.config["root"]["readonly"] = readonly
        result = same_under_runc(cloche, runc, bundle.sh(script))
        flags = "ro,relatime" if readonly else "rw,nosuid,nodev,relatime"
        assert result.lines == [uid, flags]


def test_an_engines_shared_memory(
    cloche: Runtime, runc: Runtime, bundle: Bundle, folder: Path
) -> None:
    with mounted(folder / "shm", "nosuid,nodev,noexec") as shm:
        bundle.without_mount("/dev/shm").mount("/dev/shm", "bind", shm, "rbind", "rprivate")
        ours, theirs = (told(runtime, bundle, "/dev/shm ") for runtime in (cloche, runc))
    assert ours == theirs == {"/dev/shm": ["rw,nosuid,nodev,noexec,relatime"]}


def test_a_user_namespace_takes_no_flag_away(
    cloche: Runtime, runc: Runtime, bundle: Bundle, trap: Path
) -> None:
    ids = [{"containerID": 0, "hostID": 0, "size": 65536}]
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = ids
    bundle.mount("/m/plain", "bind", trap, "bind", "rprivate")
    bundle.mount("/m/named", "bind", trap, "bind", "rprivate", "noexec")
    assert told(cloche, bundle, "/m/") == {
        "/m/plain": ["rw,nosuid,nodev,relatime"],
        "/m/named": ["rw,nosuid,nodev,noexec,relatime"],
    }
    # There the kernel refuses to, and runc 1.1 has no other way.
    assert "operation not permitted" in runc.run(bundle, code=1).stderr


def test_a_remount_names_all_its_flags(
    cloche: Runtime, runc: Runtime, bundle: Bundle, trap: Path
) -> None:
    bundle.mount("/m", "bind", trap, "bind", "rprivate")
    bundle.mount("/m", "bind", trap, "bind", "rprivate", "remount", "noexec")
    ours, theirs = (told(runtime, bundle, "/m ") for runtime in (cloche, runc))
    assert ours == theirs

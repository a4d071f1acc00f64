"""Mount options against runc: flags, recursive ones, propagation, mapped owners, overlays."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloche.model.mounts import FLAGS, PROPAGATION, RECURSIVE

from .bundles import Bundle
from .runtime import Runtime
from .test_process import same_under_runc

# The optional fields of /proc/self/mountinfo, whose numbers differ, are kept by their names.
SHOW = "grep ' {0}' /proc/self/mountinfo | cut -d' ' -f5- | sed 's/:[0-9]*//g; s/ - .*//'"
# runc 1.1 takes these as an option of tmpfs, or sends what mount_setattr(2) refuses.
UNKNOWN_TO_RUNC = {"defaults", "ratime", "rnostrictatime"}


@pytest.fixture
def nested(data: Path) -> Iterator[Path]:
    """That folder, with a mount of the host's below it."""
    inner = data / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inner)], check=True)
    (inner / "file").write_text("nested\n")
    yield data
    subprocess.run(["umount", str(inner)], check=True)


def told(runtime: Runtime, bundle: Bundle, prefix: str) -> dict[str, list[str]]:
    """What the container sees of its mounts below *prefix*: path → flags and propagation."""
    lines = runtime.run(bundle.sh(SHOW.format(prefix))).lines
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_flags_of_bind_mounts_are_as_under_runc(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path
) -> None:
    options = sorted({*FLAGS, *RECURSIVE} - {"remount", *UNKNOWN_TO_RUNC})
    for option in options:
        bundle.mount(f"/m/{option}", "bind", data, "rbind", "rprivate", option)
    bundle.mount("/m/two", "bind", data, "bind", "rprivate", "rro", "nosuid", "rnoatime")
    ours, theirs = (told(runtime, bundle, "/m/") for runtime in (cloche, runc))
    assert len(ours) == len(options) + 1
    assert ours == theirs
    assert ours["/m/rro"] == ["ro,relatime"]
    assert ours["/m/rnosymfollow"] == ["rw,relatime,nosymfollow"]


def test_flags_of_a_tmpfs_are_as_under_runc(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    options = sorted({*FLAGS} - {"remount", "bind", "rbind", *UNKNOWN_TO_RUNC})
    for option in options:
        bundle.mount(f"/m/{option}", "tmpfs", "tmpfs", "rprivate", option)
    ours, theirs = (told(runtime, bundle, "/m/") for runtime in (cloche, runc))
    assert len(ours) == len(options)
    assert ours == theirs


def test_recursive_options_of_a_tmpfs(cloche: Runtime, bundle: Bundle) -> None:
    """runc 1.1 forgets them for all but bind mounts."""
    bundle.mount("/m/one", "tmpfs", "tmpfs", "rro", "rnosuid")
    bundle.mount("/etc/skel", "tmpfs", "tmpfs", "tmpcopyup", "rro", "shared")
    assert told(cloche, bundle, "/m/") == {"/m/one": ["ro,nosuid,relatime"]}
    assert told(cloche, bundle, "/etc/skel") == {"/etc/skel": ["ro,relatime", "shared"]}


def test_propagation_is_as_under_runc(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    for mode in PROPAGATION:
        bundle.mount(f"/m/{mode}", "tmpfs", "tmpfs", mode)
    ours, theirs = (told(runtime, bundle, "/m/") for runtime in (cloche, runc))
    assert ours == theirs
    assert ours["/m/rshared"][1:] == ["shared"]
    assert ours["/m/unbindable"][1:] == ["unbindable"]


def test_mounts_propagate_between_shared_binds(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    """What is mounted inside on one side of a shared pair appears on the other."""
    bundle.mount("/a", "tmpfs", "tmpfs", "shared").capabilities("CAP_SYS_ADMIN")
    script = "mkdir /a/x /b; mount --bind /a /b; mount -t tmpfs t /a/x; touch /a/x/y; ls /b/x"
    assert cloche.run(bundle.sh(script)).output == "y"


@pytest.mark.parametrize("kind", ["bind", "rbind"])
def test_mounts_below_a_source(
    cloche: Runtime, runc: Runtime, bundle: Bundle, nested: Path, kind: str
) -> None:
    bundle.mount("/data", "bind", nested, kind)
    result = same_under_runc(cloche, runc, bundle.sh("ls /data/inner | wc -l"))
    assert result.output == ("1" if kind == "rbind" else "0")


def test_recursively_read_only(
    cloche: Runtime, runc: Runtime, bundle: Bundle, nested: Path
) -> None:
    bundle.mount("/data", "bind", nested, "rbind", "rro")
    bundle.sh("touch /data/x; touch /data/inner/x; cat /data/inner/file")
    result = same_under_runc(cloche, runc, bundle)
    assert result.output == "nested"
    assert result.stderr.count("Read-only file system") == 2


def test_read_only_covers_what_the_host_has_mounted_below(
    cloche: Runtime, bundle: Bundle, nested: Path
) -> None:
    """Unlike runc: in the guest it is one mount."""
    bundle.mount("/data", "bind", nested, "rbind", "ro")
    result = cloche.run(bundle.sh("touch /data/inner/x"), code=1)
    assert "Read-only file system" in result.stderr


def ids(*ranges: tuple[int, int, int]) -> list[dict[str, int]]:
    """Mappings as config.json has them."""
    return [dict(zip(("containerID", "hostID", "size"), each, strict=True)) for each in ranges]


def mapped(bundle: Bundle, uids: list[dict[str, int]], gids: list[dict[str, int]]) -> None:
    """Give the last mount of *bundle* mapped owners."""
    bundle.config["mounts"][-1] |= {"uidMappings": uids, "gidMappings": gids}


@pytest.mark.parametrize("option", ["idmap", "ridmap", "rw"])
def test_owners_can_be_mapped(cloche: Runtime, bundle: Bundle, data: Path, option: str) -> None:
    os.chown(data / "file", 1000, 1001)
    bundle.mount("/data", "bind", data, "bind", option)
    mapped(bundle, ids((0, 0, 1), (1000, 2000, 10)), ids((0, 0, 1), (1000, 3000, 10)))
    bundle.capabilities("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER")
    script = "cd /data; stat -c %u:%g file; echo x >new; chown 2003:3004 new; chown 7 file"
    result = cloche.run(bundle.sh(script), code=1)
    assert result.output == "2000:3001"
    assert "chown: file: " in result.stderr
    new = (data / "new").stat()
    assert (new.st_uid, new.st_gid, (data / "file").stat().st_uid) == (1003, 1004, 1000)


def test_owners_below_are_mapped_by_ridmap_only(
    cloche: Runtime, bundle: Bundle, nested: Path
) -> None:
    every = ids((0, 0, 1), (1, 5, 1))
    os.chown(nested / "file", 1, 1)
    os.chown(nested / "inner/file", 1, 1)
    for path, option in (("/one", "idmap"), ("/all", "ridmap")):
        bundle.mount(path, "bind", nested, "rbind", option)
        mapped(bundle, every, every)
    script = "stat -c %u /one/file /one/inner/file /all/file /all/inner/file"
    assert cloche.run(bundle.sh(script)).lines == ["5", "1", "5", "5"]


def test_mapped_owners_of_what_is_only_read(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    os.chown(data / "file", 3, 3)
    bundle.mount("/data", "bind", data, "bind", "ro", "idmap")
    mapped(bundle, ids((3, 70000, 1)), ids((3, 70001, 1)))
    result = cloche.run(bundle.sh("stat -c %u:%g /data/file; cat /data/file"))
    assert result.lines == ["70000:70001", "from the host"]


def test_owners_mapped_as_the_containers_user_namespace(
    cloche: Runtime, bundle: Bundle, data: Path
) -> None:
    """Its root makes and owns files of the host's root."""
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = ids((0, 100000, 65536))
    bundle.linux["gidMappings"] = ids((0, 200000, 65536))
    for path in (bundle.rootfs, *bundle.rootfs.rglob("*")):
        os.lchown(path, 100000, 200000)
    os.chown(data / "file", 5, 6)
    bundle.mount("/mapped", "bind", data, "bind", "idmap")
    bundle.mount("/plain", "bind", data, "bind", "ro")
    script = "stat -c %u:%g /mapped/file /plain/file; mkdir /mapped/new; stat -c %u:%g /mapped/new"
    assert cloche.run(bundle.sh(script)).lines == ["5:6", "65534:65534", "0:0"]
    assert ((data / "new").stat().st_uid, (data / "new").stat().st_gid) == (0, 0)


def test_a_file_system_without_mapped_owners(cloche: Runtime, bundle: Bundle) -> None:
    bundle.mount("/data", "bind", "/sys/kernel", "bind", "ro", "idmap")
    mapped(bundle, ids((0, 5, 1)), ids((0, 5, 1)))
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "share: cannot map ids of /sys/kernel: invalid argument" in message
    assert cloche.leftovers() == []


def test_an_overlay_of_folders_of_the_host(
    cloche: Runtime, runc: Runtime, new_bundle: Callable[[], Bundle], folder: Path
) -> None:
    for number, runtime in enumerate((cloche, runc)):
        layers = {name: folder / f"{name}{number}" for name in ("lower", "upper", "work")}
        for layer in layers.values():
            layer.mkdir()
        (layers["lower"] / "file").write_text("low\n")
        (layers["lower"] / "gone").write_text("low\n")
        options = (f"{name}dir={layer}" for name, layer in layers.items())
        bundle = new_bundle().mount("/data", "overlay", "overlay", "nosuid", *options)
        bundle.sh(
            "cat /data/file; rm /data/gone; echo up >/data/file; ls /data; " + SHOW.format("/data")
        )
        lines = runtime.run(bundle).lines
        assert lines[:2] == ["low", "file"]
        assert "nosuid" in lines[2]
        assert (layers["upper"] / "file").read_text() == "up\n"
        assert (layers["upper"] / "gone").is_char_device()


def test_an_overlay_that_cannot_be(cloche: Runtime, bundle: Bundle) -> None:
    bundle.mount("/data", "overlay", "overlay", "lowerdir=/does/not/exist")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "share: cannot mount an overlay (lowerdir=/does/not/exist): no such file" in message


def test_sockets_and_fifos_of_the_host_are_there_with_a_warning(
    cloche: Runtime, runc: Runtime, bundle: Bundle, folder: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        os.mkfifo(folder / "fifo")
        bundle.mount("/m/socket", "bind", folder / "socket", "bind")
        bundle.mount("/m/fifo", "bind", folder / "fifo", "bind")
        result = same_under_runc(cloche, runc, bundle.sh("cd /m; stat -c '%n %F' *"))
    assert result.lines == ["fifo fifo", "socket socket"]
    warnings = " ".join(cloche.messages("warning"))
    assert ".source: a socket of the host is there, but joins processes of the guest" in warnings
    assert ".source: a FIFO of the host is there" in warnings


@pytest.mark.parametrize("kind", ["none", "nosuch", "nosuch.sub", "x" * 60])
def test_types_that_the_guest_does_not_know(cloche: Runtime, bundle: Bundle, kind: str) -> None:
    bundle.mount("/data", kind, "source")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert f"mount source ({kind}) on /data: no such device" in message


def test_file_systems_of_the_guests_kernel(cloche: Runtime, bundle: Bundle) -> None:
    for kind in ("ramfs", "debugfs", "tracefs", "securityfs", "bpf", "hugetlbfs"):
        bundle.mount(f"/m/{kind}", kind)
    result = cloche.run(bundle.sh("grep ' /m/' /proc/mounts | cut -d' ' -f3 | sort"))
    expected = ["bpf", "debugfs", "hugetlbfs", "ramfs", "securityfs", "tracefs"]
    assert result.lines == expected

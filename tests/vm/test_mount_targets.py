"""Where mounts go: made if missing, inside the root whatever symlinks say, and not into /proc."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from .bundles import Bundle
from .runtime import Runtime
from .test_process import same_under_runc


@pytest.fixture
def data(folder: Path) -> Path:
    """A folder on the host, to be mounted."""
    data = folder / "data"
    data.mkdir()
    (data / "file").write_text("from the host\n")
    return data


@pytest.mark.parametrize(
    ("link", "target", "seen"),
    [
        ("/etc", "/x/app", "/etc/app"),
        ("etc", "/x/app", "/etc/app"),
        ("/", "/x/app", "/app"),
        ("../../../../../../etc", "/x", "/etc"),
        ("/newdir", "/x", "/newdir"),
        ("../../new/deep", "/x/app", "/new/deep/app"),
        ("/usr/../../../../tmp/../srv", "/x/app", "/srv/app"),
    ],
)
def test_symlinks_lead_as_under_runc(
    cloche: Runtime,
    runc: Runtime,
    new_bundle: Callable[[], Bundle],
    data: Path,
    link: str,
    target: str,
    seen: str,
) -> None:
    for runtime in (cloche, runc):
        bundle = new_bundle()
        (bundle.rootfs / "x").symlink_to(link)
        bundle.mount(target, "bind", data, "bind")
        script = f"cat {seen}/file; readlink /x; grep -c ' {seen} ' /proc/self/mountinfo"
        assert runtime.run(bundle.sh(script)).lines == ["from the host", link, "1"]


@pytest.mark.parametrize(
    "link", ["{outside}", "../../../../../../../..{outside}", "/proc/1/root{outside}"]
)
@pytest.mark.parametrize("deeper", ["", "/made"])
def test_nothing_is_made_or_hidden_outside_the_root(
    cloche: Runtime, bundle: Bundle, data: Path, folder: Path, link: str, deeper: str
) -> None:
    """A folder of the host as the goal of a symlink: it is one of that name inside, or an error."""
    outside = folder / "outside"
    outside.mkdir()
    (bundle.rootfs / "x").symlink_to(link.format(outside=outside))
    bundle.mount(f"/x{deeper}", "bind", data, "bind")
    result = cloche.run(bundle.sh(f"cat {outside}{deeper}/file"), code=None)
    if link.startswith("/proc"):
        assert result.code == 1
    else:
        assert result.output == "from the host"
    assert list(outside.iterdir()) == []


def test_links_in_a_loop(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    (bundle.rootfs / "a").symlink_to("b")
    (bundle.rootfs / "b").symlink_to("a")
    bundle.mount("/a/deeper", "bind", data, "bind")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "mount target /a/deeper: too many levels of symbolic links" in message


def test_symlinks_in_a_volume_that_another_swaps(
    cloche: Runtime, new_bundle: Callable[[], Bundle], data: Path, folder: Path
) -> None:
    """The attack of CVE-2021-30465: the target changes between the check and the mount."""
    volume, outside = folder / "volume", folder / "outside"
    for each in (volume, outside, volume / "real"):
        each.mkdir()
    (volume / "link").symlink_to("/../../../../../../.." + str(outside))
    done = threading.Event()

    def swapping() -> None:
        while not done.is_set():
            for name in ("real", "link"):
                with contextlib.suppress(OSError):  # the guest has made something of that name
                    (volume / name).rename(volume / "x")
                    (volume / "x").rename(volume / name)

    thread = threading.Thread(target=swapping)
    thread.start()
    try:
        for _ in range(5):
            bundle = new_bundle().mount("/vol", "bind", volume, "bind")
            bundle.mount("/vol/x/made", "bind", data, "bind")
            cloche.run(bundle.sh("echo ran"), code=None)
    finally:
        done.set()
        thread.join()
    assert list(outside.iterdir()) == []
    assert cloche.leftovers() == []


@pytest.mark.parametrize(
    "target",
    ["/proc/1", "/proc/self/attr", "/proc/sys", "/proc/version", "/proc", "/proc/../proc/fs/."],
)
def test_targets_in_proc_are_refused_as_by_runc(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path, target: str
) -> None:
    source = data / "file" if target == "/proc/version" else data
    bundle.mount(target, "bind", source, "bind")
    for runtime in (cloche, runc):
        message = runtime("run", "--bundle", bundle.save(), runtime.new_id(), code=1).stderr
        assert "cannot be mounted" in message or "leads upwards" in message


@pytest.mark.parametrize("link", ["/proc/sys", "proc", "/proc/self"])
def test_symlinks_into_proc_are_refused_as_by_runc(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path, link: str
) -> None:
    (bundle.rootfs / "x").symlink_to(link)
    bundle.mount("/x/fs" if link == "proc" else "/x", "bind", data, "bind")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "its symlinks lead into /proc" in message
    assert "cannot be mounted" in runc("run", "--bundle", bundle.path, runc.new_id(), code=1).stderr


def test_files_that_lxcfs_stands_in_for(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path
) -> None:
    files = ("/proc/cpuinfo", "/proc/uptime", "/proc/meminfo", "/proc/loadavg")
    for file in files:
        bundle.mount(file, "bind", data / "file", "bind")
    bundle.mount("/proc/fs", "tmpfs")
    result = same_under_runc(cloche, runc, bundle.sh(f"cat {' '.join(files)}; ls /proc/fs"))
    assert result.lines == ["from the host"] * 4


@pytest.mark.parametrize(("target", "is_dir"), [("/etc/passwd", True), ("/etc", False)])
def test_files_and_folders_do_not_go_onto_each_other(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path, target: str, is_dir: bool
) -> None:
    bundle.mount(target, "bind", data if is_dir else data / "file", "bind")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert f"on {target}: not a directory" in message
    assert runc("run", "--bundle", bundle.path, runc.new_id(), code=1).stderr


def test_modes_of_what_is_made(
    cloche: Runtime, runc: Runtime, new_bundle: Callable[[], Bundle], data: Path
) -> None:
    os.umask(0o022)
    told = []
    for runtime in (cloche, runc):
        bundle = new_bundle().mount("/one/two/three", "bind", data, "bind")
        bundle.mount("/four/file", "bind", data / "file", "bind").mount("/five/tmp", "tmpfs")
        bundle.mount("/six", "tmpfs", "tmpfs", "tmpcopyup")
        runtime.run(bundle.sh("stat -c '%n %a %u:%g' /one /one/two /five /five/tmp /six"))
        told.append(runtime.run(bundle).lines)
        made = [path.relative_to(bundle.rootfs) for path in bundle.rootfs.glob("[otf][nwoi]*/**")]
        told[-1] += [f"{path} {(bundle.rootfs / path).stat().st_mode:o}" for path in sorted(made)]
    assert told[0] == told[1]
    assert len(told[0]) > 5


def test_mounts_upon_mounts_in_their_order(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path
) -> None:
    bundle.mount("/a", "tmpfs").mount("/a/b", "bind", data, "bind").mount("/a/b", "tmpfs")
    bundle.mount("/a/b/c/d", "bind", data / "file", "bind").mount(
        "/a/e", "bind", data, "bind", "ro"
    )
    bundle.sh("find /a | sort; cat /a/b/c/d; touch /a/e/x 2>&1")
    result = same_under_runc(cloche, runc, bundle)
    assert "/a/b/file" not in result.lines
    assert result.lines[-2] == "from the host"

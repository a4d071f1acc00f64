"""Mounts: what kinds there are, where they go, and that nothing leads out of the root."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from engine.dockerd import wait_until

from .bundles import Bundle
from .runtime import Runtime
from .test_process import same_under_runc


@pytest.mark.parametrize("cloche", ["restored", "cold", "q35"], indirect=True)
def test_a_folder_is_shared_in_both_directions(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    bundle.mount("/mnt/data", "bind", data, "rbind", "rw")
    bundle.sh("cat /mnt/data/file; echo back >/mnt/data/new; mv /mnt/data/sub /mnt/data/moved")
    assert cloche.run(bundle).output == "from the host"
    assert (data / "new").read_text() == "back\n"
    assert sorted(path.name for path in data.iterdir()) == ["file", "moved", "new"]


def test_changes_of_the_host_are_seen_at_once(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    container = cloche.start(bundle.mount("/data", "bind", data, "bind"))
    assert container.sh("cat /data/file").output == "from the host"
    (data / "file").write_text("changed\n")
    (data / "later").write_text("there\n")
    assert container.sh("cat /data/file /data/later").lines == ["changed", "there"]
    (data / "later").unlink()
    assert container.sh("ls /data").lines == ["file", "sub"]


def test_a_mounted_file_is_the_hosts_however_often_it_changes(
    cloche: Runtime, bundle: Bundle, data: Path
) -> None:
    """Engines fill resolv.conf and hosts when their mounts are made already, and later again."""
    (data / "file").write_text("")
    container = cloche.start(bundle.mount("/etc/motd", "bind", data / "file", "bind"))
    assert container.sh("cat /etc/motd").output == ""
    for line in ("first", "longer than the one before", "short"):
        (data / "file").write_text(f"{line}\n")
        assert container.sh("cat /etc/motd").output == line


def test_open_files_are_the_same_on_both_sides(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    bundle.mount("/data", "bind", data, "bind")
    bundle.sh(
        "exec 3>/data/log 4</data/file; cat <&4; echo written >&3;"
        "mkfifo /go && cat /go; cat <&4; echo more >&3; echo end; cat /go"
    )
    container = cloche.start(bundle)
    wait_until(lambda: (data / "log").exists() and (bundle.rootfs / "go").is_fifo(), "it waits")
    assert (data / "log").read_text() == "written\n"
    with (data / "file").open("a") as file:
        file.write("and more\n")
    container.sh("echo >/go")
    wait_until(lambda: container.output.endswith("end"), "it has read on")
    assert container.output == "from the host\n\nand more\nend"
    assert (data / "log").read_text() == "written\nmore\n"


def test_a_read_only_folder_stays_as_it_is(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path
) -> None:
    bundle.mount("/data", "bind", data, "rbind", "ro")
    bundle.sh("cat /data/file; touch /data/file; echo x 2>/dev/null >/data/new; ls /data")
    result = same_under_runc(cloche, runc, bundle)
    assert result.lines == ["from the host", "file", "sub"]
    assert "Read-only file system" in result.stderr


def test_a_file_is_mounted_on_a_file(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path
) -> None:
    bundle.mount("/etc/motd", "bind", data / "file", "bind", "ro")
    bundle.mount("/deep/er/file", "bind", data / "file", "bind")
    bundle.sh("cat /etc/motd /deep/er/file; echo changed | tee /etc/motd; cat /etc/motd")
    result = same_under_runc(cloche, runc, bundle)
    assert result.lines == ["from the host", "from the host", "changed", "from the host"]
    cloche.run(bundle.sh("echo changed >/deep/er/file"))
    assert (data / "file").read_text() == "changed\n"


def test_owners_and_modes_are_the_hosts(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path
) -> None:
    os.chown(data / "file", 1000, 1001)
    (data / "file").chmod(0o640)
    (data / "link").symlink_to("file")
    os.link(data / "file", data / "hard")
    os.mkfifo(data / "pipe")
    bundle.mount("/data", "bind", data, "bind")
    bundle.sh("cd /data; stat -c '%n %F %a %u:%g %h' *; readlink link")
    assert "file regular file 640 1000:1001 2" in same_under_runc(cloche, runc, bundle).lines


def test_owners_can_be_changed_from_inside(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    bundle.capabilities("CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE")
    bundle.mount("/data", "bind", data, "bind")
    cloche.run(bundle.sh("chown 1234:5678 /data/file && chmod 0604 /data/file"))
    status = (data / "file").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1234, 5678, 0o604)


def test_mounts_below_a_bound_folder(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    bundle.mount("/data", "bind", data, "rbind", "ro")
    bundle.mount("/data/sub", "tmpfs", "tmpfs", "size=1m")
    bundle.mount("/data/sub/again", "bind", data, "bind")
    bundle.sh("touch /data/sub/x && cat /data/sub/again/file; ls /data/sub")
    assert cloche.run(bundle).lines == ["from the host", "again", "x"]
    assert list((data / "sub").iterdir()) == []


def test_tmpfs_with_a_size_and_a_mode(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    # This runc has the mode of a folder that is there win over the one that was asked for.
    (bundle.rootfs / "scratch").mkdir(mode=0o770)
    (bundle.rootfs / "scratch").chmod(0o1770)
    bundle.mount("/scratch", "tmpfs", "tmpfs", "nosuid", "noexec", "size=256k", "mode=1770")
    bundle.sh(
        "stat -c %a /scratch; df -k /scratch | tail -1 | awk '{print $2}'; "
        "head -c 1000000 /dev/zero >/scratch/x; stat -c %s /scratch/x; "
        "cp /etc/passwd /scratch/run; chmod +x /scratch/run; /scratch/run"
    )
    result = same_under_runc(cloche, runc, bundle)
    assert result.lines == ["1770", "256", str(256 << 10)]
    assert result.code == 126


def test_tmpfs_without_a_mode_has_that_of_the_folder_it_hides(
    cloche: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    for folder in ("/root", "/var/tmp", "/home"):
        bundle.mount(folder, "tmpfs", "tmpfs", "size=1m")
    bundle.sh("stat -c %a /root /var/tmp /home")
    assert same_under_runc(cloche, runc, bundle).lines == ["700", "1777", "755"]


def test_tmpcopyup_takes_along_what_was_there(
    cloche: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    folder = bundle.rootfs / "etc/app"
    folder.mkdir()
    (folder / "conf").write_text("kept\n")
    os.chown(folder / "conf", 7, 8)
    bundle.mount("/etc/app", "tmpfs", "tmpfs", "tmpcopyup", "mode=0750")
    bundle.sh("stat -c '%n %u:%g' /etc/app/*; cat /etc/app/conf; touch /etc/app/new")
    assert same_under_runc(cloche, runc, bundle).lines == ["/etc/app/conf 7:8", "kept"]
    assert [path.name for path in folder.iterdir()] == ["conf"]


def test_kernel_file_systems_are_mounted_as_runc_does(
    cloche: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    # 9p in place of the host's file system, and cgroup v2 in place of this host's v1.
    bundle.without_mount("/sys/fs/cgroup")
    points = "/proc /dev /dev/pts /dev/shm /dev/mqueue /sys"
    bundle.sh(f"for each in {points}; do grep \" $each \" /proc/mounts | cut -d' ' -f2-4; done")
    ours = {line.split()[0]: line.split()[1:] for line in cloche.run(bundle).lines}
    theirs = {line.split()[0]: line.split()[1:] for line in runc.run(bundle).lines}
    assert list(ours) == points.split()
    for point, (kind, options) in theirs.items():
        assert ours[point][0] == kind
        flags = {*options.split(",")} - {"inode64", "seclabel"}
        assert flags <= {*ours[point][1].split(",")}, point


def test_the_container_sees_its_own_part_of_the_cgroups(cloche: Runtime, bundle: Bundle) -> None:
    result = cloche.run(bundle.sh("cd /sys/fs/cgroup; cat cgroup.procs; touch x; ls memory.max"))
    assert result.lines[0] == "1"
    assert result.lines[-1] == "memory.max"
    assert "Read-only file system" in result.stderr


def test_a_read_only_root(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.config["root"]["readonly"] = True
    bundle.mount("/tmp", "tmpfs")
    bundle.sh("touch /x; touch /etc/passwd; touch /tmp/x && echo written; echo >/dev/null")
    result = same_under_runc(cloche, runc, bundle)
    assert result.output == "written"
    assert result.stderr.count("Read-only file system") == 2
    assert not (bundle.rootfs / "x").exists()


def test_what_is_written_to_the_root_is_on_the_host(cloche: Runtime, bundle: Bundle) -> None:
    cloche.run(bundle.sh("mkdir -p /a/b; echo data >/a/b/c; ln -s c /a/b/d; rm /etc/os-release"))
    assert (bundle.rootfs / "a/b/d").read_text() == "data\n"
    assert not (bundle.rootfs / "etc/os-release").exists()


def test_missing_targets_are_made_as_runc_makes_them(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path
) -> None:
    bundle.mount("/one/two", "bind", data, "bind").mount("/three", "tmpfs")
    bundle.mount("/four/file", "bind", data / "file", "bind")
    script = "stat -c '%n %F' /one/two /three /four/file; rm -r /one /three /four"
    ours = cloche.run(bundle.sh(script.partition(";")[0]))
    made = {path: (bundle.rootfs / path).stat().st_mode for path in ("one", "one/two", "three")}
    for path in ("one/two", "one", "three"):
        (bundle.rootfs / path).rmdir()
    (bundle.rootfs / "four/file").unlink()
    theirs = runc.run(bundle)
    assert ours.lines == theirs.lines
    assert made == {path: (bundle.rootfs / path).stat().st_mode for path in made}


@pytest.mark.parametrize("link", ["../../../../../outside", "/outside", "/proc/1/root/outside"])
def test_symlinks_in_targets_stay_inside_the_root(
    cloche: Runtime, bundle: Bundle, data: Path, folder: Path, link: str
) -> None:
    (bundle.rootfs / "link").symlink_to(link)
    if link.startswith("/proc"):
        bundle.without_mount("/proc")
    bundle.mount("/link/deeper", "bind", data, "bind")
    result = cloche.run(bundle.sh("cat /outside/deeper/file"), code=None)
    if not link.startswith("/proc"):
        assert result.output == "from the host"
    assert not Path("/outside").exists()
    assert not (folder / "outside").exists()


def test_a_missing_source_is_named(cloche: Runtime, bundle: Bundle) -> None:
    bundle.mount("/data", "bind", "/does/not/exist", "bind")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "/does/not/exist" in message
    assert "no such file or directory" in message.lower()
    assert cloche.leftovers() == []


def test_an_unknown_file_system_is_an_error(cloche: Runtime, bundle: Bundle) -> None:
    bundle.mount("/data", "nofs", "nofs")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "/data" in message
    assert "no such device" in message
    assert cloche.leftovers() == []


def test_paths_with_odd_names(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    odd = folder / 'with space, comma\tand "quotes" ü'
    odd.mkdir()
    (odd / "f").write_text("odd\n")
    bundle.mount("/a b/ü,\\134", "bind", odd, "bind")
    assert cloche.run(bundle.args("cat", "/a b/ü,\\134/f")).output == "odd"


def test_many_mounts(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    for number in range(60):
        bundle.mount(f"/mnt/{number}", "bind", data, "bind", "ro")
    assert cloche.run(bundle.sh("cat /mnt/*/file | wc -l")).output == "60"


def test_a_big_file_comes_through_unharmed(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    content = os.urandom(8 << 20)
    (data / "big").write_bytes(content)
    bundle.mount("/data", "bind", data, "bind")
    result = cloche.run(bundle.sh("sha256sum </data/big; cp /data/big /data/copy"))
    assert result.output.split()[0] == hashlib.sha256(content).hexdigest()
    assert (data / "copy").read_bytes() == content


@pytest.mark.parametrize("terminal", [False, True])
def test_a_read_only_dev_holds_what_belongs_there(
    cloche: Runtime, runc: Runtime, bundle: Bundle, terminal: bool
) -> None:
    """Nodes, links, mounts and the console are made first."""
    dev = next(each for each in bundle.config["mounts"] if each["destination"] == "/dev")
    dev["options"] += ["ro"]
    bundle.process["terminal"] = terminal
    bundle.linux["devices"] = [{"path": "/dev/own", "type": "c", "major": 1, "minor": 5}]
    # runc makes /dev/core where the host has a /proc/kcore.
    bundle.sh("find /dev | grep -v core | sort; touch /dev/x; grep -o ' /dev .* r.,' /proc/mounts")
    if not terminal:
        result = same_under_runc(cloche, runc, bundle)
        assert {"/dev/own", "/dev/pts/ptmx", "/dev/shm", "/dev/fd"} < {*result.lines}
        assert "Read-only file system" in result.stderr
        return
    printed = []
    for runtime in (cloche, runc):
        with runtime.terminal("run", "--bundle", bundle.save(), runtime.new_id()) as screen:
            screen.wait()
        printed.append([line for line in screen.transcript.decode().splitlines() if line])
    assert printed[0] == printed[1]
    assert "/dev/console" in printed[0]
    assert "touch: /dev/x: Read-only file system" in printed[0]


def test_mounts_inside_a_read_only_tmpfs(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path
) -> None:
    bundle.mount("/etc/skel", "tmpfs", "tmpfs", "ro", "tmpcopyup")
    bundle.mount("/a", "tmpfs", "tmpfs", "ro", "nosuid", "size=1m")
    bundle.mount("/a/b/c", "bind", data, "rbind").mount("/a/file", "bind", data / "file", "bind")
    bundle.mount("/a/d", "tmpfs", "tmpfs", "ro").mount("/a/d/e", "tmpfs")
    script = "cat /a/b/c/file /a/file; touch /a/x /a/d/x /a/d/e/x /etc/skel/x; ls -R /a/d"
    result = same_under_runc(cloche, runc, bundle.sh(script))
    assert result.lines[:2] == ["from the host", "from the host"]
    assert result.stderr.count("Read-only file system") == 3


@pytest.mark.parametrize("target", ["there", "made"])
def test_a_read_only_dev_of_the_host(
    cloche: Runtime, runc: Runtime, bundle: Bundle, data: Path, target: str
) -> None:
    (data / "null").touch()
    (data / "there" / "shm").mkdir(parents=True)
    mounts = bundle.config["mounts"]
    bundle.config["mounts"] = [
        each for each in mounts if not each["destination"].startswith("/dev")
    ]
    bundle.mount("/dev", "bind", data, "bind", "ro").mount(f"/dev/{target}/shm", "tmpfs")
    bundle.sh(f"ls /dev /dev/{target}; touch /dev/x; touch /dev/{target}/shm/x && echo inside")
    # To make it is what runc 1.1.5 does, and 1.1.15 does not any more.
    result = cloche.run(bundle) if target == "made" else same_under_runc(cloche, runc, bundle)
    assert result.lines[-1] == "inside"
    assert result.stderr.count("Read-only file system") == 1


def test_what_a_later_mount_hides_is_closed_and_nothing_else(
    cloche: Runtime, bundle: Bundle, data: Path
) -> None:
    """runc 1.1 makes the later one read-only, and the host's file system with it."""
    bundle.mount("/a", "tmpfs", "tmpfs", "ro").mount("/a", "bind", data, "bind")
    cloche.run(bundle.sh("touch /a/written"))
    assert (data / "written").exists()

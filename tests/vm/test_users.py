"""User namespaces: who a container's users are on the host, and what they may do inside."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from .bundles import Bundle
from .runtime import Runtime
from .starts import each_start
from .test_lifecycle import LISTENER, say_ready
from .test_process import same_under_runc

BASE = 100_000
MAPPED = [{"containerID": 0, "hostID": BASE, "size": 65_536}]
ADMIN = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_MKNOD")


@pytest.fixture
def mapped(bundle: Bundle) -> Bundle:
    """A bundle with a user namespace, whose root folder belongs to the namespace's root."""
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = MAPPED
    subprocess.run(["chown", "-R", f"{BASE}:{BASE}", str(bundle.rootfs)], check=True)
    return bundle


@pytest.fixture
def open_to_runc(mapped: Bundle) -> Bundle:
    """The same where runc's process, which is nobody special on the host, can reach it."""
    for folder in (mapped.path, *mapped.path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    return mapped


@each_start
def test_root_inside_is_somebody_else_outside(cloche: Runtime, mapped: Bundle) -> None:
    mapped.sh("id -u; cat /proc/self/uid_map; touch /made; stat -c %u:%g /made /etc")
    result = cloche.run(mapped)
    assert result.lines[0] == "0"
    assert result.lines[1].split() == ["0", str(BASE), "65536"]
    assert result.lines[2:] == ["0:0", "0:0"]
    stat = (mapped.rootfs / "made").stat()
    assert (stat.st_uid, stat.st_gid) == (BASE, BASE)


def test_users_groups_and_files_are_as_under_runc(
    cloche: Runtime, runc: Runtime, open_to_runc: Bundle
) -> None:
    bundle = open_to_runc
    (bundle.rootfs / "hosts").write_text("the host's own")
    (bundle.rootfs / "users").mkdir()
    os.chown(bundle.rootfs / "hosts", 0, 0)
    os.chown(bundle.rootfs / "users", BASE + 1000, BASE + 1001)
    bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 65_535]}
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    bundle.sh(
        "grep -E '^(Uid|Gid|Groups|Cap|NoNew)' /proc/self/status; cat /proc/self/gid_map; "
        "cat /proc/self/setgroups; ulimit -n; cd /; stat -c '%n %u:%g %a' hosts users dev tmp sys "
        "proc dev/pts dev/shm; touch users/x; stat -c %u:%g users/x; rm users/x; "
        "echo x >dev/null && echo null; echo x >/dev/stdout; rm hosts || echo kept"
    )
    result = same_under_runc(cloche, runc, bundle)
    assert "hosts 65534:65534 644" in result.lines
    assert result.lines[-4:] == ["1000:1001", "null", "x", "kept"]


def test_root_has_its_capabilities_over_what_is_the_namespaces(
    cloche: Runtime, runc: Runtime, open_to_runc: Bundle
) -> None:
    open_to_runc.capabilities(*ADMIN).sh(
        "chown 5:6 /tmp; stat -c %u:%g /tmp; mount -t tmpfs x /home && echo mounted; "
        "mount -t proc x /home && echo proc; umount /dev/shm && echo unmounted; "
        "hostname other && hostname; ip link set lo mtu 1280; cat /sys/class/net/lo/mtu; "
        "ip link set lo up; mknod /tmp/null c 1 3 2>&1; echo 1 2>&1 >/proc/sys/kernel/panic; "
        "date -s 2000-01-01 2>&1 | tail -n 1; umount /proc/keys 2>&1"
    )
    result = same_under_runc(cloche, runc, open_to_runc)
    assert result.lines[:6] == ["5:6", "mounted", "proc", "unmounted", "other", "1280"]
    assert "Operation not permitted" in result.output


def test_a_patchwork_of_mappings(cloche: Runtime, mapped: Bundle) -> None:
    mapped.linux["uidMappings"] = [
        {"containerID": 0, "hostID": BASE, "size": 1},
        {"containerID": 1000, "hostID": 1, "size": 2},
        {"containerID": 5000, "hostID": BASE + 1, "size": 10},
    ]
    mapped.capabilities("CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE")
    mapped.sh("touch /made; chown 1001 /made; touch /other; chown 5009 /other; chown 1 /made 2>&1")
    assert "Invalid argument" in cloche.run(mapped, code=1).output
    assert (mapped.rootfs / "made").stat().st_uid == 2
    assert (mapped.rootfs / "other").stat().st_uid == BASE + 10


def test_volumes_and_devices(cloche: Runtime, mapped: Bundle, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, BASE + 7, BASE + 7)
    mapped.mount("/volume", "bind", volume, "rbind", "ro")
    mapped.linux["devices"] = [
        {"path": "/dev/deep/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "gid": 5}
    ]
    mapped.sh(
        "stat -c %u /volume; touch /volume/x 2>&1; cd /dev; stat -c '%n %a %u:%g %t:%T' deep/mine "
        "null; head -c 3 deep/mine | wc -c; readlink fd"
    )
    lines = cloche.run(mapped).lines
    assert lines[0] == "7"
    assert "Read-only file system" in lines[1]
    assert lines[2:] == ["deep/mine 640 0:5 1:5", "null 666 0:0 1:3", "3", "/proc/self/fd"]


def test_network_settings_are_the_containers(cloche: Runtime, mapped: Bundle) -> None:
    mapped.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    mapped.capabilities("CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN")
    mapped.sh("cat /proc/sys/net/ipv4/ip_forward; ip -o -4 addr show lo | wc -l; ls /sys/class/net")
    assert cloche.run(mapped).lines == ["1", "1", "lo"]


def test_exec_is_in_the_namespace(cloche: Runtime, mapped: Bundle, tmp_path: Path) -> None:
    mapped.process["oomScoreAdj"] = -300
    mapped.process["rlimits"] = [{"type": "RLIMIT_NPROC", "soft": 1 << 20, "hard": 1 << 20}]
    container = cloche.start(mapped.args("sleep", "1000"))
    limits = "grep processes /proc/self/limits | cut -c27-33; cat /proc/self/oom_score_adj"
    assert container.sh(f"id -u; cat /proc/self/uid_map; {limits}").lines == [
        "0",
        f"{0:10} {BASE:10} {65536:10}",
        str(1 << 20),
        "-300",
    ]
    assert cloche("exec", "--user", "9:8", container.id, "id", "-u").output == "9"
    assert container.sh("echo out >/dev/stdout", "--user", "9:8").output == "out"
    links = "; ".join(f"readlink /proc/{pid}/ns/user" for pid in ("self", 1))
    assert len({*container.sh(links).lines}) == 1
    file = tmp_path / "process.json"
    file.write_text(json.dumps({"args": ["true"], "cwd": "/", "user": {"uid": 70_000}}))
    message = cloche.fails("exec", "--process", file, container.id, code=255)
    assert "$.user.uid: uid 70000 is not mapped in $.linux.uidMappings" in message


def test_terminals(cloche: Runtime, mapped: Bundle) -> None:
    mapped.process["terminal"] = True
    mapped.process["user"] = {"uid": 33, "gid": 33}
    mapped.sh("tty; stat -c '%u:%g %a' $(tty) /dev/console; echo x >/dev/tty")
    terminal = cloche.terminal("run", "--bundle", mapped.save(), cloche.new_id())
    with terminal:
        terminal.expect("/dev/pts/0\\s+33:5 620\\s+33:5 620\\s+x")
        assert terminal.wait() == 0


def test_a_user_that_is_not_mapped(cloche: Runtime, mapped: Bundle) -> None:
    mapped.process["user"] = {"uid": 0, "gid": 0, "additionalGids": [65_536]}
    message = cloche.fails("run", "--bundle", mapped.save(), cloche.new_id())
    assert "$.process.user.additionalGids[0]: gid 65536 is not mapped" in message
    assert cloche.leftovers() == []


def test_a_pause_and_an_end_by_signal(cloche: Runtime, mapped: Bundle) -> None:
    container = say_ready(cloche.start(mapped.sh(LISTENER)))
    cloche("pause", container.id)
    cloche("resume", container.id)
    container.kill("TERM")
    assert container.wait() == 3


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_writable_cgroup_is_the_containers(cloche: Runtime, mapped: Bundle, uid: int) -> None:
    for mount in mapped.config["mounts"]:
        if mount["destination"] == "/sys/fs/cgroup":
            mount["options"].remove("ro")
    mapped.process["user"] = {"uid": uid, "gid": uid}
    mapped.capabilities().sh(
        "cd /sys/fs/cgroup; stat -c %u . cgroup.procs; mkdir a; echo $$ >a/cgroup.procs; "
        "cat /proc/self/cgroup; echo 1 2>&1 >memory.max"
    )
    lines = cloche.run(mapped, code=1).lines
    assert lines[:3] == [str(uid), str(uid), "0::/a"]
    assert "Permission denied" in lines[3]

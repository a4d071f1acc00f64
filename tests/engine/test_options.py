"""``docker run``: the options that change the walls of a container, and what they mean in a VM."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from .client import Docker, host_path
from .host import boot_id
from .image import EXTRA_GROUP_ID, IMAGE, USER_ID

FIELD = "grep -w {} /proc/self/status | cut -f2"


def profile(folder: Path, *names: str) -> str:
    """A seccomp profile that forbids system calls by *names*, as ``--security-opt`` wants it."""
    rule = {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
    text = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    return f"seccomp={host_path(folder, 'profile.json', json.dumps(text))}"


def test_seccomp_profile_of_a_file(docker: Docker, tmp_path: Path) -> None:
    """A profile's rules hold, and the errno is the one they name."""
    option = profile(tmp_path, "mkdir", "mkdirat")
    script = f"mkdir /tmp/x 2>&1; {FIELD.format('Seccomp')}"
    output = docker.run("--security-opt", option, IMAGE, "sh", "-c", script).output
    assert output == "mkdir: can't create directory '/tmp/x': No space left on device\n2"


def test_seccomp_profile_holds_for_exec(docker: Docker, tmp_path: Path) -> None:
    """``exec`` has the container's profile."""
    option = profile(tmp_path, "mkdir", "mkdirat")
    name = docker.start("--security-opt", option, IMAGE, "sleep", "1000")
    assert "No space left" in docker("exec", name, "mkdir", "/tmp/x", code=1).stderr


def test_seccomp_default_profile(docker: Docker) -> None:
    """docker's own profile is applied: clone(2) of namespaces is among what it forbids."""
    script = f"{FIELD.format('Seccomp')}; unshare -m true || echo refused"
    assert docker.run(IMAGE, "sh", "-c", script).output == "2\nrefused"


def test_seccomp_unconfined(docker: Docker) -> None:
    """Without a profile only capabilities decide."""
    options = ("--security-opt", "seccomp=unconfined", "--cap-add", "SYS_ADMIN")
    script = f"{FIELD.format('Seccomp')}; unshare -m echo free"
    assert docker.run(*options, IMAGE, "sh", "-c", script).output == "0\nfree"


@pytest.mark.parametrize(("value", "expected"), [("true", "1"), ("false", "0")])
def test_no_new_privileges(docker: Docker, value: str, expected: str) -> None:
    """``no-new-privileges`` is the process's flag; it keeps setuid programs from being root."""
    option = f"no-new-privileges:{value}"
    script = (
        f"cp /bin/busybox /bin/id2; chmod 4755 /bin/id2; {FIELD.format('NoNewPrivs')};"
        " su -s /bin/sh app -c '/bin/id2 id -u' 2>/dev/null || echo kept"
    )
    output = docker.run("--security-opt", option, IMAGE, "sh", "-c", script).output
    assert output.splitlines()[0] == expected


def test_apparmor_unconfined(docker: Docker) -> None:
    """``apparmor=unconfined`` is what the guest has anyway."""
    assert docker.run("--security-opt", "apparmor=unconfined", IMAGE, "echo", "ran").output == "ran"


def test_system_paths_unconfined(docker: Docker) -> None:
    """``systempaths=unconfined`` masks nothing."""
    option = ("--security-opt", "systempaths=unconfined")
    script = "grep -c ' /proc/' /proc/self/mountinfo; test -w /proc/sys/net/core/somaxconn"
    assert docker.run(*option, IMAGE, "sh", "-c", script).output == "0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.core.somaxconn", "77"),
        ("net.ipv4.ip_local_port_range", "2000 3000"),
        ("kernel.msgmax", "9000"),
        ("fs.mqueue.msg_max", "20"),
        ("kernel.shm_rmid_forced", "1"),
    ],
)
def test_sysctl(docker: Docker, name: str, value: str) -> None:
    """``--sysctl`` sets what docker lets through: net.*, and those of an ipc namespace."""
    path = f"/proc/sys/{name.replace('.', '/')}"
    output = docker.run("--sysctl", f"{name}={value}", IMAGE, "cat", path).output
    assert output.split() == value.split()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--group-add", "56"), "0 56"),
        (("--group-add", "extra", "--group-add", "5"), f"0 5 {EXTRA_GROUP_ID}"),
        (("-u", "app", "--group-add", "56"), f"{USER_ID} 56 {EXTRA_GROUP_ID}"),
    ],
    ids=["number", "name", "user"],
)
def test_group_add(docker: Docker, options: tuple[str, ...], expected: str) -> None:
    """Groups by number and by the container's own names, beside those of the user."""
    groups = docker.run(*options, IMAGE, "sh", "-c", "id -G").output
    assert {*groups.split()} == {*expected.split()}


@pytest.mark.vm_only
def test_host_namespaces_are_the_guests(docker: Docker) -> None:
    """``--pid``, ``--uts`` and ``--ipc host`` mean the VM's own, never this machine's."""
    options = [f"--{kind}=host" for kind in ("pid", "uts", "ipc")]
    script = "cat /proc/sys/kernel/random/boot_id /proc/1/comm; hostname moved; hostname"
    before = socket.gethostname()
    result = docker.run(*options, "--cap-add", "SYS_ADMIN", IMAGE, "sh", "-c", script).output
    boot, first, name = result.splitlines()
    assert boot != boot_id()
    assert (first, name) == ("init", "moved")
    assert socket.gethostname() == before


@pytest.mark.vm_only
def test_pid_host_shows_no_process_of_the_host(docker: Docker) -> None:
    """The processes that are seen are the guest's."""
    names = docker.run("--pid", "host", IMAGE, "sh", "-c", "cat /proc/[0-9]*/comm").output
    assert not {"dockerd", "containerd", "docker"} & {*names.split()}


def shareable(docker: Docker) -> str:
    """A container whose namespaces others may join."""
    return docker.start("--ipc", "shareable", IMAGE, "sleep", "4242")


@pytest.mark.vm_only
@pytest.mark.parametrize("kind", ["pid", "ipc"])
def test_a_namespace_of_another_machine_is_refused(docker: Docker, kind: str) -> None:
    """Only containers that share the network share a VM; the error names the field."""
    name = shareable(docker)
    result = docker.run(f"--{kind}", f"container:{name}", IMAGE, "true", code=125)
    assert "$.linux.namespaces" in result.stderr
    assert "join its network too" in result.stderr


def test_namespaces_of_another_container(docker: Docker) -> None:
    """With its network, a container's processes and shared memory can be shared (docs/pods.md)."""
    name = shareable(docker)
    docker.sh(name, "echo from-x >/dev/shm/file")
    options = [f"--{kind}=container:{name}" for kind in ("network", "pid", "ipc")]
    script = "tr '\\0' ' ' </proc/1/cmdline; cat /dev/shm/file"
    assert docker.run(*options, IMAGE, "sh", "-c", script).output == "sleep 4242 from-x"


def test_userns_host(docker: Docker) -> None:
    """``--userns host`` is no user namespace."""
    script = "cat /proc/self/uid_map"
    assert docker.run("--userns", "host", IMAGE, "sh", "-c", script).output.split() == [
        "0",
        "0",
        "4294967295",
    ]


@pytest.mark.vm_only
@pytest.mark.parametrize("option", ["private", "host"])
def test_cgroup_namespace(docker: Docker, option: str) -> None:
    """The cgroup mount is the container's own part of the tree whatever is asked for."""
    result = docker.run("--cgroupns", option, IMAGE, "cat", "/proc/self/cgroup", code=None)
    if result.code:
        # docker itself, where the host has cgroup v1.
        assert "cgroup namespaces aren't supported" in result.stderr
        return
    assert result.output == "0::/"


@pytest.mark.parametrize("mode", ["none", "private", "shareable", "host"])
def test_ipc_modes(docker: Docker, mode: str) -> None:
    """Each has, or has not, shared memory as docker says."""
    script = "grep -c ' /dev/shm ' /proc/self/mountinfo || true"
    output = docker.run("--ipc", mode, IMAGE, "sh", "-c", script).output
    assert output == ("0" if mode == "none" else "1")


@pytest.mark.parametrize(
    ("options", "flags", "size"),
    [
        ("/t", "rw,nosuid,nodev,noexec,relatime", ""),
        ("/t:size=512k", "rw,nosuid,nodev,noexec,relatime", "size=512k"),
        ("/t:exec,size=64k,mode=1750", "rw,nosuid,nodev,relatime", "size=64k"),
        ("/t:ro,noatime,size=64k", "ro,nosuid,nodev,noexec,noatime", "size=64k"),
        ("/t:suid,dev,exec,nr_inodes=99", "rw,relatime", "nr_inodes=99"),
    ],
)
def test_tmpfs_options(docker: Docker, options: str, flags: str, size: str) -> None:
    """``--tmpfs`` takes mount options; docker's own are nosuid, nodev and noexec."""
    script = "grep ' /t ' /proc/self/mountinfo | cut -d' ' -f6,10"
    found, superblock = docker.run("--tmpfs", options, IMAGE, "sh", "-c", script).output.split(
        maxsplit=1
    )
    assert found == flags
    assert size in superblock


@pytest.mark.parametrize("mode", ["private", "rprivate", "slave", "rslave", "shared", "rshared"])
def test_bind_propagation(docker: Docker, tmp_path: Path, mode: str) -> None:
    """Every mode of ``bind-propagation`` is taken, and the files are there."""
    host_path(tmp_path, "file", "from the host")
    mount = f"type=bind,src={tmp_path},dst=/data,bind-propagation={mode}"
    result = docker.run("--mount", mount, IMAGE, "cat", "/data/file", code=None)
    if result.code:
        # docker itself, where the folder is on no shared mount.
        assert "is not a shared" in result.stderr
        return
    assert result.output == "from the host"


def test_read_only_mount(docker: Docker, tmp_path: Path) -> None:
    """``--mount`` with readonly."""
    mount = f"type=bind,src={tmp_path},dst=/data,readonly"
    result = docker.run("--mount", mount, IMAGE, "touch", "/data/x", code=1)
    assert "Read-only file system" in result.stderr


@pytest.mark.parametrize("signal", ["SIGUSR1", "12", "SIGRTMIN+3"])
def test_stop_signal(docker: Docker, signal: str) -> None:
    """``docker stop`` sends the signal that was chosen."""
    number = {"SIGUSR1": "USR1", "12": "USR2", "SIGRTMIN+3": "37"}[signal]
    script = f"trap 'exit 42' {number}; echo ready; while :; do sleep 0.1; done"
    name = docker.start("--stop-signal", signal, IMAGE, "sh", "-c", script)
    docker.wait_for_log(name, "ready")
    docker("stop", "-t", "20", name)
    assert docker.state(name)["ExitCode"] == 42


@pytest.mark.parametrize(
    ("limit", "flag", "expected"),
    [
        ("core=0:4096", "c", "0 8"),
        ("fsize=1048576", "f", "2048 2048"),
        ("stack=1048576:2097152", "s", "1024 2048"),
        ("cpu=77:88", "t", "77 88"),
        ("memlock=65536", "l", "64 64"),
    ],
)
def test_ulimit(docker: Docker, limit: str, flag: str, expected: str) -> None:
    """``--ulimit`` sets soft and hard limit."""
    script = f"echo $(ulimit -S{flag}) $(ulimit -H{flag})"
    assert docker.run("--ulimit", limit, IMAGE, "sh", "-c", script).output == expected


def test_device(docker: Docker) -> None:
    """A character device that is the same on every Linux is made, under the name asked for."""
    script = "stat -c '%F %t:%T' /dev/mine; head -c 3 /dev/mine | od -An -tx1"
    output = docker.run("--device", "/dev/zero:/dev/mine:r", IMAGE, "sh", "-c", script).output
    assert output.split() == ["character", "special", "file", "1:5", "00", "00", "00"]


@pytest.mark.vm_only
def test_device_of_the_machine(docker: Docker) -> None:
    """A node is made, but what is behind it is the guest's; docker's log has a warning of it."""
    path = next((each for each in ("/dev/kmsg", "/dev/mem") if Path(each).exists()), "/dev/zero")
    result = docker.run("--device", path, IMAGE, "stat", "-c", "%F", path)
    assert result.output == "character special file"


def test_device_that_is_not_there(docker: Docker) -> None:
    """docker itself refuses it, as with any runtime."""
    result = docker.run("--device", "/dev/nothing", IMAGE, "true", code=None)
    assert result.code != 0
    assert "/dev/nothing" in result.stderr


@pytest.mark.vm_only
def test_privileged_is_of_the_guest(docker: Docker) -> None:
    """Everything is allowed, in the VM: mounts, sysctls of its kernel, its devices."""
    script = (
        "mount -t tmpfs none /tmp && echo mounted; echo 7 >/proc/sys/kernel/panic && echo set; "
        f"{FIELD.format('Seccomp')}; {FIELD.format('NoNewPrivs')}; touch /sys/x 2>&1 | tail -c 20; "
        "cat /proc/sys/kernel/random/boot_id"
    )
    before = Path("/proc/sys/kernel/panic").read_text()
    lines = docker.run("--privileged", IMAGE, "sh", "-c", script).output.splitlines()
    assert lines[:4] == ["mounted", "set", "0", "0"]
    assert lines[-1] != boot_id()
    assert Path("/proc/sys/kernel/panic").read_text() == before


@pytest.mark.vm_only
def test_privileged_has_no_disk_of_the_host(docker: Docker) -> None:
    """The host's disks are not among its devices unless ``--device`` names them."""
    listed = docker.run("--privileged", IMAGE, "sh", "-c", "ls -l /dev | grep ^b || true").output
    for line in listed.splitlines():
        assert line.split()[4] in ("1,", "7,"), f"a block device of the host: {line}"


@pytest.mark.parametrize(("option", "code"), [("default", 0), ("hyperv", 125)])
def test_isolation(docker: Docker, option: str, code: int) -> None:
    """``--isolation`` is Windows's: docker takes the default only."""
    result = docker.run("--isolation", option, IMAGE, "true", code=None)
    assert result.code == code, result


def test_domainname(docker: Docker) -> None:
    """``--domainname`` with ``--hostname``."""
    options = ("--hostname", "bell", "--domainname", "example.org")
    script = "hostname; cat /proc/sys/kernel/domainname"
    output = docker.run(*options, IMAGE, "sh", "-c", script).output
    assert output.splitlines()[0] in ("bell", "bell.example.org")


def test_init_passes_signals_on(docker: Docker) -> None:
    """With ``--init`` the program need not be ready to be number 1: TERM ends it by default."""
    name = docker.start("--init", IMAGE, "sleep", "1000")
    docker("stop", "-t", "20", name)
    assert docker.state(name)["ExitCode"] == 143

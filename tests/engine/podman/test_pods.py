"""Pods of podman: one VM for all containers of a pod, and what they share in it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engine.dockerd import wait_until
from engine.terminal import shown_size

from .client import Podman
from .scene import IMAGE
from .test_network import GET

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
TRAP = 'trap "exit 5" TERM; echo ready; while :; do sleep 0.1; done'


def _pod(podman: Podman, *options: str) -> str:
    name = podman.new_name("pod")
    podman("pod", "create", "--name", name, *options)
    return name


@pytest.fixture(scope="module")
def pod(shared: Podman) -> str:
    """A pod without a network, with podman's own infra container."""
    return _pod(shared, "--network=none")


@pytest.fixture(scope="module")
def first(shared: Podman, pod: str) -> str:
    """A container of the pod."""
    return shared.start("--pod", pod, IMAGE, "sleep", "1000")


def test_one_vm(shared: Podman, pod: str, first: str) -> None:
    """Containers of a pod have one kernel, one hostname, and process ids of their own."""
    script = f"{BOOT_ID}; hostname; echo $$"
    other = shared.run("--pod", pod, IMAGE, "sh", "-c", script).output.splitlines()
    assert other == [shared.sh(first, BOOT_ID), pod, "1"]


def test_another_pod_is_another_vm(podman: Podman, shared: Podman, first: str) -> None:
    """What does not belong together has kernels of its own."""
    other = _pod(podman, "--network=none")
    assert podman.run("--pod", other, IMAGE, "sh", "-c", BOOT_ID).output != shared.sh(
        first, BOOT_ID
    )


def test_shared_memory(shared: Podman, pod: str, first: str) -> None:
    """/dev/shm is one for the pod, in the guest's memory."""
    shared.sh(first, "echo told >/dev/shm/word")
    assert shared.run("--pod", pod, IMAGE, "cat", "/dev/shm/word").output == "told"
    assert shared.sh(first, "stat -f -c %T /dev/shm") == "tmpfs"


def test_files_are_their_own(shared: Podman, pod: str, first: str, tmp_path: Path) -> None:
    """Roots and volumes are each container's; cp and top work as for any other."""
    (tmp_path / "f").write_text("host\n")
    name = shared.start("--pod", pod, "-v", f"{tmp_path}:/v", IMAGE, "sleep", "1000")
    assert shared.sh(name, "echo x >/mine; cat /v/f") == "host"
    shared.sh(first, "cat /mine", code=1)
    shared("cp", str(tmp_path / "f"), f"{name}:/v/copied")
    shared("cp", str(tmp_path / "f"), f"{name}:/copied")
    assert shared.sh(name, "cat /v/copied /copied") == "host\nhost"
    lines = shared("top", name, "pid", "args").output.splitlines()[1:]
    assert [line.split() for line in lines] == [["1", "sleep", "1000"]]


def test_streams_and_exit_codes(shared: Podman, pod: str) -> None:
    """As of a container with its own VM."""
    data = bytes(range(256)) * 1024
    assert shared.run("--pod", pod, "-i", IMAGE, "cat", data=data).stdout == data
    shared.run("--pod", pod, IMAGE, "sh", "-c", "exit 7", code=7)
    assert "not found" in shared.run("--pod", pod, IMAGE, "nosuch", code=127).stderr


def test_terminal(shared: Podman, pod: str) -> None:
    """-it in a pod."""
    words = ("run", "--rm", "-it", "--pod", pod, IMAGE, "sh")
    with shared.terminal(*words, rows=31, columns=91) as terminal:
        terminal.expect("# ")
        terminal.line("stty size; tty")
        terminal.expect("31 91")
        terminal.expect("/dev/pts/0")
        terminal.resize(20, 50)
        terminal.line(shown_size(20, 50) + "; exit 3")
        terminal.expect("20 50")
        assert terminal.wait() == 3


def test_the_end_of_a_member(shared: Podman, pod: str, first: str) -> None:
    """Stopped, it ends itself only; it can be started again, in the same VM."""
    name = shared.start("--pod", pod, IMAGE, "sh", "-c", TRAP)
    shared.wait_for_log(name, "ready")
    shared("stop", "-t", "10", name)
    assert shared.state(name)["ExitCode"] == 5
    shared("start", name)
    assert shared.sh(name, BOOT_ID) == shared.sh(first, BOOT_ID)
    shared("kill", name)
    assert shared("wait", name).output == "137"
    shared("rm", name)
    assert shared.state(first)["Status"] == "running"


def test_pause_of_a_member(shared: Podman, pod: str, first: str) -> None:
    """A member that is paused holds nobody else up."""
    name = shared.start("--pod", pod, IMAGE, "sleep", "1000")
    shared("pause", name)
    shared.sh(first, "true")
    shared("exec", name, "true", code=255)
    shared("unpause", name)
    shared.sh(name, "true")


def test_killed_stand_in(shared: Podman, pod: str, first: str) -> None:
    """When the process that stands for a member is killed, only that member has ended."""
    name = shared.start("--pod", pod, IMAGE, "sleep", "4321")
    os.kill(shared.state(name)["Pid"], signal.SIGKILL)
    shared.wait_for_state(name, "exited")
    assert shared.state(name)["ExitCode"] == 137
    assert shared.state(first)["Status"] == "running"
    script = "grep -l 432[1] /proc/[0-9]*/cmdline 2>/dev/null"
    seeing = ("--pod", pod, "--pid=host", IMAGE, "sh", "-c", script)
    wait_until(lambda: shared.run(*seeing, code=None).output == "", "its program is gone")


def test_limits_of_a_member(shared: Podman, pod: str) -> None:
    """Its own limits hold for it; what is more than the VM has is refused, with what it has."""
    printed = shared.run("--pod", pod, "--memory", "64m", IMAGE, "cat", "/sys/fs/cgroup/memory.max")
    assert printed.output == str(64 << 20)
    refused = shared.run("--pod", pod, "--memory", "64g", IMAGE, "true", code=126)
    assert "$.linux.resources.memory.limit" in refused.stderr
    assert "do not fit into the VM" in refused.stderr


def test_pause_of_a_pod(podman: Podman) -> None:
    """pod pause stops all of its containers, pod unpause lets them go on."""
    name = _pod(podman, "--network=none")
    first = podman.start("--pod", name, IMAGE, "sh", "-c", TRAP)
    podman("pod", "pause", name)
    assert podman.state(first)["Status"] == "paused"
    podman("pod", "unpause", name)
    assert podman.sh(first, "echo on") == "on"
    podman("pod", "pause", name)
    podman("pod", "rm", "-f", "-t", "0", name)


def test_out_of_memory(podman: Podman) -> None:
    """A member that is killed for want of memory takes nobody with it."""
    name = _pod(podman, "--network=none")
    first = podman.start("--pod", name, IMAGE, "sleep", "1000")
    hog = podman.start("--pod", name, "--memory", "48m", IMAGE, "sleep", "1000")
    podman.sh(hog, "tail /dev/zero", code=137)
    assert podman.sh(first, "echo alive") == "alive"
    note = Path(os.readlink(f"/proc/{podman.state(hog)['ConmonPid']}/cwd")) / "oom"
    wait_until(note.exists, "conmon has heard of it")  # as in test_run.py
    if note == Path("/oom"):
        note.unlink()


def test_shared_process_ids(podman: Podman) -> None:
    """--share pid: one process id namespace for the pod."""
    name = _pod(podman, "--network=none", "--share", "pid,ipc,uts,net")
    first = podman.start("--pod", name, IMAGE, "sleep", "1234")
    seen = podman.run("--pod", name, IMAGE, "sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '").output
    assert "sleep 1234" in seen
    assert "sleep 1234" in podman.sh(first, "cat /proc/*/cmdline | tr '\\0' ' '")


def test_network_of_a_pod(podman: Podman) -> None:
    """One address, one loopback; a published port of the pod."""
    name = _pod(podman, "--network=bridge")
    script = "mkdir /www; echo served >/www/index.html; exec httpd -f -p 8080 -h /www"
    podman.start("--pod", name, IMAGE, "sh", "-c", script)
    get = f"for i in $(seq 50); do {GET} http://127.0.0.1:8080/ && break; sleep 0.1; done"
    assert podman.run("--pod", name, IMAGE, "sh", "-c", get).output == "served"


def test_network_and_ipc_of_a_container(podman: Podman) -> None:
    """--network container:X and --ipc container:X say the same without a pod."""
    name = podman.start("--network=bridge", IMAGE, "sleep", "1000")
    joined = podman.run(
        f"--network=container:{name}", f"--ipc=container:{name}", IMAGE, "sh", "-c", BOOT_ID
    )
    assert joined.output == podman.sh(name, BOOT_ID)
    only_network = podman.run(f"--network=container:{name}", IMAGE, "ip", "-o", "-4", "addr")
    assert podman.sh(name, "ip -o -4 addr") == only_network.output


def test_the_end_of_the_pod(podman: Podman) -> None:
    """With the infra container its VM ends, and all that is in it; then it can be started again."""
    name = _pod(podman, "--network=none")
    first = podman.start("--pod", name, IMAGE, "sleep", "1000")
    infra = podman("pod", "inspect", "-f", "{{.InfraContainerID}}", name).output
    vm = podman.state(infra)["Pid"]
    os.kill(vm, signal.SIGKILL)
    podman.wait_for_state(first, "exited")
    assert podman.state(first)["ExitCode"] == 137
    podman("pod", "start", name)
    assert podman.sh(first, "echo again") == "again"
    podman("pod", "stop", "-t", "0", name)
    podman("pod", "rm", name)
    assert podman("pod", "exists", name, code=1)

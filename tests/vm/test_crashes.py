"""SIGKILL for any process at any moment: what it leaves is told, and `delete --force` clears it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cloche.base import syscalls
from cloche.vmm.launch import NOT_STARTED, launch_qemu
from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .runtime import Container, Runtime
from .starts import each_start


def victim_of(container: Container, role: str) -> int:
    """The process of *container* that plays *role*."""
    if role == "supervisor":
        return container.pid
    return host.qemu_of(container.runtime.root, container.id)


def has_no_processes(container: Container) -> bool:
    """Whether all its processes have ended."""
    return host.processes(container.runtime.root / container.id) == []


@pytest.mark.parametrize("role", ["supervisor", "qemu"])
@pytest.mark.parametrize("stage", ["created", "running"])
def test_a_killed_process_takes_the_container_along(
    request: pytest.FixtureRequest, stage: str, role: str
) -> None:
    container: Container = request.getfixturevalue(stage)
    cloche = container.runtime
    os.kill(victim_of(container, role), signal.SIGKILL)
    assert container.wait(PATIENCE_SECONDS) == (137 if role == "qemu" else -signal.SIGKILL)
    wait_until(lambda: host.processes(cloche.root) == [], "QEMU has ended too")
    assert container.status == "stopped"
    assert "cannot exec in a stopped container" in cloche.fails(
        "exec", container.id, "true", code=255
    )
    cloche("delete", container.id)
    assert cloche.leftovers() == []


@pytest.mark.parametrize("role", ["supervisor", "qemu"])
def test_an_exec_ends_when_its_vm_is_killed(running: Container, role: str) -> None:
    client = running.runtime.popen("exec", running.id, "sh", "-c", "echo up; sleep 1000")
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    os.kill(victim_of(running, role), signal.SIGKILL)
    assert client.wait(PATIENCE_SECONDS) == 137
    running.wait()


@pytest.mark.parametrize("role", ["supervisor", "qemu"])
def test_run_ends_when_its_vm_is_killed(cloche: Runtime, bundle: Bundle, role: str) -> None:
    bundle.sh("echo up; sleep 1000")
    client = cloche.popen("run", "--bundle", bundle.save(), cloche.new_id())
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    commands = host.processes(cloche.root)
    found = {command.split()[0].rpartition("/")[2][:4]: pid for pid, command in commands}
    # The first python is `run` itself, the last one its supervisor.
    os.kill(found["qemu"] if role == "qemu" else found["pyth"], signal.SIGKILL)
    assert client.wait(PATIENCE_SECONDS) == 137
    wait_until(lambda: cloche.leftovers() == [], "run has cleaned up")


@pytest.mark.parametrize("moment", ["directory", "qemu.log", "control.sock", "state.json"])
@pytest.mark.parametrize("victim", ["create", "supervisor", "qemu"])
def test_a_creation_that_is_killed_midway(
    cloche: Runtime, bundle: Bundle, moment: str, victim: str
) -> None:
    """*moment*: as soon as the file is there. Later ones may hit a creation that is complete."""
    null = subprocess.DEVNULL
    name = cloche.new_id()
    bundle.save()
    process = cloche.popen("create", "--bundle", bundle.path, name, stdout=null, stderr=null)
    path = cloche.root / name / ("" if moment == "directory" else moment)
    while not path.exists() and process.poll() is None:
        pass  # a few ms at most; every pause would miss the moment
    for pid in victims(cloche, process.pid, victim):
        with contextlib.suppress(ProcessLookupError):  # it was quicker than we
            os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    if victim == "create":
        # Its supervisor notices, and gives up on a container that nobody waits for.
        wait_until(lambda: is_settled(cloche, name), "the supervisor has ended or serves")
    cloche("delete", "--force", name)
    wait_until(lambda: cloche.leftovers() == [], f"nothing is left: {cloche.leftovers()}")


def victims(cloche: Runtime, create: int, role: str) -> list[int]:
    """The processes that play *role* in a creation that *create* has begun."""
    if role == "create":
        return [create]
    found = [each for each in host.processes(cloche.root) if each[0] != create]
    return [pid for pid, command in found if ("qemu-system" in command) == (role == "qemu")]


def is_settled(cloche: Runtime, name: str) -> bool:
    """Whether the container exists, or no process is left that could still make it."""
    return (cloche.root / name / "state.json").exists() or host.processes(cloche.root) == []


@pytest.mark.parametrize("cleaner", ["delete", "run"])
def test_a_start_that_is_killed_as_its_cgroup_is_made(
    cloche: Runtime, bundle: Bundle, cleaner: str
) -> None:
    """There is no state file yet that could tell where the cgroup is."""
    name = cloche.new_id()
    bundle.linux["cgroupsPath"] = f"/cloche-tests/{name}"
    bundle.config["hooks"] = {"prestart": [{"path": "/bin/sleep", "args": ["sleep", "5"]}]}
    process = cloche.popen("run", "--bundle", bundle.save(), name)
    wait_until(lambda: host.cgroups(name) != [], "the cgroup is there")
    for pid in [process.pid, *victims(cloche, process.pid, "supervisor")]:
        os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    wait_until(lambda: is_abandoned(cloche, name), "all its processes have ended")
    assert host.cgroups(name) != []
    if cleaner == "delete":
        cloche("delete", "--force", name)
    else:
        del bundle.config["hooks"], bundle.linux["cgroupsPath"]
        bundle.args("echo", "ran").save()
        assert cloche("run", "--bundle", bundle.path, name).output == "ran"
    assert cloche.leftovers() == []


def is_abandoned(cloche: Runtime, name: str) -> bool:
    """Whether no process is left, the directory is, and there is no container."""
    directory = cloche.root / name
    gone = host.processes(cloche.root) == [] and directory.is_dir()
    return gone and not (directory / "state.json").exists()


def test_a_killed_creation_of_a_cold_vm(cloche: Runtime, bundle: Bundle) -> None:
    cloche.env["CLOCHE_TEMPLATE"] = "off"
    name = cloche.new_id()
    process = cloche.popen("create", "--bundle", bundle.save(), name)
    wait_until((cloche.root / name / "qemu.log").exists, "QEMU boots")
    process.kill()
    process.wait()
    wait_until(lambda: host.processes(cloche.root) == [], "the VM has been given up")
    cloche("delete", "--force", name)
    assert cloche.leftovers() == []


def test_an_interrupted_run_leaves_nothing(cloche: Runtime, bundle: Bundle) -> None:
    cloche.env["CLOCHE_TEMPLATE"] = "off"
    name = cloche.new_id()
    process = cloche.popen("run", "--bundle", bundle.save(), name)
    wait_until((cloche.root / name / "qemu.log").exists, "QEMU boots")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_SECONDS) == 130
    assert cloche.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_start_that_is_given_up_while_the_guest_boots(
    cloche: Runtime, bundle: Bundle, number: signal.Signals
) -> None:
    """The hooks have run; what is left to wait for is the guest, and nobody wants it."""
    cloche.env["CLOCHE_TEMPLATE"] = "off"
    name = cloche.new_id()
    done = bundle.path / "hooks-done"
    hook = {"path": "/bin/touch", "args": ["touch", str(done)]}
    bundle.config["hooks"] = {"createContainer": [hook]}
    process = cloche.popen("run", "--bundle", bundle.save(), name)
    wait_until(done.exists, "the hooks have run")
    until = time.monotonic() + 0.3
    wait_until(lambda: time.monotonic() > until, "the supervisor has heard of it")
    process.send_signal(number)
    assert process.wait(PATIENCE_SECONDS) == (130 if number == signal.SIGINT else -number)
    wait_until(lambda: host.processes(cloche.root) == [], "the VM has been given up")
    cloche("delete", "--force", name)
    assert cloche.leftovers() == []


@each_start
def test_a_guest_that_panics(cloche: Runtime, bundle: Bundle) -> None:
    """The crash of one guest is the end of one container."""
    bundle.capabilities("CAP_SYS_ADMIN", "CAP_SYS_BOOT")
    bundle.without_mount("/proc").mount("/proc", "proc")
    bundle.linux["readonlyPaths"] = bundle.linux["maskedPaths"] = []
    container = cloche.start(bundle.sh("echo up; echo c >/proc/sysrq-trigger; sleep 1000"))
    assert container.wait(PATIENCE_SECONDS) == 137
    assert container.output == "up"
    cloche("delete", container.id)


def test_a_guest_that_reboots(cloche: Runtime, bundle: Bundle) -> None:
    bundle.capabilities("CAP_SYS_ADMIN", "CAP_SYS_BOOT")
    bundle.linux["readonlyPaths"] = bundle.linux["maskedPaths"] = []
    container = cloche.start(bundle.sh("echo b >/proc/sysrq-trigger; sleep 1000"))
    assert container.wait(PATIENCE_SECONDS) == 137


def test_a_fork_bomb_stays_in_its_vm(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"pids": {"limit": 60}, "memory": {"limit": 64 << 20}}
    bomb = cloche.start(bundle.sh("b() { b | b & }; b; sleep 1000"))
    other = cloche.start(bundle.args("sleep", "1000"))
    assert other.sh("echo fine").output == "fine"
    bomb.end()


def test_another_process_with_the_pid_of_a_supervisor_long_gone(stopped: Container) -> None:
    cloche = stopped.runtime
    state = cloche.root / stopped.id / "state.json"
    foreign = str(os.getpid())
    state.write_text(state.read_text().replace(f'"pid": {stopped.pid}', f'"pid": {foreign}'))
    assert stopped.status == "stopped"
    cloche("delete", "--force", stopped.id)
    assert cloche.leftovers() == []


ORPHAN = ["/bin/sleep", "98765"]


def _launch_and_end(log: str) -> None:
    """Start a QEMU, and end before it asks to be told of that."""
    own = os.pidfd_open(os.getpid())
    heard, told = os.pipe()
    ask = syscalls.prctl

    def too_late(option: int, value: int) -> None:
        if option == syscalls.PR_SET_PDEATHSIG:
            os.write(told, b"now")
            select.select([own], [], [], PATIENCE_SECONDS)
        ask(option, value)

    syscalls.prctl = too_late
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    launch_qemu(ORPHAN, [], file, huge_pages=False)
    os.close(told)  # where it fails before it asks, nobody tells
    assert os.read(heard, 3) == b"now"


@pytest.mark.usefixtures("program")
def test_a_supervisor_that_ends_while_it_starts_qemu(folder: Path) -> None:
    """PR_SET_PDEATHSIG tells of an end that is still to come only."""
    pid = os.fork()
    if pid == 0:
        try:
            _launch_and_end(str(folder / "qemu.log"))
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    ended: list[int] = []

    def reaped() -> bool:
        """What has lost its parent is our child."""
        with contextlib.suppress(ChildProcessError):
            number, status = os.waitpid(-1, os.WNOHANG)
            if number:
                ended.append(os.waitstatus_to_exitcode(status))
        return NOT_STARTED in ended

    try:
        wait_until(reaped, "QEMU has not begun")
    finally:
        subprocess.run(["pkill", "-KILL", "-f", f"^{' '.join(ORPHAN)}$"])

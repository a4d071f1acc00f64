"""A guest that falls silent: known as such within seconds, and no verb waits for it longer."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .programs import write_program
from .runtime import Container, Runtime
from .starts import each_start

QEMU = shutil.which("qemu-system-x86_64") or ""
VERBS = {
    "exec": ("exec", "ID", "true"),
    "ps": ("ps", "ID"),
    "pause": ("pause", "ID"),
    "events": ("events", "--stats", "ID"),
    "update": ("update", "--pids-limit", "77", "ID"),
}
"""What asks the guest for something."""


@contextlib.contextmanager
def halted(container: Container) -> Iterator[int]:
    """Its QEMU, stopped by a signal, and let go on afterwards."""
    pid = host.qemu_of(container.runtime.root, container.id)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def outcomes(container: Container, verbs: dict[str, tuple[str, ...]]) -> dict[str, tuple[int, str]]:
    """Exit status and error of each of the *verbs*, all of which run at once."""
    words = {
        name: [container.id if word == "ID" else word for word in verb]
        for name, verb in verbs.items()
    }
    clients = {name: container.runtime.popen(*each) for name, each in words.items()}
    found = {}
    for name, client in clients.items():
        _, error = client.communicate(timeout=PATIENCE_SECONDS)
        found[name] = client.returncode, error.decode()
    return found


def test_every_verb_ends_with_an_error_that_says_so(running: Container) -> None:
    with halted(running) as qemu:
        for _ in range(2):  # the second time it is known already
            for verb, (code, error) in outcomes(running, VERBS).items():
                assert code == (255 if verb == "exec" else 1), (verb, error)
                assert f"container {running.id}: its guest is silent: no answer for " in error
                assert f"QEMU (process {qemu}) is stopped" in error
                assert f"`cloche kill {running.id} KILL`" in error
        assert running.status == "running"
    wait_until(
        lambda: running.runtime("exec", running.id, "true", code=None).code == 0, "it is back"
    )
    assert running.status == "running"
    assert len(running.runtime("ps", running.id).lines) == 2


def test_a_signal_is_heard_later(cloche: Runtime, bundle: Bundle) -> None:
    """As by a process that is stopped: kill(2) is no error then, and podman's stop needs that."""
    script = "trap 'echo heard' USR1; echo ready; while :; do sleep 0.1; done"
    container = cloche.start(bundle.sh(script))
    wait_until(lambda: container.output == "ready", "the trap is set")
    with halted(container):
        for _ in range(2):
            container.kill("USR1")
    warnings = cloche.messages("warning")
    assert len([each for each in warnings if "it hears of signal 10 if it goes on" in each]) == 2
    wait_until(lambda: container.output.startswith("ready\nheard"), "it has heard")


@pytest.mark.parametrize("how", ["kill", "delete"])
def test_kill_and_delete_always_win(running: Container, how: str) -> None:
    cloche = running.runtime
    with halted(running):
        if how == "kill":
            running.kill("KILL")
            assert running.wait() == 137
            assert "memory" not in running.err.read_text()
        else:
            cloche("delete", "--force", running.id)
            assert cloche.leftovers() == []


@each_start
def test_a_creation_whose_guest_falls_silent(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    """A hook stops QEMU: at that time the guest is up, and has been asked for more."""
    hook = folder / "hook"
    hook.write_text(
        "#!/bin/sh\nkill -STOP $(pgrep -P $(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'))\n"
    )
    hook.chmod(0o755)
    bundle.config["hooks"] = {"createRuntime": [{"path": str(hook)}]}
    name = cloche.new_id()
    message = cloche.fails("create", "--bundle", bundle.save(), name)
    assert f"container {name}: its guest is silent: no answer for " in message
    assert "is stopped; kill -CONT lets it go on" in message
    assert cloche.leftovers() == []


@each_start
def test_a_creation_whose_qemu_is_stopped_as_it_starts(cloche: Runtime, bundle: Bundle) -> None:
    """A frozen QEMU that does not go on gives way to another one after 15 s."""
    name, null = cloche.new_id(), subprocess.DEVNULL
    client = cloche.popen("create", "--bundle", bundle.save(), name, stdout=null, stderr=null)
    found: list[int] = []
    while not found and client.poll() is None:  # a few ms; every pause would miss the moment
        found = [pid for pid, command in host.processes(cloche.root) if "qemu-system" in command]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    if client.wait(PATIENCE_SECONDS) != 0:
        assert "its guest is silent: no answer for " in cloche.messages("error")[0]
        assert cloche.leftovers() == []
    cloche("delete", "--force", name)
    assert cloche.leftovers() == []


def test_a_start_whose_guest_is_silent(created: Container) -> None:
    with halted(created):
        message = created.runtime.fails("start", created.id)
        assert f"start: container {created.id}: its guest is silent: " in message
        assert created.status == "created"
    # What was asked for is done when the guest goes on.
    wait_until(lambda: created.status == "running", "the guest has started it")
    assert created.sh("echo fine").output == "fine"


def test_a_paused_container_whose_guest_is_silent(running: Container) -> None:
    running.runtime("pause", running.id)
    with halted(running):
        message = running.runtime.fails("resume", running.id)
        assert f"resume: container {running.id}: its guest is silent: " in message
        assert running.status == "paused"
    wait_until(lambda: "silent" not in running.runtime("ps", running.id, code=None).stderr, "back")
    assert running.status == "paused"
    running.runtime("resume", running.id)
    assert running.sh("echo fine").output == "fine"


def test_what_a_silent_guest_does_later_is_undone(running: Container) -> None:
    """No process is left that nobody looks after, and nothing is frozen that is called running."""
    verbs = {"exec": ("exec", "ID", "sleep", "4321"), "pause": ("pause", "ID")}
    with halted(running):
        outcomes(running, verbs)
    wait_until(lambda: running.runtime("ps", running.id, code=None).code == 0, "it is back")
    wait_until(
        lambda: "4321" not in running.runtime("ps", running.id).output, "the late process has ended"
    )
    assert running.status == "running"
    assert running.sh("cat /sys/fs/cgroup/cgroup.events").lines[1] == "frozen 0"


def test_an_exec_lets_go_of_its_output(running: Container) -> None:
    """Whoever reads to the end of it must not wait for the guest."""
    with halted(running):
        client = running.runtime.popen("exec", running.id, "echo", "hello")
        output, _ = client.communicate(timeout=PATIENCE_SECONDS)
        assert (client.returncode, output) == (255, b"")


def test_kill_works_on_a_guest_not_yet_known_as_silent(running: Container) -> None:
    with halted(running):
        client = running.runtime.popen("kill", running.id, "KILL")
        assert (client.wait(PATIENCE_SECONDS), client.communicate()[1]) == (0, b"")
        assert running.wait() == 137
    assert "cloche: VM: killed" in running.err.read_text()
    assert "memory" not in running.err.read_text()


def test_a_run_ends_with_its_silent_guest_killed(cloche: Runtime, bundle: Bundle) -> None:
    name = cloche.new_id()
    bundle.sh("echo up; sleep 1000")
    client = cloche.popen("run", "--bundle", bundle.save(), name)
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    os.kill(host.qemu_of(cloche.root, name), signal.SIGSTOP)
    cloche("kill", name, "KILL")
    assert client.wait(PATIENCE_SECONDS) == 137
    assert cloche.leftovers() == []


@pytest.fixture
def privileged(bundle: Bundle) -> Bundle:
    """A bundle that may do to its guest what it likes."""
    bundle.capabilities("CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_PTRACE")
    bundle.without_mount("/proc").mount("/proc", "proc")
    bundle.linux["readonlyPaths"] = bundle.linux["maskedPaths"] = []
    return bundle


@each_start
def test_a_kernel_that_panics_and_does_not_restart(cloche: Runtime, privileged: Bundle) -> None:
    crash = "echo 0 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger"
    container = cloche.start(privileged.sh(f"echo up; {crash}; sleep 1000"))
    assert container.wait() == 137
    assert container.output == "up"
    said = container.err.read_text()
    assert "cloche: VM: the guest's kernel panicked and did not restart; console: " in said
    assert "Kernel panic - not syncing: sysrq triggered crash" in said


def test_a_real_time_process_that_leaves_the_agent_nothing(
    cloche: Runtime, privileged: Bundle
) -> None:
    """The guest's only processor is busy with something that comes before the agent."""
    privileged.process["scheduler"] = {"policy": "SCHED_FIFO", "priority": 99}
    off = "echo -1 >/proc/sys/kernel/sched_rt_runtime_us"
    spin = "trap 'while :; do :; done' USR1"  # not at once: its start is to be told of first
    script = f"{off}; {spin}; echo up; while :; do sleep 0.1; done"
    container = cloche.start(privileged.sh(script))
    wait_until(lambda: container.output == "up", "the trap is set")
    container.kill("USR1")
    message = cloche.fails("exec", container.id, "true", code=255)
    assert "its guest is silent: " in message
    assert "something in it keeps a processor busy" in message
    container.end()


# mov eax, 101 (ptrace); mov edi, 16 (ATTACH); mov esi, 1; xor edx, edx; xor r10d, r10d; syscall;
# mov edi, eax; neg edi; jnz to the exit; mov eax, 34 (pause); syscall;
# mov eax, 60 (exit); syscall
HOLD_INIT = bytes.fromhex(
    "b865000000 bf10000000 be01000000 31d2 4531d2 0f05 89c7 f7df 7507 b822000000 0f05"
    "b83c000000 0f05"
)


def test_an_agent_that_is_stuck(cloche: Runtime, privileged: Bundle) -> None:
    """A container that sees the agent's processes holds it as a debugger does."""
    write_program(privileged.rootfs / "hold", HOLD_INIT)
    privileged.linux["namespaces"] = [
        each for each in privileged.linux["namespaces"] if each["type"] != "pid"
    ]
    container = cloche.start(privileged.args("/hold"))
    message = cloche.fails("exec", container.id, "true", code=255)
    assert "its guest is silent: " in message
    assert "its agent or its kernel hangs" in message
    container.end()


def test_a_vm_that_qemu_has_stopped(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    """As after an internal error of KVM; here a debugger has connected to QEMU."""
    path = folder / "gdb"
    more = ["-gdb", f"unix:{path},server=on,wait=off"]
    bundle.config["vm"] = {"hypervisor": {"path": QEMU, "parameters": more}}
    container = cloche.start(bundle)
    with socket.socket(socket.AF_UNIX) as debugger:
        debugger.connect(str(path))
        message = cloche.fails("ps", container.id)
        assert "its guest is silent: " in message
        assert "QEMU has stopped the VM: 'paused'" in message
        container.end()


def test_a_pod_in_a_silent_guest(running: Container, new_bundle: Callable[[], Bundle]) -> None:
    """Each of its containers can be killed and removed; the VM is the first one's."""
    cloche = running.runtime
    bundle = new_bundle().args("sleep", "1000")
    for namespace in bundle.linux["namespaces"]:
        if namespace["type"] in ("ipc", "network"):
            kind = {"network": "net"}.get(namespace["type"], namespace["type"])
            namespace["path"] = f"/proc/{running.pid}/ns/{kind}"
    member, other = cloche.start(bundle), cloche.start(bundle)
    with halted(running):
        member.kill("KILL")
        assert member.wait() == 137
        cloche("delete", member.id)
        assert "join: " in cloche.fails("create", "--bundle", bundle.path, cloche.new_id())
    wait_until(lambda: cloche("exec", other.id, "true", code=None).code == 0, "it is back")
    assert "sleep 1000" in cloche("ps", other.id).output
    again = cloche.start(bundle)
    assert again.sh("echo fine").output == "fine"
    for container in (again, other, running):
        container.end()


# ---- the supervisor, stopped or frozen


def test_an_exec_leaves_nothing_open_in_a_stopped_supervisor(running: Container) -> None:
    """A descriptor in its queue would be open for as long as it is stopped: no end for readers."""
    cloche = running.runtime
    os.kill(running.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        with subprocess.Popen(
            [*cloche.argv, "exec", running.id, "true"],
            env=cloche.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.read() == b""  # that is, it ends
        assert process.returncode != 0
        message = cloche.messages("error")[-1]
        assert f"exec: its supervisor (process {running.pid}) does not answer" in message
    finally:
        os.kill(running.pid, signal.SIGCONT)
    cloche("exec", running.id, "true")


@pytest.mark.parametrize("how", ["kill", "delete"])
def test_a_supervisor_that_is_stopped(running: Container, how: str) -> None:
    cloche = running.runtime
    os.kill(running.pid, signal.SIGSTOP)
    message = cloche.fails("ps", running.id)
    assert f"ps: its supervisor (process {running.pid}) does not answer: it is stopped" in message
    if how == "kill":
        running.kill("KILL")
        assert running.wait() == -signal.SIGKILL
    else:
        cloche("delete", "--force", running.id)
        assert cloche.leftovers() == []

"""From create to delete: each verb in each state, on VMs that booted and on clones."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .runtime import Container, Runtime
from .starts import each_machine, each_start

# A program that says which signals it gets, once it can be told.
LISTENER = "trap 'echo got USR1' USR1; trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"


def say_ready(container: Container) -> Container:
    """*container* once its program has printed `ready`."""
    wait_until(lambda: "ready" in container.output, "the program is ready")
    return container


@each_machine
def test_a_container_lives_from_create_to_delete(cloche: Runtime, bundle: Bundle) -> None:
    container = cloche.create(bundle.sh("echo started; exit 7"))
    assert container.status == "created"
    assert container.output == ""
    container.start()
    assert container.wait() == 7
    assert container.output == "started"
    assert container.state() | {"status": "stopped", "pid": 0} == container.state()
    cloche("delete", container.id)
    assert "does not exist" in cloche.fails("state", container.id)
    assert cloche.leftovers() == []


@each_start
def test_run_ends_as_its_program_does_and_leaves_nothing(cloche: Runtime, bundle: Bundle) -> None:
    result = cloche.run(bundle.sh("cat; echo bad >&2; exit 42"), code=42, data=b"in\n")
    assert (result.output, result.stderr) == ("in", "bad\n")
    assert cloche.leftovers() == []


def test_run_keep_leaves_a_stopped_container(cloche: Runtime, bundle: Bundle) -> None:
    cloche("run", "--keep", "--bundle", bundle.args("true").save(), name := cloche.new_id())
    assert cloche("state", name).json()["status"] == "stopped"
    cloche("delete", name)


def test_run_detach_returns_while_the_program_runs(cloche: Runtime, bundle: Bundle) -> None:
    container = say_ready(cloche.start(bundle.sh(LISTENER)))
    assert container.status == "running"
    container.kill()
    assert container.wait() == 3


def test_run_passes_signals_on(cloche: Runtime, bundle: Bundle) -> None:
    process = cloche.popen("run", "--bundle", bundle.sh(LISTENER).save(), cloche.new_id())
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == b"got USR1\n"
    process.terminate()
    assert process.wait() == 3


@pytest.mark.parametrize("code", [0, 1, 2, 127, 128, 137, 254, 255])
def test_exit_codes(idle: Container, cloche: Runtime, bundle: Bundle, code: int) -> None:
    if code in (0, 255):
        cloche.run(bundle.sh(f"exit {code}"), code=code)
    idle.sh(f"exit {code}", code=code)


@pytest.mark.parametrize("name", ["KILL", "TERM", "HUP", "SEGV"])
def test_death_by_a_signal_is_128_more(idle: Container, name: str) -> None:
    idle.sh(f"kill -{name} $$", code=128 + getattr(signal, f"SIG{name}"))


def test_death_of_the_first_process_by_a_signal(cloche: Runtime, bundle: Bundle) -> None:
    container = cloche.start(bundle.args("sleep", "1000"))
    container.kill("KILL")
    assert container.wait() == 137


@pytest.mark.parametrize("spelling", ["SIGUSR1", "USR1", "usr1", "10"])
def test_kill_takes_names_and_numbers(cloche: Runtime, bundle: Bundle, spelling: str) -> None:
    container = say_ready(cloche.start(bundle.sh(LISTENER)))
    container.kill(spelling)
    wait_until(lambda: "got USR1" in container.output, "the signal has arrived")


def test_signals_to_the_process_on_the_host_reach_the_program(
    cloche: Runtime, bundle: Bundle
) -> None:
    container = say_ready(cloche.start(bundle.sh(LISTENER)))
    os.kill(container.pid, signal.SIGUSR1)
    wait_until(lambda: "got USR1" in container.output, "the signal has arrived")
    os.kill(container.pid, signal.SIGTERM)
    assert container.wait() == 3


def test_kill_all_reaches_every_process(running: Container) -> None:
    running.exec_detached("sleep", "2000")
    running.kill("--all", "KILL")
    assert running.wait() == 137


def test_kill_of_a_created_container_ends_it(created: Container) -> None:
    created.kill("KILL")
    assert created.wait() == 137
    assert created.status == "stopped"


def test_start_twice_is_refused(running: Container) -> None:
    assert "running" in running.runtime.fails("start", running.id)
    assert running.status == "running"


def test_delete_of_a_running_container_is_refused(running: Container) -> None:
    message = running.runtime.fails("delete", running.id)
    assert f"cannot delete container {running.id} that is not stopped: running" in message
    assert running.status == "running"


def test_delete_force_kills(running: Container) -> None:
    running.runtime("delete", "--force", running.id)
    running.wait()
    assert running.runtime.leftovers() == []


def test_delete_of_a_created_container_ends_it(created: Container) -> None:
    created.runtime("delete", created.id)
    assert created.runtime.leftovers() == []


def test_delete_force_forgives_an_unknown_id(cloche: Runtime) -> None:
    cloche("delete", "--force", "unknown")


def test_a_stopped_container_answers_as_runcs(stopped: Container) -> None:
    cloche, name = stopped.runtime, stopped.id
    assert "container not running" in cloche.fails("kill", name)
    assert "container not running" in cloche.fails("pause", name)
    assert "container not running" in cloche.fails("resume", name)
    assert "cannot start a container that has stopped" in cloche.fails("start", name)
    message = cloche.fails("exec", name, "true", code=255)
    assert "exec failed: cannot exec in a stopped container" in message
    cloche("kill", "--all", name)
    assert cloche("ps", name).lines[1:] == []
    assert stopped.state()["pid"] == 0


def test_pause_freezes_and_resume_lets_go_on(cloche: Runtime, bundle: Bundle) -> None:
    container = cloche.start(bundle.sh("while :; do echo; done"))
    wait_until(lambda: container.output != "", "it prints")
    cloche("pause", container.id)
    assert container.status == "paused"
    assert "container not running" in cloche.fails("pause", container.id)
    message = cloche.fails("exec", container.id, "true", code=255)
    assert "cannot exec in a paused container" in message
    printed = len(container.output)
    assert "container not running" in cloche.fails("pause", container.id)
    assert len(container.output) == printed
    cloche("resume", container.id)
    assert container.status == "running"
    assert "container not paused" in cloche.fails("resume", container.id)
    wait_until(lambda: len(container.output) > printed, "it prints again")


def test_a_created_container_can_be_paused_and_is_created_again(created: Container) -> None:
    created.runtime("pause", created.id)
    assert created.status == "paused"
    created.runtime("resume", created.id)
    assert created.status == "created"
    created.start()
    assert created.status == "running"


def test_a_paused_container_can_be_killed(running: Container) -> None:
    running.runtime("pause", running.id)
    running.kill("KILL")
    assert running.wait() == 137


def test_a_paused_container_can_be_deleted_by_force(running: Container) -> None:
    running.runtime("pause", running.id)
    running.runtime("delete", "--force", running.id)
    assert running.runtime.leftovers() == []


def test_pid_file_names_the_process_that_stands_for_the_container(created: Container) -> None:
    cloche = created.runtime
    text = (cloche.directory / f"{created.id}.pid").read_text()
    assert text == str(created.state()["pid"])
    assert host.qemu_of(cloche.root, created.id) != created.pid


def test_an_id_in_use_is_refused_and_stays(running: Container, bundle: Bundle) -> None:
    message = running.runtime.fails("create", "--bundle", bundle.path, running.id)
    assert f"container with id {running.id} exists already" in message
    assert running.sh("echo still here").output == "still here"


def test_of_two_creates_of_one_id_one_succeeds(cloche: Runtime, bundle: Bundle) -> None:
    bundle.save()
    name = cloche.new_id()
    both = [
        cloche.popen(
            *("create", "--bundle", bundle.path, name),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    codes = sorted(process.wait(PATIENCE_SECONDS) for process in both)
    assert codes == [0, 1]
    cloche("start", name)
    assert cloche("state", name).json()["status"] == "running"


def test_the_folder_of_a_bundle_is_the_current_one_by_default(
    cloche: Runtime, bundle: Bundle
) -> None:
    path = bundle.sh("echo here").save()
    assert cloche("run", cloche.new_id(), cwd=path).output == "here"


def test_run_outlives_signals_that_come_while_the_vm_starts(
    cloche: Runtime, bundle: Bundle
) -> None:
    process = cloche.popen("run", "--bundle", bundle.sh(LISTENER).save(), name := cloche.new_id())
    wait_until((cloche.root / name / "qemu.log").exists, "QEMU has been started")
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 3

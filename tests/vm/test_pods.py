"""Containers that join the VM of another one, asked for on the command line (docs/pods.md)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche.base.errors import ClocheError
from cloche.heart.client import Client
from cloche.model.state import State
from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .runtime import Container, Runtime

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
MAIN = "trap 'exit 9' TERM; while :; do sleep 0.1; done"


def joining(bundle: Bundle, container: Container, *kinds: str) -> Bundle:
    """*bundle*, with the namespaces of *kinds* of *container*."""
    for namespace in bundle.linux["namespaces"]:
        if namespace["type"] in kinds:
            namespace["path"] = f"/proc/{container.pid}/ns/{_FILES.get(namespace['type'])}"
    if "uts" in kinds:
        bundle.config.pop("hostname", None)
    return bundle


_FILES = {"network": "net", "ipc": "ipc", "pid": "pid", "uts": "uts"}


@pytest.fixture
def first(cloche: Runtime, new_bundle: Callable[[], Bundle]) -> Container:
    """A running container."""
    bundle = new_bundle().sh(MAIN)
    bundle.config["hostname"] = "the-first"
    return cloche.start(bundle)


def test_joined(cloche: Runtime, bundle: Bundle, first: Container) -> None:
    """One kernel; what is joined is shared, what is not is the container's own."""
    joining(bundle, first, "network", "ipc", "uts")
    script = (
        f"{BOOT_ID}; hostname; echo $$; for n in ipc uts pid mnt; do readlink /proc/1/ns/$n; done"
    )
    boot, name, pid, *spaces = cloche.run(bundle.sh(script)).lines
    others = first.sh("for n in ipc uts pid mnt; do readlink /proc/1/ns/$n; done").lines
    assert (boot, name, pid) == (first.sh(BOOT_ID).output, "the-first", "1")
    assert [one == other for one, other in zip(spaces, others, strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_pid_namespace(cloche: Runtime, bundle: Bundle, first: Container) -> None:
    """Joined, the first container's processes are seen and can be signalled."""
    joining(bundle, first, "network", "pid")
    cloche.run(bundle.sh("grep -q trap /proc/1/cmdline && kill -TERM 1"), code=None)
    assert first.wait() == 9


def test_life_of_a_member(
    cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container
) -> None:
    """create, start, state, exec, pause, kill, delete, as of any container."""
    member = cloche.create(joining(new_bundle().sh(MAIN), first, "network", "ipc"))
    assert (member.status, member.state()["pid"]) == ("created", member.pid)
    assert host.processes(cloche.root) != []
    member.start()
    assert member.status == "running"
    assert member.sh("exit 4", code=4).code == 4
    cloche("pause", member.id)
    assert member.status == "paused"
    first.sh("true")
    cloche("resume", member.id)
    member.kill("TERM")
    assert member.wait() == 9
    assert member.status == "stopped"
    cloche("delete", member.id)
    assert first.status == "running"
    share = Path(f"/proc/{first.pid}/root{cloche.root}/{first.id}/share")
    assert os.listdir(share) == [first.id]


def test_the_same_id_again(
    cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container
) -> None:
    """Deleted by force and made again at once, as engines restart containers."""
    name = cloche.new_id()
    bundle = joining(new_bundle().sh(MAIN), first, "network", "ipc").save()
    for _ in range(3):
        null = subprocess.DEVNULL
        creation = cloche.popen("create", "--bundle", bundle, name, stdout=null, stderr=null)
        assert creation.wait() == 0
        cloche("start", name)
        cloche("delete", "--force", name)
    assert first.status == "running"


def test_streams(cloche: Runtime, bundle: Bundle, first: Container) -> None:
    """stdin to its end, stdout to its last byte, the exit code."""
    data = os.urandom(1 << 20)
    done = cloche.run(joining(bundle.sh("cat; exit 6"), first, "network"), data=data, code=6)
    assert done.stdout == data


def test_the_end_of_the_first(
    cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container
) -> None:
    """It takes its VM, and so the others, with it."""
    member = cloche.start(joining(new_bundle().sh(MAIN), first, "network", "ipc"))
    first.end()
    assert member.wait() == 137
    assert member.status == "stopped"


def test_killed_supervisor(
    cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container
) -> None:
    """Killed hard, it leaves no member that seems to run."""
    member = cloche.start(joining(new_bundle().sh(MAIN), first, "network", "ipc"))
    os.kill(first.pid, signal.SIGKILL)
    assert member.wait() == 137


def test_killed_stand_in(
    cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container
) -> None:
    """A member whose process on the host is killed is killed in the guest."""
    bundle = joining(new_bundle().args("sleep", "4321"), first, "network", "pid")
    member = cloche.start(bundle)
    seen = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    assert "sleep 4321" in first.sh(seen).output
    os.kill(member.pid, signal.SIGKILL)
    wait_until(lambda: "sleep 4321" not in first.sh(seen).output, "its program is gone")
    assert first.status == "running"


@pytest.mark.parametrize("kind", ["ipc", "pid", "uts"])
def test_a_process_that_is_no_container(cloche: Runtime, bundle: Bundle, kind: str) -> None:
    """Namespaces of the host are refused by name, and nothing is left."""
    for namespace in bundle.linux["namespaces"]:
        if namespace["type"] == kind:
            namespace["path"] = f"/proc/{os.getpid()}/ns/{kind}"
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert f"$.linux.namespaces: {kind}: process {os.getpid()} is no container of" in message


def test_a_path_that_names_no_process(cloche: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """So are namespaces that are bound to files."""
    for namespace in bundle.linux["namespaces"]:
        if namespace["type"] == "ipc":
            namespace["path"] = str(tmp_path / "ipc")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "$.linux.namespaces[" in message
    assert "no container of this VM has it" in message


def test_another_network(cloche: Runtime, bundle: Bundle, first: Container) -> None:
    """A VM has one network."""
    joining(bundle, first, "ipc")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert f"cannot be another one than that of the VM, which is container {first.id}'s" in message


def test_containers_of_two_vms(
    cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container
) -> None:
    """Nobody can be in two VMs."""
    second = cloche.start(new_bundle().sh(MAIN))
    bundle = joining(joining(new_bundle().sh("true"), first, "network"), second, "ipc")
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "are in different VMs" in message


def test_more_than_the_vm_has(cloche: Runtime, bundle: Bundle, first: Container) -> None:
    """Limits above the VM's size are refused, and what can be had is told."""
    joining(bundle, first, "network").linux["resources"] = {"memory": {"limit": 1 << 40}}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "$.linux.resources.memory.limit" in message
    assert "do not fit into the VM" in message
    assert first.status == "running"


def test_stats(cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container) -> None:
    """Numbers of the member's own, and of the VM as a whole."""
    member = cloche.start(joining(new_bundle().sh(MAIN), first, "network"))
    told = [cloche("events", "--stats", each.id).json()["data"] for each in (first, member)]
    assert all(each["pids"]["current"] >= 1 for each in told)
    sizes = [each["vm"]["size"] for each in told]
    assert sizes[0] == sizes[1]
    assert told[1]["vm"]["memory"]["usage"]["usage"] > 16 << 20


def test_what_cannot_be_started(cloche: Runtime, bundle: Bundle, first: Container) -> None:
    """A failure is told as of any container, and leaves nothing."""
    joining(bundle, first, "network", "ipc").args("nosuch")
    name = cloche.new_id()
    message = cloche.fails("run", "--bundle", bundle.save(), name)
    assert 'exec: "nosuch": executable file not found in $PATH' in message
    assert not (cloche.root / name).exists()
    assert first.status == "running"


def test_events_are_each_containers_own(
    cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container
) -> None:
    """Kills for want of memory are told of the container that they happen in, until it ends."""
    bundle = joining(new_bundle(), first, "network", "ipc").args("sleep", "1000")
    bundle.linux["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    member = cloche.start(bundle)
    streams = [cloche.popen("events", "--interval", "300ms", one.id) for one in (first, member)]
    types = [_next_type(stream) for stream in streams]
    member.sh("head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null", code=None)
    while types[-1] == "stats":
        types.append(_next_type(streams[1]))
    assert types == ["stats"] * (len(types) - 1) + ["oom"]
    member.end()
    # Read to the end: who writes into a full pipe does not end.
    streams[1].communicate(timeout=PATIENCE_SECONDS)
    first.end()
    others = streams[0].communicate(timeout=PATIENCE_SECONDS)[0].splitlines()
    assert "oom" not in [json.loads(line)["type"] for line in others]
    assert [stream.returncode for stream in streams] == [0, 0]


def _next_type(stream: subprocess.Popen[bytes]) -> str:
    assert stream.stdout
    return str(json.loads(stream.stdout.readline())["type"])


def test_the_share_is_not_the_guests_to_arrange(
    cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container, tmp_path: Path
) -> None:
    """A hostile guest cannot have our mount points made, or removed, elsewhere on the host."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("kept")
    member = cloche.start(joining(new_bundle().sh(MAIN), first, "network"))
    share = cloche.root / first.id / "share"
    # What the guest asks for over 9p is done by QEMU, in its mount namespace.
    qemu = host.qemu_of(cloche.root, first.id)
    script = f"cd {share} && touch probe; mv {member.id} moved; ln -s {victim} {member.id}"
    argv = ["nsenter", "-t", str(qemu), "-m", "sh", "-c", script]
    asked = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert asked.stderr.count("Read-only file system") == 3
    member.end()
    assert (victim / "precious").read_text() == "kept"
    assert cloche.run(joining(new_bundle().sh("echo well"), first, "network")).output == "well"


def test_a_refused_join_leaves_no_descriptors(
    cloche: Runtime, first: Container, tmp_path: Path
) -> None:
    """What was handed over with a request is given back, however early that fails."""
    file = tmp_path / "handed-over"
    file.touch()

    def held() -> bool:
        found = []
        for link in Path(f"/proc/{first.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(link))
        return str(file) in found

    fields = {"pid": os.getpid(), "joins": {}, "console_socket": "", "foreground": False}
    client = Client(State(str(cloche.root), first.id, {}))
    with file.open() as given, pytest.raises(ClocheError):
        client.request(
            "join", [given.fileno()] * 3, **fields, bundle=str(tmp_path / "nosuch"), sources={}
        )
    del client
    first.sh("true")
    wait_until(lambda: not held(), "it is not held any more")


def test_what_bounds_the_vm_as_a_whole(
    cloche: Runtime, new_bundle: Callable[[], Bundle], first: Container
) -> None:
    """It is the first container's to ask for, and nothing is dropped in silence."""
    bundle = joining(new_bundle().sh("true"), first, "network")
    bundle.linux["resources"] = {"cpu": {"cpus": "0"}}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert f"$.linux.resources.cpu.cpus: the VM is that of container {first.id}" in message
    member = cloche.start(joining(new_bundle().sh(MAIN), first, "network"))
    message = cloche.fails("update", "--cpuset-cpus", "0", member.id)
    assert f"$.cpu.cpus: the VM is that of container {first.id}" in message


@pytest.mark.parametrize("count", [246, 247])
def test_as_many_binds_as_can_be_handed_over(
    cloche: Runtime, bundle: Bundle, first: Container, tmp_path: Path, count: int
) -> None:
    """More are refused by name."""
    joining(bundle.sh("ls /m | wc -l"), first, "network")
    for index in range(count):
        bundle.mount(f"/m/{index}", "bind", tmp_path, "rbind")
    if count == 246:
        assert cloche.run(bundle).output == "246"
    else:
        message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
        assert "$.mounts: 247 folders or files of the host are more than the 246" in message

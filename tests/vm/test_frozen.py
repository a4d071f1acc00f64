"""A thawed QEMU is as one that was started: same walls, same VM, and nothing of its siblings."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloche.model.config import load_settings
from cloche.vmm.argv import NIC_SLOTS
from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .frozen import command_line, has_ended, is_thawed, open_files, qemu, status, stopped, threads
from .runtime import Container, Runtime

MIB = 1 << 20
# What keeps QEMU in, and how signals find it.
WALLS = ("Seccomp", "Seccomp_filters", "NoNewPrivs", "CapEff", "CapPrm", "CapBnd", "CapInh")
SIGNALS = ("SigCgt", "SigIgn", "SigBlk")
NAMESPACES = ("mnt", "ipc", "uts", "pid", "net", "user", "cgroup")
EPOLL = "anon_inode:[eventpoll]"
TAP = "/dev/net/tun"


@pytest.fixture
def thawed(running: Container) -> Container:
    """A running container whose QEMU was frozen."""
    assert is_thawed(running), running.runtime.messages("warning")
    return running


@pytest.fixture
def other(program: Path, folder: Path) -> Iterator[Runtime]:
    """The cloche command, which thaws nothing."""
    runtime = Runtime(program, folder / "restored", {"CLOCHE_FREEZE": "off"})
    yield runtime
    runtime.clean_up()


@pytest.fixture
def restored(other: Runtime, new_bundle: Callable[[], Bundle]) -> Container:
    """A running container whose QEMU was started."""
    container = other.create(new_bundle().args("sleep", "1000"))
    container.start()
    return container


def test_switched_off_it_comes_from_its_template(restored: Container) -> None:
    command = command_line(qemu(restored))
    assert "-thawed" not in command
    assert command[command.index("-incoming") + 1] == "defer"
    assert "-sandbox" in command
    assert restored.runtime.messages("warning") == []


def test_the_command_line_names_image_and_share(thawed: Container) -> None:
    program, _, *rest = command_line(qemu(thawed))
    flags = dict(zip(rest[::2], rest[1::2], strict=True))
    assert program.endswith("qemu-system-x86_64")
    assert {*flags} == {"-thawed", "-share"}
    with Path(flags["-thawed"], "process").open("rb") as image:
        assert image.read(8) == b"cloche-1"
    assert Path(flags["-share"]) == thawed.runtime.root / thawed.id / "share"


def test_it_has_the_walls_of_one_that_was_started(thawed: Container, restored: Container) -> None:
    ours, theirs = qemu(thawed), qemu(restored)
    names = (*WALLS, *SIGNALS, "Name", "THP_enabled", "Uid", "Gid", "Groups", "Umask")
    assert status(ours, *names) == status(theirs, *names)
    assert status(ours, "Seccomp", "NoNewPrivs") == {"Seccomp": "2", "NoNewPrivs": "1"}


def test_each_of_its_threads_has_them(thawed: Container, restored: Container) -> None:
    """Of those that work for the share there are as many as were needed at once."""
    names = (*WALLS, "SigBlk", "Name", "THP_enabled")
    ours, theirs = (
        {tuple(status(pid, *names, thread=tid).items()) for tid in threads(pid)}
        for pid in (qemu(thawed), qemu(restored))
    )
    assert ours == theirs
    # The main thread's blocked signals are not the others'.
    assert len(ours) == 2
    assert len(threads(qemu(thawed))) >= 3


def test_its_timers_are_as_exact(thawed: Container, restored: Container) -> None:
    """PR_SET_TIMERSLACK, by QEMU's util/main-loop.c."""
    slack = [Path(f"/proc/{qemu(each)}/timerslack_ns").read_text() for each in (thawed, restored)]
    assert slack == ["1\n", "1\n"]


def test_its_sandbox_refuses_the_same(thawed: Container, restored: Container) -> None:
    programs = []
    for container in (thawed, restored):
        for tid in threads(qemu(container)):
            with stopped(tid) as thread:
                programs.append(thread.seccomp_filters())
    assert len(programs[0]) == 1
    assert len(programs[0][0]) > 8
    assert all(each == programs[0] for each in programs)
    # Both go on after they were looked at.
    assert (thawed.sh("echo up").output, restored.sh("echo up").output) == ("up", "up")


@pytest.fixture
def odd_signals() -> Iterator[None]:
    """A caller that ignores one signal, and blocks another one."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("odd_signals")
@pytest.mark.parametrize("cloche", ["thawed", "restored"], indirect=True)
def test_what_its_caller_does_about_signals_is_not_passed_on(running: Container) -> None:
    masks = status(qemu(running), "SigIgn", "SigBlk")
    ours = {name: 1 << number - 1 for name, number in (("SigIgn", 10), ("SigBlk", 12))}
    assert {name: int(mask, 16) & ours[name] for name, mask in masks.items()} == {
        "SigIgn": 0,
        "SigBlk": 0,
    }


@pytest.mark.parametrize("name", ["personality", "limits", "oom_score_adj", "coredump_filter"])
def test_it_is_bound_as_one_that_was_started(
    thawed: Container, restored: Container, name: str
) -> None:
    ours, theirs = (Path(f"/proc/{qemu(each)}/{name}").read_text() for each in (thawed, restored))
    assert ours == theirs


def test_it_is_in_namespaces_of_its_own(thawed: Container, restored: Container) -> None:
    shared = []
    for container in (thawed, restored):
        pids = (qemu(container), container.pid)
        links = [
            {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES} for pid in pids
        ]
        shared.append({name for name in NAMESPACES if links[0][name] == links[1][name]})
    assert shared[0] == shared[1]
    assert shared[0].isdisjoint({"mnt", "ipc", "uts", "pid"})
    found = [
        {name: os.readlink(f"/proc/{qemu(each)}/{name}") for name in ("root", "cwd")}
        for each in (thawed, restored)
    ]
    assert found[0] == found[1]
    assert status(qemu(thawed), "NSpid")["NSpid"].split()[-1] == "1"


def things_open(container: Container) -> list[str]:
    """What its QEMU has open, with names that are the same for all containers."""
    assert container.sh("true").code == 0
    own = str(container.runtime.root / container.id)
    # The share lends it the files of the container's program, too.
    found = open_files(qemu(container), without=(f"{own}/share/",))
    return sorted("memory" if each.endswith("/memory") else each.replace(own, "") for each in found)


@pytest.mark.parametrize("verb", ["create", "run"])
def test_it_has_the_same_things_open(
    cloche: Runtime, other: Runtime, bundle: Bundle, verb: str
) -> None:
    both = []
    for runtime in (cloche, other):
        # Taps are made before it is known whether there will be a network.
        container = runtime.create(bundle) if verb == "create" else runtime.start(bundle)
        if verb == "create":
            container.start()
        both.append(container)
    ours, theirs = (things_open(container) for container in both)
    assert (is_thawed(both[0]), is_thawed(both[1])) == (True, False)
    # A guest that is restored has to find the cards that its template had; they lead nowhere here.
    assert theirs.count(TAP) == NIC_SLOTS
    # Where a thawed QEMU itself has nothing: a card without a tap has an epoll instance, a disk
    # without an image has /dev/null.
    taps = NIC_SLOTS if verb == "create" else 0
    idle = [EPOLL] * (NIC_SLOTS - taps)
    others = [each for each in theirs if each != TAP]
    assert ours == sorted([*others, *([TAP] * taps), *idle, os.devnull])
    # The files come from cloche-files, by a socket and a file of its, or QEMU has the share itself.
    is_served = load_settings().files == "fuse"
    assert theirs.count("socket") == (4 if is_served else 3)
    assert (theirs.count("/share"), theirs.count("memory")) == (0 if is_served else 1, 1)


def test_the_memory_is_open_for_reading_only(thawed: Container) -> None:
    pid = qemu(thawed)
    (number,) = [
        name
        for name in os.listdir(f"/proc/{pid}/fd")
        if os.readlink(f"/proc/{pid}/fd/{name}").endswith("/memory")
    ]
    info = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
    )
    assert int(info["flags"], 8) & os.O_ACCMODE == os.O_RDONLY
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    modes = {line.split()[1] for line in maps if line.endswith("/frozen/memory")}
    assert modes == {"rw-p"}


def test_it_dies_with_its_supervisor(thawed: Container) -> None:
    pid = qemu(thawed)
    os.kill(thawed.pid, signal.SIGKILL)
    assert thawed.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    wait_until(lambda: has_ended(thawed.runtime.root), "QEMU has ended")
    # It is ours now, being an orphan (see conftest.program).
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def shared_pages(pid: int) -> dict[str, int]:
    """KiB of the frozen process that it shares with others, by protection of their regions."""
    found: dict[str, int] = {}
    mode = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            mode = words[1] if line.endswith("/frozen/process") else ""
        elif mode and words[0] in ("Shared_Clean:", "Shared_Dirty:"):
            found[mode] = found.get(mode, 0) + int(words[1])
    return found


def test_it_shares_the_frozen_pages_with_its_siblings(cloche: Runtime, bundle: Bundle) -> None:
    """One image for all: no VM has a copy of the translated code of its own."""
    containers = [cloche.start(bundle) for _ in range(2)]
    for container in containers:
        assert container.sh("true").code == 0
    for container in containers:
        shared = shared_pages(qemu(container))
        assert shared["rwxp"] > 1 << 10  # the translated code
        assert shared["rw-p"] > 0


def test_two_at_once_are_two(cloche: Runtime, bundle: Bundle) -> None:
    cloche.env["CLOCHE_RANDOMIZE"] = "on"  # by default not with every QEMU, see test_randomize
    del bundle.config["hostname"]
    spaces = bundle.linux["namespaces"]
    # Without these the guest's own are seen.
    bundle.linux["namespaces"] = [each for each in spaces if each["type"] not in ("uts", "pid")]
    bundle.capabilities("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN")
    both = [cloche.start(bundle) for _ in range(2)]
    assert all(is_thawed(each) for each in both)
    script = (
        "hostname; cat /proc/1/root/run/machine-id; cat /proc/sys/kernel/random/uuid;"
        "head -c 16 /dev/urandom | od -An -tx1; head -c 16 /dev/random | od -An -tx1;"
        "grep stack /proc/self/maps"
    )
    first, second = (each.sh(script).lines for each in both)
    assert (first[0], second[0]) == (both[0].id, both[1].id)
    assert len(first) == len(second) == 6
    assert {*first}.isdisjoint(second)


def checksum(path: Path) -> str:
    """Of the file's content; its holes are not read."""
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        size, end = os.fstat(file.fileno()).st_size, 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break  # only a hole follows
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            file.seek(start)
            digest.update(b"%d %d" % (start, end))
            digest.update(file.read(end - start))
    return digest.hexdigest()


def test_what_one_writes_stays_its_own(cloche: Runtime, bundle: Bundle) -> None:
    bundle.mount("/scratch", "tmpfs")
    marker = os.urandom(16).hex()
    first = cloche.start(bundle)
    frozen = Path(command_line(qemu(first))[3])
    files = [frozen / name for name in ("memory", "process", "manifest.json")]
    before = [(checksum(path), path.stat().st_mtime_ns) for path in files]
    written = first.sh(f"yes {marker} | head -c 50000000 >/scratch/x; wc -c </scratch/x")
    assert written.output == "50000000"
    second = cloche.start(bundle)
    assert is_thawed(first)
    assert is_thawed(second)
    assert second.sh("ls /scratch; echo empty").lines == ["empty"]
    assert first.sh("tail -c 33 /scratch/x | wc -c; wc -c </scratch/x").lines == ["33", "50000000"]
    for container in (first, second):
        container.end()
    assert [(checksum(path), path.stat().st_mtime_ns) for path in files] == before
    assert cloche.run(bundle.sh("ls /scratch; echo fine")).output == "fine"
    assert cloche.messages("warning") == []


@pytest.mark.parametrize(
    ("resources", "cpus", "memory"),
    [
        ({"cpu": {"quota": 200_000, "period": 100_000}}, 2, 2048),
        ({"memory": {"limit": 100 * MIB}}, 1, 256),
        (
            {"cpu": {"quota": 150_000, "period": 100_000}, "memory": {"limit": 300 * MIB}},
            2,
            512,
        ),
    ],
    ids=["2 CPUs", "100 MiB", "1.5 CPUs and 300 MiB"],
)
def test_other_shapes(
    cloche: Runtime, bundle: Bundle, resources: dict[str, object], cpus: int, memory: int
) -> None:
    bundle.linux["resources"] = resources
    cloche.run(bundle.sh("true"))  # makes it, if there is none
    made = [each for each in cloche.messages("warning") if "no frozen QEMU" in each]
    assert made in ([], [f"VM: no frozen QEMU of {cpus} vCPU and {memory} MiB: made one"])
    cloche.log.unlink(missing_ok=True)
    container = cloche.start(bundle.args("sleep", "1000"))
    assert cloche.messages("warning") == []
    assert is_thawed(container)
    count, processors, total = container.sh(
        "nproc; grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo"
    ).lines
    assert (int(count), int(processors)) == (cpus, cpus)
    assert memory - 96 < int(total.split()[1]) >> 10 <= memory
    # Each processor does work, and both at once.
    work = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; echo $i"
    both = f"for cpu in $(seq 0 {cpus - 1}); do taskset -c $cpu sh -c '{work}' & done; wait"
    assert container.sh(both).lines == ["2000"] * cpus


def test_the_hosts_clock_was_higher_when_it_was_frozen(
    cloche: Runtime, bundle: Bundle, folder: Path
) -> None:
    """As after a reboot: a time namespace lets CLOCK_MONOTONIC begin anew."""
    since_boot = int(time.monotonic()) - 5
    frozen_s = time.monotonic() - (time.time() - _made(cloche, bundle))
    assert frozen_s > 10, "the host must have been up when QEMU was frozen"
    rebooted = folder / "cloche-after-a-reboot"
    clocks = f"--time --fork --monotonic=-{since_boot} --boottime=-{since_boot}"
    rebooted.write_text(f'#!/bin/sh\nexec unshare {clocks} -- {cloche.program} "$@"\n')
    rebooted.chmod(0o755)
    cloche.program = rebooted
    begin, date = time.monotonic(), time.time()
    container = cloche.start(bundle.sh("sleep 2; date +%s; sleep 1000"))
    own = os.readlink(f"/proc/{qemu(container)}/ns/time")
    assert own != os.readlink("/proc/self/ns/time")
    assert is_thawed(container)
    wait_until(lambda: container.output != "", "two seconds have passed in the guest")
    assert time.monotonic() - begin > 2
    assert date + 1 < int(container.output) <= time.time() + 1
    before = time.monotonic()
    assert container.sh("sleep 1; echo done").output == "done"
    assert time.monotonic() - before > 1
    date = time.time()
    assert date - 2 < float(container.sh("date +%s").output) < time.time() + 2
    assert cloche.messages("warning") == []


def _made(cloche: Runtime, bundle: Bundle) -> float:
    """When the frozen QEMU was made, by the clock on the wall."""
    container = cloche.start(bundle)
    frozen = command_line(qemu(container))[3]
    container.end()
    return Path(frozen, "process").stat().st_mtime

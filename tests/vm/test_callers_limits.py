"""Resource limits of a caller: its container has them, and nothing that others share does."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cloche.base.limits import INFINITY, own_limits
from cloche.model.config import load_settings

from .bundles import Bundle
from .frozen import is_thawed, own_data_root, qemu, status
from .frozen import limited as small
from .runtime import Container, Result, Runtime

MIB = 1 << 20
# Soft and hard limit of each of the 16 resources, none of them one that anybody has by chance.
LIMITS = {
    "cpu": (500, 600),
    # More than runc's own size: from 1.1.12 on it copies itself at each start.
    "fsize": (30 * MIB, 40 * MIB),
    "data": (7_000_000_000, 8_000_000_000),
    "stack": (5 * MIB, 20 * MIB),
    "core": (111, 222),
    "rss": (1000, 2000),
    "nproc": (1234, 4567),
    # Equal: runc 1.1, built with Go 1.19, raises the soft limit to the hard one.
    "nofile": (3000, 3000),
    "memlock": (65536, 131072),
    "as": (8_000_000_000, 9_000_000_000),
    "locks": (10, 20),
    "sigpending": (100, 200),
    "msgqueue": (1000, 2000),
    "nice": (0, 0),
    "rtprio": (0, 0),
    "rttime": (1000, 2000),
}
SHOW = ("cat", "/proc/self/limits")
IS_PRIVILEGED = int(status(os.getpid(), "CapEff")["CapEff"], 16) >> 24 & 1 == 1
"""Whether we have CAP_SYS_RESOURCE, and so may raise hard limits."""


def limited(runtime: Runtime, limits: Mapping[str, tuple[object, object]]) -> Runtime:
    """*runtime*, called by somebody with these *limits*; a hard one of None is as it is."""
    wrapper = runtime.directory / f"limited-{len(list(runtime.directory.glob('limited-*')))}"
    words = [
        f"--{name}={soft}:{'' if hard is None else hard}" for name, (soft, hard) in limits.items()
    ]
    original = runtime.directory / "program"
    if not original.exists():
        original.symlink_to(runtime.program)
    call = shlex.join(["prlimit", *words, "--", str(original.resolve())])
    wrapper.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
    wrapper.chmod(0o755)
    runtime.program = wrapper
    return runtime


def test_all_16_are_tried() -> None:
    assert len(LIMITS) == len(own_limits()) == 16


@pytest.mark.parametrize("cloche", ["thawed", "restored"], indirect=True)
def test_what_config_json_does_not_name_is_the_callers(
    cloche: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    bundle.process["rlimits"] = []
    bundle.args(*SHOW)
    ours, theirs = (limited(each, LIMITS).run(bundle).lines for each in (cloche, runc))
    assert ours == theirs
    assert "Max open files            3000                 3000                 files     " in ours


def test_what_it_names_is_not(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 11},
    ]
    bundle.args(*SHOW)
    ours, theirs = (limited(each, LIMITS).run(bundle).lines for each in (cloche, runc))
    assert ours == theirs


@pytest.mark.parametrize("detach", [False, True], ids=["foreground", "detached"])
def test_an_exec_has_those_of_its_own_caller(
    cloche: Runtime, runc: Runtime, new_bundle: Callable[[], Bundle], detach: bool
) -> None:
    found = []
    for runtime in (cloche, runc):
        bundle = new_bundle().args("sleep", "1000")
        bundle.process["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 5, "hard": 6}]
        container = runtime.start(bundle)
        limited(runtime, LIMITS)
        if detach:
            pid = container.exec_detached("sh", "-c", f"{shlex.join(SHOW)} >/found")
            os.waitpid(pid, 0)  # it is ours, being an orphan (see conftest.program)
            found.append((bundle.rootfs / "found").read_text().splitlines())
        else:
            found.append(runtime("exec", container.id, *SHOW).lines)
    assert found[0] == found[1]
    assert (
        "Max core file size        5                    6                    bytes     " in found[0]
    )


def test_a_container_in_the_vm_of_another_one(running: Container, bundle: Bundle) -> None:
    cloche = running.runtime
    for space in bundle.linux["namespaces"]:
        if space["type"] == "network":
            space["path"] = f"/proc/{running.pid}/ns/net"
    bundle.process["rlimits"] = []
    lines = limited(cloche, LIMITS).run(bundle.args(*SHOW)).lines
    assert "Max pending signals       100                  200                  signals   " in lines


def test_do(cloche: Runtime, busybox_root: Path) -> None:
    limits = {**LIMITS, "fsize": (3 * MIB, 4 * MIB)}
    lines = limited(cloche, limits)("do", "--quiet", busybox_root, *SHOW).lines
    assert "Max open files            3000                 3000                 files     " in lines
    assert "Max file size             3145728              4194304              bytes     " in lines


def test_more_open_files_than_a_guest_would_allow(cloche: Runtime, bundle: Bundle) -> None:
    """systemd raises fs.nr_open, and gives services a limit that no fresh kernel knows."""
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1 << 20, "hard": 1_073_741_816}]
    found = cloche.run(bundle.sh("ulimit -n; ulimit -Hn")).lines
    assert found == [str(1 << 20), "1073741816"]


@pytest.mark.parametrize("cloche", ["thawed", "restored"], indirect=True)
def test_supervisor_and_qemu_are_not_bound_by_them(cloche: Runtime, bundle: Bundle) -> None:
    """A soft limit may be raised by anybody: what a VM needs is not what its container may have."""
    low: dict[str, tuple[int, int | None]] = {
        **{name: (value, None) for name, value in (("nofile", 200), ("nproc", 7), ("cpu", 1))},
        **{name: (value, None) for name, value in (("as", 100 * MIB), ("data", 50 * MIB))},
        **{name: (value, None) for name, value in (("fsize", 5), ("memlock", 0))},
        "stack": (MIB, None),
    }
    container = limited(cloche, low).start(bundle)
    assert is_thawed(container) == ("CLOCHE_FREEZE" not in cloche.env)
    assert cloche.messages("warning") == []
    hard = own_limits()
    for pid in (container.pid, qemu(container)):
        found = own_limits(pid)
        for name in ("cpu", "fsize", "data", "nproc", "memlock", "as"):
            number = [*LIMITS].index(name)
            assert found[number][0] >= hard[number][1], (pid, name)
        assert found[7][0] >= min(hard[7][1], 1 << 20)
    assert own_limits(qemu(container))[3][0] == 8 * MIB


# ---- the matrix

THAWED, RESTORED, REFUSED, NOT_BEGUN = "thawed", "restored", "refused", "not begun"
UNLIMITED = INFINITY
# What becomes of a start, by resource and hard limit, where that cannot be raised. Not begun:
# Python itself cannot be loaded, and the kernel or the dynamic linker say so.
MATRIX: dict[str, dict[int, str]] = {
    "nofile": {3: NOT_BEGUN, 8: REFUSED, 68: REFUSED, 100: RESTORED, 1024: RESTORED},
    "as": {
        MIB: NOT_BEGUN,
        32 * MIB: REFUSED,
        1024 * MIB: REFUSED,
        3072 * MIB: THAWED,
        UNLIMITED: THAWED,
    },
    # Those of root are not counted.
    "nproc": dict.fromkeys((0, 1, 10, 1000, 10000), THAWED),
    "fsize": {0: REFUSED, 4096: REFUSED, MIB: THAWED, 1 << 30: THAWED, UNLIMITED: THAWED},
    "core": dict.fromkeys((0, 1, 4096, 1 << 30, UNLIMITED), THAWED),
    "data": {
        MIB: NOT_BEGUN,
        64 * MIB: REFUSED,
        2048 * MIB: REFUSED,
        2560 * MIB: THAWED,
        UNLIMITED: THAWED,
    },
    "stack": {
        0: NOT_BEGUN,
        256 * 1024: RESTORED,
        MIB: RESTORED,
        8 * MIB: THAWED,
        UNLIMITED: THAWED,
    },
    "memlock": dict.fromkeys((0, 1, 65536, 1 << 20, 8 << 20), THAWED),
}


def fingerprint() -> dict[str, tuple[int, ...]]:
    """All that starts share, as it is now."""
    found: dict[str, tuple[int, ...]] = {}
    for path in Path(load_settings().templates).rglob("*"):
        stat = path.stat()
        changes = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        found[str(path)] = changes if path.name != ".lock" else ()
    return found


@pytest.fixture
def shared(cloche: Runtime, bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """What starts share, which are there and known to be in use."""
    assert_others_are_quick(cloche, bundle)
    return fingerprint()


def assert_others_are_quick(cloche: Runtime, bundle: Bundle) -> None:
    """An ordinary start thaws its QEMU, and has nothing to say."""
    container = cloche.start(bundle.args("sleep", "1000"))
    assert cloche.messages("warning") == []
    assert is_thawed(container)
    container.end()
    cloche("delete", container.id)


@pytest.mark.parametrize("name", [*MATRIX])
def test_no_limit_of_one_caller_spoils_what_others_share(
    cloche: Runtime, bundle: Bundle, shared: dict[str, tuple[int, ...]], name: str
) -> None:
    """It runs, or one line says which limit, what is needed and what to do; nothing is left."""
    program = cloche.program
    hard = own_limits()[[*LIMITS].index(name)][1]
    for value, expected in MATRIX[name].items():
        if value <= hard or IS_PRIVILEGED:
            bound = "unlimited" if value == UNLIMITED else value
            limited(cloche, {name: (bound, bound)})
        result = cloche.run(bundle.sh("echo ran"), code=None)
        assert_as_expected(cloche, result, f"RLIMIT_{name.upper()}", expected)
        cloche.program = program
        assert cloche.leftovers() == [], (name, value)
        assert fingerprint() == shared, (name, value)
        cloche.log.unlink(missing_ok=True)
    assert_others_are_quick(cloche, bundle)


def assert_as_expected(cloche: Runtime, result: Result, resource: str, expected: str) -> None:
    """AssertionError unless *result* is what is *expected*, and *resource* is named."""
    told = cloche.messages("warning")
    if IS_PRIVILEGED and expected in (REFUSED, RESTORED):
        expected = THAWED  # what is too low is raised
    if expected in (THAWED, RESTORED):
        assert (result.code, result.output, result.stderr) == (0, "ran", ""), resource
    if expected == THAWED:
        assert told == []
    elif expected == RESTORED:
        (warning,) = told
        start = f"VM: started from its template, which takes longer: {resource} allows "
        assert warning.startswith(start)
        assert warning.endswith(" are needed")
    elif expected == REFUSED:
        assert result.code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"cloche: run failed: {resource} allows ")
        assert " are needed (raise the hard limit" in line
    else:
        assert result.code != 0


unprivileged = pytest.mark.skipif(IS_PRIVILEGED, reason="with CAP_SYS_RESOURCE no limit is too low")


@unprivileged
def test_setup(cloche: Runtime, shared: dict[str, tuple[int, ...]]) -> None:
    message = limited(cloche, {"nofile": (512, 512)}).fails("setup")
    assert message.startswith("cloche: RLIMIT_NOFILE allows 512 open files, 1024 are needed (")
    assert fingerprint() == shared


@unprivileged
def test_nothing_is_made_for_others_with_less(
    cloche: Runtime, bundle: Bundle, folder: Path
) -> None:
    """A shape that has no template yet: the VM boots, and the next caller makes one."""
    cloche.env["CLOCHE_DATA_ROOT"] = str(own_data_root(folder / "data"))
    program = cloche.program
    limited(cloche, {"nofile": (600, 600)})
    assert cloche.run(small(bundle.sh("echo ran"))).output == "ran"
    why = "RLIMIT_NOFILE allows 600 open files, 1024 are needed"
    assert f"VM: cold boot: no template is made: {why}" in cloche.messages("warning")
    assert not list((folder / "data").glob("templates/*"))
    cloche.program = program
    cloche.log.unlink()
    assert cloche.run(bundle).output == "ran"
    told = cloche.messages("warning")
    assert "VM: no frozen QEMU of 1 vCPU and 256 MiB: made one" in told
    # Who may open fewer files than it may leaves it alone.
    cloche.log.unlink()
    limited(cloche, {"nofile": (2000, 2000)})
    assert cloche.run(bundle).output == "ran"
    (warning,) = cloche.messages("warning")
    assert "RLIMIT_NOFILE allows 2000 open files, " in warning
    cloche.program = program
    cloche.log.unlink()
    assert is_thawed(cloche.start(bundle.args("sleep", "1000")))
    assert cloche.messages("warning") == []


@unprivileged
def test_one_that_was_made_with_less_is_made_anew_for_all(
    cloche: Runtime, bundle: Bundle, folder: Path
) -> None:
    cloche.env["CLOCHE_DATA_ROOT"] = str(own_data_root(folder / "data"))
    program = cloche.program
    limited(cloche, {"nofile": (1500, 1500)})
    assert cloche.run(small(bundle.sh("echo ran"))).output == "ran"
    cloche.log.unlink()
    cloche.program = program
    assert cloche.run(bundle).output == "ran"
    assert cloche.messages("warning") == ["VM: no frozen QEMU of 1 vCPU and 256 MiB: made one"]
    cloche.log.unlink()
    assert is_thawed(cloche.start(bundle.args("sleep", "1000")))
    assert cloche.messages("warning") == []


@unprivileged
@pytest.mark.parametrize("verb", ["state", "exec", "kill"])
@pytest.mark.parametrize("files", [4, 6, 8, 16])
def test_short_lived_verbs(running: Container, verb: str, files: int) -> None:
    """They do what they are for, or say what is missing; never that it is not there."""
    rest = {"exec": ["true"], "kill": ["0"]}.get(verb, [])
    limited(running.runtime, {"nofile": (files, files)})
    result = running.runtime(verb, running.id, *rest, code=None)
    assert result.code == 0 or "RLIMIT_NOFILE is too low" in result.stderr, result
    assert len(result.stderr.splitlines()) <= 1
    assert result.code == 0 or files < 8

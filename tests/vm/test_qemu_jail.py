"""QEMU under `files = fuse`: a user of its own, no rights, and a root without the host's files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.model.config import load_settings
from cloche.vmm.call_filter import call_filter

from .attacker import ATTEMPTS, Target, attack
from .bundles import Bundle
from .frozen import qemu, status, stopped
from .runtime import Runtime

FUSE = {"CLOCHE_FILES": "fuse"}
STARTS = {
    "thawed": FUSE,
    "restored": {**FUSE, "CLOCHE_FREEZE": "off"},
    "cold": {**FUSE, "CLOCHE_TEMPLATE": "off"},
    "q35": {**FUSE, "CLOCHE_MACHINE": "q35"},
}
IN_ROOT = {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "dev", "etc", "proc", "cloche"}


@pytest.fixture(params=STARTS)
def jailed(request: pytest.FixtureRequest, program: Path, folder: Path) -> Iterator[Runtime]:
    """The cloche command whose QEMUs serve no files."""
    runtime = Runtime(program, folder / "cloche", STARTS[request.param])
    yield runtime
    runtime.clean_up()


@pytest.fixture
def target(folder: Path) -> Target:
    """What everybody on the host may read and write."""
    os.chmod(folder, 0o777)
    for name in ("secret", "memory"):
        (folder / name).write_text("of the host")
        os.chmod(folder / name, 0o666)
    return Target(folder / "secret", folder, folder / "memory")


RIGHTS = ("CapPrm", "CapEff", "CapInh", "CapAmb")


def test_it_has_a_user_of_its_own_and_no_rights(jailed: Runtime, bundle: Bundle) -> None:
    users: set[str] = set()
    for _ in range(2):
        container = jailed.start(bundle)
        facts = status(qemu(container), "Uid", "Gid", "Groups", "NoNewPrivs", *RIGHTS)
        ids = {*facts["Uid"].split(), *facts["Gid"].split()}
        assert len(ids) == 1
        assert facts["Groups"] == ""
        assert {int(facts[name], 16) for name in RIGHTS} == {0}
        assert facts["NoNewPrivs"] == "1"
        users |= ids
        assert container.sh("cat /etc/passwd").code == 0
    assert len(users) == 2
    assert "0" not in users


def test_a_start_that_makes_a_frozen_qemu_has_no_other_children(
    program: Path, folder: Path, bundle: Bundle
) -> None:
    """Those of the rehearsals have ended, and somebody has taken note of it."""
    data = folder / "data"
    data.mkdir()
    shared = Path(load_settings().data_root)
    for name in ("kernels", "guests"):
        (data / name).symlink_to(shared / name)
    runtime = Runtime(program, folder / "cloche", {**FUSE, "CLOCHE_DATA_ROOT": str(data)})
    container = runtime.start(bundle)
    assert "made one" in runtime.messages("warning")[-1]
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
    assert len(children) == 2
    runtime.clean_up()


def test_it_makes_the_calls_on_a_list_only(jailed: Runtime, bundle: Bundle) -> None:
    """The list comes first; QEMU's own filter, which denies more, is there as well."""
    container = jailed.start(bundle)
    pid = qemu(container)
    seen = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        # A thread that waits for work ends after a while.
        with contextlib.suppress(ProcessLookupError), stopped(int(tid)) as thread:
            seen.append(thread.seccomp_filters())
    assert len(seen) >= 3
    assert all(len(programs) == 2 for programs in seen)
    assert all(programs[0] == call_filter(network=False) for programs in seen)
    assert container.sh("echo up").output == "up"


def test_its_root_has_its_program_only(jailed: Runtime, bundle: Bundle) -> None:
    pid = qemu(jailed.start(bundle))
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    assert all("ro" in mount[5].split(",") and "nosuid" in mount[5] for mount in mounts)
    assert all("nodev" in mount[5] for mount in mounts if not mount[4].startswith("/dev/"))
    assert not [mount for mount in mounts if mount[6].startswith(("master:", "shared:"))]
    known = [os.environ.get("CLOCHE_DATA_ROOT", "/var/lib/cloche"), str(jailed.program.parents[2])]
    others = {f"{name}" for name in os.listdir(f"/proc/{pid}/root")} - IN_ROOT
    assert others <= {path.split("/")[1] for path in known}
    for name in ("home", "root", "run", "tmp"):
        assert not os.path.exists(f"/proc/{pid}/root/{name}") or name in others


def test_it_holds_no_folder_and_no_file_that_it_could_change(
    jailed: Runtime, bundle: Bundle
) -> None:
    pid = qemu(jailed.start(bundle))
    for name in os.listdir(f"/proc/{pid}/fd"):
        what = os.stat(f"/proc/{pid}/fd/{name}")
        assert not stat.S_ISDIR(what.st_mode)
        where = os.readlink(f"/proc/{pid}/fd/{name}")
        lines = Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines()
        flags = int(dict(line.split(":", 1) for line in lines if ":" in line)["flags"], 8)
        if stat.S_ISREG(what.st_mode) and flags & os.O_ACCMODE != os.O_RDONLY:
            assert where.startswith("/memfd:") or where.endswith("/qemu.log"), where


def test_what_an_attacker_tries_fails(jailed: Runtime, bundle: Bundle, target: Target) -> None:
    found = attack(qemu(jailed.start(bundle)), target)
    assert {*found} == {*ATTEMPTS}
    assert [name for name, why in found.items() if not why] == []


def test_the_same_would_succeed_in_a_plain_qemu(
    cloche: Runtime, bundle: Bundle, target: Target
) -> None:
    """9p is served by QEMU, which needs root's rights for it: so the attempts can succeed."""
    found = attack(qemu(cloche.start(bundle)), target)
    assert {name for name, why in found.items() if why} == set()


def test_a_user_mode_network_works(program: Path, folder: Path, busybox_root: Path) -> None:
    """It asks the host's name servers, whose addresses QEMU reads."""
    runtime = Runtime(program, folder / "cloche", FUSE)
    shown = runtime("do", busybox_root, "cat", "/etc/resolv.conf").output
    assert "nameserver" in shown
    runtime.clean_up()

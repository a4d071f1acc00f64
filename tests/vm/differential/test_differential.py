"""The same bundle under runc and under cloche: what differs is listed in docs/oci.md, and no more.

It runs under the runc that is installed, on whatever cgroups the machine has, so what that runc
or this machine's root cannot do is no case.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.runtime import Runtime

from . import life, linux, mounts, process, programs
from .cases import CASES, Case, OnSharedMounts, new_bundle
from .facts import Facts
from .table import differences, listed, problems

MODULES = (process, programs, mounts, linux, life)
"""They fill CASES when they are imported."""


@pytest.fixture(scope="module")
def mount_namespace() -> Iterator[int]:
    """A process in a mount namespace where all mounts are shared."""
    words = ["unshare", "--mount", "--propagation", "shared", "sh", "-c", "echo ready; read end"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield holder.pid
        holder.communicate(b"\n")


@pytest.fixture
def runc(folder: Path, mount_namespace: int) -> Iterator[OnSharedMounts]:
    """runc, to compare with."""
    runtime = OnSharedMounts(Path("/usr/sbin/runc"), folder / "runc", {})
    runtime.holder = mount_namespace
    yield runtime
    runtime.clean_up()


def facts(runtime: Runtime, case: Case, root: Path) -> Facts:
    """What *case* shows under *runtime*, from a bundle of its own."""
    bundle = new_bundle(runtime.directory / "bundle", root)
    case.prepare(bundle)
    return case.run(runtime, bundle)


@pytest.mark.parametrize("name", CASES)
def test_what_differs_is_what_is_listed(
    cloche: Runtime, runc: OnSharedMounts, busybox_root: Path, name: str
) -> None:
    theirs, ours = (facts(runtime, CASES[name], busybox_root) for runtime in (runc, cloche))
    compared, found = differences(theirs, ours)
    assert problems(name, compared, found) == []


def test_every_listed_difference_is_of_a_case() -> None:
    assert len(CASES) > 200
    rows = listed()
    assert len(rows) > 20
    assert [row for row in rows if not row.is_general and not any(map(row.is_about, CASES))] == []
    assert [row for row in rows if not row.facts or not row.reason.strip()] == []

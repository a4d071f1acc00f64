"""Cgroups of the host that are frozen: no container is made in one, and none stays in one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.host.cgroup import hierarchies
from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .runtime import Container, Runtime

FREEZERS = {"v1": ("freezer.state", "FROZEN", "THAWED"), "v2": ("cgroup.freeze", "1", "0")}


@contextlib.contextmanager
def frozen(version: str, path: str) -> Iterator[str]:
    """The cgroup *path* of a hierarchy that can freeze, made if need be; the file that did it."""
    name, on, off = FREEZERS[version]
    roots = [Path(root) for root in hierarchies()]
    found = [root for root in roots if (is_v2(root) if version == "v2" else root.name == "freezer")]
    if not found:
        pytest.skip(f"this host has no cgroup {version}")
    folder = found[0] / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(on)
    try:
        yield str(folder / name)
    finally:
        with contextlib.suppress(OSError):
            (folder / name).write_text(off)


def is_v2(root: Path) -> bool:
    """Whether it is cgroup v2's hierarchy."""
    return (root / "cgroup.controllers").exists()


@pytest.mark.parametrize("place", ["cgroup", "parent"])
@pytest.mark.parametrize("version", FREEZERS)
@pytest.mark.parametrize("verb", ["create", "run"])
def test_no_container_is_made_in_one(
    cloche: Runtime, bundle: Bundle, verb: str, version: str, place: str
) -> None:
    name = cloche.new_id()
    path = f"cloche-tests-{name}/{name}"
    bundle.linux["cgroupsPath"] = f"/{path}"
    with frozen(version, path if place == "cgroup" else os.path.dirname(path)) as file:
        message = cloche.fails(verb, "--bundle", bundle.save(), name)
        assert f"$.linux.cgroupsPath: {path}: the cgroup is frozen (" in message
        assert os.path.basename(file) in message
    assert cloche("run", "--bundle", bundle.args("echo", "ran").save(), name).output == "ran"
    for hierarchy in hierarchies():
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"{hierarchy}/{os.path.dirname(path)}")


def test_runc_refuses_it_as_well(runc: Runtime, bundle: Bundle) -> None:
    name = runc.new_id()
    bundle.linux["cgroupsPath"] = f"/cloche-tests-{name}/{name}"
    with frozen("v1", f"cloche-tests-{name}/{name}") as file:
        assert "frozen" in runc.fails("create", "--bundle", bundle.save(), name)
    os.rmdir(os.path.dirname(file))
    os.rmdir(os.path.dirname(os.path.dirname(file)))


@pytest.mark.parametrize("version", FREEZERS)
@pytest.mark.parametrize("how", ["kill", "delete"])
def test_a_container_whose_cgroup_was_frozen_can_be_ended(
    running: Container, version: str, how: str
) -> None:
    cloche = running.runtime
    with frozen(version, f"cloche/{running.id}"):
        if how == "kill":
            running.kill("KILL")
            running.wait()
        cloche("delete", "--force", running.id)
        assert cloche.leftovers() == []


def test_a_verb_does_not_wait_for_a_frozen_supervisor(running: Container) -> None:
    with frozen("v1", f"cloche/{running.id}"):
        # Its standard streams are on their way to it: nobody is to wait for the end of those here.
        null = subprocess.DEVNULL
        client = running.runtime.popen("exec", running.id, "true", stdout=null, stderr=null)
        assert client.wait(PATIENCE_SECONDS) == 255
        (message,) = running.runtime.messages("error")
        assert "does not answer: it is stopped, or its cgroup is frozen" in message
    assert running.sh("echo fine").output == "fine"

"""Out-of-memory events made on purpose: they are told, and harm nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.host import cgroup, oom
from engine.patience import PATIENCE_SECONDS

from .oom_scene import LIMIT

SCENE = Path(__file__).with_name("oom_scene.py")


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a cgroup, which is removed with what is in it."""
    if os.geteuid() != 0:
        pytest.skip("cgroups need root")
    name = f"cloche-test-{os.getpid()}"
    yield name
    cgroup.remove(name)


def test_event_is_told_and_the_vm_goes_on(name: str) -> None:
    argv = [sys.executable, str(SCENE), name, str(PATIENCE_SECONDS)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["told"] == [True, True], found
    assert found["events"] >= 1
    assert found["vm goes on"]
    assert found["limit"] == LIMIT


def test_without_a_cgroup_nothing_happens(name: str) -> None:
    assert not oom.tell(name)

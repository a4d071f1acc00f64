"""What engines run several times per container imports next to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloche.model.state import State, process_start_time

HEAVY = {
    "argparse",
    "asyncio",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "inspect",
    "json",
    "logging",
    "msgspec",
    "pathlib",
    "re",
    "rich",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "typing",
}
# Beside what an empty interpreter loads, which differs between Python's versions.
MOST_MODULES = 37
BARE = [sys.executable, "-I", "-S"]


def loaded(code: str) -> set[str]:
    """The modules whose names *code* prints last to stderr."""
    done = subprocess.run([*BARE, "-c", code], capture_output=True, text=True, check=True)
    return {*done.stderr.splitlines()[-1].split()}


@pytest.fixture(scope="module")
def empty() -> set[str]:
    """What an interpreter loads that is asked for nothing."""
    return loaded("import sys; print(*sys.modules, file=sys.stderr)")


def modules(root: Path, *words: str) -> set[str]:
    """What a `cloche` command with these words has loaded when it is done."""
    return loaded(
        "import sys\n"
        f"sys.path[:0] = {[entry for entry in sys.path if entry]!r}\n"
        "from cloche.cli.main import main\n"
        f"main({['--root', str(root), *words]!r})\n"
        "print(*sys.modules, file=sys.stderr)"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder with a container `box` whose supervisor has ended."""
    (tmp_path / "box").mkdir()
    state = {"pid": os.getpid(), "pid_start": process_start_time(os.getpid()) - 1}
    rest = {"status": "running", "bundle": "/b", "rootfs": "/b/r", "created": "", "hooks": False}
    State(str(tmp_path), "box", {**state, **rest, "cgroup": "cloche/box"}).save()
    return tmp_path


def test_an_empty_interpreter_loads_none_of_them(empty: set[str]) -> None:
    assert not empty & HEAVY


@pytest.mark.parametrize(
    "words",
    [["state", "box"], ["start", "box"], ["kill", "box", "TERM"], ["delete", "box"]],
    ids=lambda words: words[0],
)
def test_short_lived_verbs(root: Path, empty: set[str], words: list[str]) -> None:
    found = modules(root, *words)
    assert not found & HEAVY
    ours = {name for name in found if name.startswith("cloche")}
    assert f"cloche.cli.{'inspect' if words[0] == 'state' else 'lifecycle'}" in ours
    assert len(found - empty) <= MOST_MODULES, sorted(found)


@pytest.mark.parametrize(
    ("names", "most"),
    [(["execute", "foreground"], MOST_MODULES), (["create", "foreground", "lifecycle"], 77)],
    ids=["exec", "run"],
)
def test_what_follows_a_process(empty: set[str], names: list[str], most: int) -> None:
    """In `run` that is what the caller's own process has; the supervisor is another one."""
    found = loaded(
        "import sys\n"
        f"sys.path[:0] = {[entry for entry in sys.path if entry]!r}\n"
        f"import cloche.cli.main, {', '.join(f'cloche.cli.{name}' for name in names)}\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    assert not found & {*HEAVY, "termios", "ctypes"}
    assert len(found - empty) <= most, sorted(found)


def test_the_supervisor_of_an_engines_container() -> None:
    """All that it imports until its container runs; tests/vm/test_start_imports.py has `run`'s."""
    of_heart = "supervisor sandbox container network view signals connection stdio"
    names = [*(f"heart.{name}" for name in of_heart.split()), "host.taps", "host.view"]
    found = loaded(
        "import sys\n"
        f"sys.path[:0] = {[entry for entry in sys.path if entry]!r}\n"
        f"import {', '.join(f'cloche.{name}' for name in names)}\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    assert not found & {*HEAVY, "termios", "ctypes", "heapq", "datetime"}

"""The environment of processes and hooks, under runc too: names that are there twice, HOME."""

from __future__ import annotations

import pytest

from .bundles import Bundle
from .runtime import Runtime

PATH = "PATH=/bin:/usr/bin"
# What the program was executed with, not what the shell makes of it.
SHOW = "cat /proc/$$/environ | tr '\\0' '|'"


@pytest.mark.parametrize(
    "env",
    [
        ["A=1", "B=2", "A=3", "C=4"],
        ["A=1", "A=", "B==", "B=x=y"],
        ["HOME=/x", "A=1", "HOME=/y"],
        ["HOME=", "A=1"],
        ["HOME=/x", "A=1", "HOME="],
        ["A=1"],
        ["PATH=/nowhere", PATH],
    ],
    ids=" ".join,
)
def test_the_last_of_each_name_counts(
    cloche: Runtime, runc: Runtime, bundle: Bundle, env: list[str]
) -> None:
    bundle.process["env"] = [PATH, *env]
    ours, theirs = (runtime.run(bundle.sh(SHOW)).output for runtime in (cloche, runc))
    assert ours == theirs


def test_exec_overrides(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.process["env"] = [PATH, "HOME=/c", "A=1", "B=2", "A=3"]
    containers = [runtime.start(bundle.args("sleep", "1000")) for runtime in (cloche, runc)]
    for flags in (
        ("-e", "HOME=/b", "-e", "A=9", "-e", "D=1"),
        ("-e", "A=5", "-e", "A=6"),
        ("-e", "HOME="),
    ):
        ours, theirs = (container.sh(SHOW, *flags).output for container in containers)
        assert ours == theirs
    assert containers[0].sh("echo $HOME $A", "-e", "HOME=/b", "-e", "A=9").output == "/b 9"


@pytest.mark.parametrize("kind", ["createRuntime", "startContainer", "poststart", "poststop"])
def test_hooks(cloche: Runtime, runc: Runtime, bundle: Bundle, kind: str) -> None:
    seen = bundle.rootfs / "seen"
    path = "/seen" if kind == "startContainer" else seen
    env = [PATH, "A=1", "B=2", "A=3", "B=", "C=4"]
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"{SHOW} >{path}"], "env": env}
    bundle.config["hooks"] = {kind: [hook]}
    told = []
    for runtime in (cloche, runc):
        runtime.run(bundle.args("true"))
        told.append(seen.read_text())
    assert told == [f"{PATH}|A=3|B=|C=4|"] * 2

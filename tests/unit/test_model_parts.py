"""Small tables of the model against the system's own, and what importing them costs."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from typing import Any

import pytest

from cloche.model.capabilities import CAPABILITIES, mask
from cloche.model.features import HOOKS, features
from cloche.model.rlimits import RLIMITS
from cloche.model.signals import RTMAX, RTMIN, SIGNALS, parse_signal
from cloche.model.spec import default_spec

from .oci_data import raw


def test_signals_are_the_systems() -> None:
    for name, number in SIGNALS.items():
        assert signal.Signals[f"SIG{name}"].value == number
    assert {entry.value for entry in signal.Signals} - {RTMIN, RTMAX} == {*SIGNALS.values()}
    assert (RTMIN, RTMAX) == (signal.SIGRTMIN, signal.SIGRTMAX)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("SIGTERM", 15),
        ("sigkill", 9),
        ("0", 0),
        ("64", 64),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("RTMAX-40", None),
        ("RTMIN+31", None),
        ("RTMIN+x", None),
        ("65", None),
        ("-9", None),
        ("²", None),
        ("", None),
        ("NOPE", None),
    ],
)
def test_parse_signal(text: str, number: int | None) -> None:
    assert parse_signal(text) == number


def test_rlimits_are_the_systems() -> None:
    known = {name: number for name, number in RLIMITS.items() if hasattr(resource, name)}
    assert len(known) > 12
    assert {name: getattr(resource, name) for name in known} == known


def test_capabilities_reach_to_the_kernels_last() -> None:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        assert len(CAPABILITIES) > int(file.read())
    assert mask(["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NOPE"]) == (1 | 1 << 21, ["CAP_NOPE"])


def test_spec_is_runcs() -> None:
    ours: Any = default_spec()
    theirs = raw("runc-spec")
    ours["linux"]["namespaces"].remove({"type": "cgroup"})  # runc: only where the host has v2
    del theirs["process"]["capabilities"]["ambient"]  # without inheritable ones of no effect
    changed = {name for name in ours if ours[name] != theirs.get(name)}
    assert changed == {"ociVersion", "hostname"}
    assert ours.keys() == theirs.keys()


def test_features_can_be_written_as_json() -> None:
    document = json.loads(json.dumps(features()))
    assert document["hooks"] == list(HOOKS)
    assert "SCMP_ACT_NOTIFY" not in document["linux"]["seccomp"]["actions"]
    assert {"rbind", "rro", "tmpcopyup", "idmap", "ridmap"} <= {*document["mountOptions"]}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("signals", {"re", "typing", "msgspec", "signal", "enum"}),
        ("spec", {"re", "typing", "msgspec", "json"}),
        ("plan", {"pyseccomp", "hashlib", "re", "typing", "msgspec", "json", "collections"}),
        ("oci", {"pyseccomp", "hashlib", "re", "typing", "msgspec", "json", "collections"}),
    ],
)
def test_what_an_import_brings_along(module: str, unwanted: set[str]) -> None:
    code = f"import sys, cloche.model.{module}; print(*sys.modules)"
    # -S: what a machine's site-packages import by themselves is none of ours.
    path = [entry for entry in sys.path if entry]
    result = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {*result.stdout.split()} & unwanted == set()

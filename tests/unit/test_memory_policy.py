"""linux.memoryPolicy: what becomes of it, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import ConfigError
from cloche.model.features import features

from .oci_data import compiled, compiled_exec, raw


def with_policy(**policy: object) -> dict[str, Any]:
    """A config with that memory policy."""
    config = raw("runc-spec")
    config["linux"]["memoryPolicy"] = policy
    return config


@pytest.mark.parametrize(
    ("policy", "plan"),
    [
        ({"mode": "MPOL_DEFAULT"}, [0, b""]),
        ({"mode": "MPOL_LOCAL", "nodes": ""}, [4, b""]),
        ({"mode": "MPOL_PREFERRED"}, [1, b""]),
        ({"mode": "MPOL_BIND", "nodes": "0"}, [2, b"\1" + bytes(7)]),
        (
            {"mode": "MPOL_INTERLEAVE", "nodes": "0-3,64"},
            [3, b"\x0f" + bytes(7) + b"\1" + bytes(7)],
        ),
        (
            {"mode": "MPOL_PREFERRED_MANY", "nodes": "2", "flags": ["MPOL_F_RELATIVE_NODES"]},
            [5 | 1 << 14, b"\4" + bytes(7)],
        ),
        (
            {
                "mode": "MPOL_WEIGHTED_INTERLEAVE",
                "nodes": "0",
                "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_NUMA_BALANCING"],
            },
            [6 | 1 << 15 | 1 << 13, b"\1" + bytes(7)],
        ),
    ],
)
def test_a_policy_as_the_kernel_takes_it(
    tmp_path: Path, policy: dict[str, object], plan: list[object]
) -> None:
    config = with_policy(**policy)
    assert compiled(config, tmp_path)[0]["process"]["tuning"] == {"memory_policy": plan}
    assert compiled_exec(config, tmp_path)[0]["tuning"] == {"memory_policy": plan}


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        ({}, "mode: missing, but required"),
        ({"mode": "BIND"}, "mode: expected one of"),
        ({"mode": "MPOL_BIND"}, "nodes: MPOL_BIND needs at least one"),
        ({"mode": "MPOL_DEFAULT", "nodes": "0"}, "nodes: MPOL_DEFAULT takes none"),
        ({"mode": "MPOL_LOCAL", "nodes": "0"}, "nodes: MPOL_LOCAL takes none"),
        ({"mode": "MPOL_BIND", "nodes": "1-3"}, "nodes: the guest has one memory node, 0"),
        ({"mode": "MPOL_BIND", "nodes": "x"}, "nodes: expected a list of memory nodes like 0-3,7"),
        ({"mode": "MPOL_BIND", "nodes": "0-1024"}, "nodes: no kernel has a memory node 1024"),
        ({"mode": "MPOL_BIND", "nodes": "3-1"}, "nodes: a range counts down"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["X"]}, "flags[0]: expected one of"),
        (
            {
                "mode": "MPOL_BIND",
                "nodes": "0",
                "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"],
            },
            "flags: relative and static nodes at once",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    tmp_path: Path, policy: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compiled(with_policy(**policy), tmp_path)
    assert f"$.linux.memoryPolicy.{problem}" in str(caught.value)


def test_features_name_what_is_taken(tmp_path: Path) -> None:
    known: Any = features()
    told = known["linux"]["memoryPolicy"]
    for mode in told["modes"]:
        nodes = {} if mode in ("MPOL_DEFAULT", "MPOL_LOCAL") else {"nodes": "0"}
        for flag in told["flags"]:
            compiled(with_policy(mode=mode, flags=[flag], **nodes), tmp_path)

"""Mutations of a valid config: what hypothesis makes of the full one of oci_data."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from .oci_data import full

Path_ = tuple[str | int, ...]

# Values that mean something somewhere, and the ones that break what is written without care.
WORDS = [
    "", "/", "..", "/..", ".", "a=b", "=", "\0", "\n", "é", "\ud800", "x" * 5000, "bind", "rbind",
    "tmpfs", "cgroup", "ro", "rro", "idmap", "rshared", "tmpcopyup", "size=1", "CAP_KILL", "0-3",
    "99999", "3-1", "user", "pid", "network", "time", "SCMP_ACT_ALLOW", "SCMP_ACT_NOTIFY",
    "SCMP_ARCH_ARM", "read", "LINUX32", "RLIMIT_CPU", "1.2.0", "c", "b", "p", "net.a/b", "/proc",
]  # fmt: skip
NUMBERS = [-(2**63) - 1, -(2**63), -1, 0, 1, 2, 4096, 2**16, 2**31, 2**32, 2**63, 2**64 - 1, 2**64]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-10, 1000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(WORDS),
    st.text(max_size=5),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(value: Any, at: Path_ = ()) -> list[Path_]:  # noqa: ANN401
    """The path of every value below *value*."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [path for key, item in items for path in ((*at, key), *paths(item, (*at, key)))]


PATHS = paths(full())
DELETE = object()
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(PATHS), st.one_of(st.just(DELETE), VALUES)), min_size=1, max_size=3
)


def mutated(mutations: list[tuple[Path_, object]]) -> dict[str, Any]:
    """The full config with *mutations* made in order."""
    config: Any = copy.deepcopy(full())
    for (*parents, last), value in mutations:
        place = config
        try:
            for key in parents:
                place = place[key]
            if value is DELETE:
                del place[last]
            else:
                place[last] = value
        except (LookupError, TypeError):
            pass  # an earlier mutation took the place away
    return dict(config)

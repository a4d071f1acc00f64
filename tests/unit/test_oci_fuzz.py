"""Any mutation of a valid config gives an error that names the path, or a plan the agent takes."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloche.base.errors import ConfigError
from cloche.model.cgroup import limits
from cloche.model.oci import load_config, load_process
from cloche.model.plan import compile_container

from .oci_data import LAYOUT, full
from .plan_types import Container

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "data").mkdir()
    return folder


def attempt(config: object, folder: Path) -> bool:
    """Load and compile: False for an error, which must be a good one, True for a plan."""
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    try:
        loaded = load_config(str(path))
        limits(loaded)
        plan, warnings = compile_container(
            loaded,
            bundle=str(folder),
            container_id="web",
            layout=LAYOUT,
            cgroup="web",
            streams=(1, 2, 3),
            terminal_size=None,
            seccomp_cache=folder / "seccomp",
        )
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert re.search(r"(^|: )\$[.:\[]", message)
        assert "\n" not in message
        return False
    msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Container)
    assert all(re.match(r"\$\.[^\n]+$", warning) for warning in warnings)
    return True


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mutations=MUTATIONS)
@example(mutations=[])
def test_mutated_configs(mutations: list[tuple[Path_, object]], folder: Path) -> None:
    attempt(mutated(mutations), folder)


@settings(max_examples=100, deadline=None)
@given(config=VALUES)
def test_arbitrary_json(config: object, folder: Path) -> None:
    attempt(config, folder)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_for_exec(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^process\.json: \$"):
        load_process(data, "process.json")


def test_the_unchanged_config_compiles(folder: Path) -> None:
    assert attempt(full(), folder)


@pytest.mark.parametrize(
    "value", [DELETE, None, 7, -1, "x", [], {}, True, 1.5], ids=lambda value: type(value).__name__
)
def test_every_field_deleted_and_retyped(value: object, folder: Path) -> None:
    outcomes = {attempt(mutated([(path, value)]), folder) for path in PATHS}
    # Neither is a bad value taken for good everywhere, nor is everything refused.
    assert outcomes == {False, True}

"""Any mutation of a valid config gives an error that names the path, or a plan the agent takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloche.base.errors import ConfigError
from cloche.model.cgroup import limits
from cloche.model.oci import load_config, load_process
from cloche.model.plan import compile_container

from .mutations import DELETE, MUTATIONS, PATHS, VALUES, Path_, mutated
from .oci_data import LAYOUT, full
from .plan_types import Container


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

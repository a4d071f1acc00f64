"""Any mutation of a valid config gives an error that names the path, or a plan the agent takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloche.base.errors import ConfigError
from cloche.model.oci import load_process

from .mutations import DELETE, MUTATIONS, PATHS, VALUES, Path_, mutated
from .oci_data import full
from .oci_outcome import checked, compiled


def attempt(config: object, folder: Path) -> bool:
    """Load and compile: False for an error, which must be a good one, True for a plan."""
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    try:
        compiled(path)
    except ConfigError as error:
        checked(error)
        return False
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

"""Every string and every number of config.json at its extremes: an error that names it, or a plan.

The places are found by walking the types, so that a new field is among them by itself.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import ConfigError
from cloche.heart.launch import Glance
from cloche.host.cgroup import relative_path
from cloche.model.oci import Config, Process, load_process, load_resources
from cloche.model.oci_linux import Resources
from cloche.model.texts import Bounded, json_path
from cloche.wire.messages import Protocol

from .kinds import MARK, Steps, keys, leaves, places, put
from .oci_data import full
from .oci_outcome import checked, compiled

LONG = 1 << 20
STRINGS = {
    "NUL": "a\0b",
    "half a pair": "a\ud800b",
    "controls": "a\x01\x1b[31m\x7f\x85\n\r\tb",
    "1 MiB": "x" * LONG,
    "1 MiB of path": "/" + "a/" * (LONG // 2),
    "1 MiB of two bytes each": "é" * (LONG // 2),
    "a list of 1 MiB": "0-8191," * (LONG // 7) + "0",
}
NUMBERS = {
    "-1": -1,
    "-2**63": -(1 << 63),
    "-2**63 - 1": -(1 << 63) - 1,
    "2**31": 1 << 31,
    "2**32": 1 << 32,
    "2**63 - 1": (1 << 63) - 1,
    "2**63": 1 << 63,
    "2**64 - 1": (1 << 64) - 1,
    "2**64": 1 << 64,
    "10**400": 10**400,
    "1.5": 1.5,
    "1e300": 1e300,
}


def changed(steps: Steps, value: object) -> dict[str, Any]:
    """The full config with *value* at *steps*."""
    config: dict[str, Any] = put(Config, copy.deepcopy(full()), steps, value)
    if steps[:2] == ("vm", "hwconfig"):
        del config["vm"]["hwConfig"]
    return config


def keys_of_maps(config: Any, at: Steps = ()) -> Iterator[Steps]:  # noqa: ANN401
    """The places of objects with free keys in *config*: those that the types call a dict."""
    kinds = {"annotations", "sysctl", "timeOffsets", "rdma", "unified", "netDevices"}
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for step, item in items:
        if step in kinds:
            yield (*at, step)
        if isinstance(item, dict | list):
            yield from keys_of_maps(item, (*at, step))


def outcome(data: bytes, folder: Path) -> str:
    """What is wrong with that config.json; empty where a request can be made of it.

    The glance, which comes first, is to find it as well, or to do no harm.
    """
    path = folder / "config.json"
    path.write_bytes(data)
    try:
        relative_path(Glance(str(path)).cgroups_path, "web")
        plan = compiled(path)
    except ConfigError as error:
        message = checked(error)
        assert len(message) < 2000
        # What the glance cannot use, the strict parser finds a word for.
        assert not message.endswith("$: not usable"), message
        return message
    Protocol().request("create", plan)
    return ""


def names(message: str, steps: Steps) -> bool:
    """Whether an error names the field at *steps*, or what it is in."""
    wanted = [json_path(steps[:count]) for count in range(1, len(steps) + 1)]
    return any(f"{path}{sign}" in message for path in wanted[-3:] for sign in ":.[")


STRING_PLACES = places(Config, of=str)
NUMBER_PLACES = places(Config, of=int)


def test_the_places_are_many() -> None:
    assert len(STRING_PLACES) > 75
    assert len(NUMBER_PLACES) > 90


@pytest.mark.parametrize("kind", [Config, Process, Resources])
def test_every_string_of_the_types_says_what_becomes_of_it(kind: type) -> None:
    for steps, found in leaves(kind):
        assert found is not str, steps
    for steps, found in keys(kind):
        assert isinstance(found, Bounded), steps


@pytest.mark.parametrize("variant", STRINGS)
def test_every_string(variant: str, folder: Path) -> None:
    for steps in STRING_PLACES:
        config = json.dumps(changed(steps, STRINGS[variant])).encode()
        message = outcome(config, folder)
        if variant in ("NUL", "half a pair"):
            assert message, steps
        steps = tuple(real_key(steps))
        assert not message or names(message, steps), (steps, message)


def real_key(steps: Steps) -> Iterator[str | int]:
    """*steps* with the keys that the full config has."""
    place: Any = full()
    for step in steps:
        if step == MARK and isinstance(place, dict) and place:
            step = next(iter(place))
        yield step
        inside = isinstance(place, dict) or (isinstance(place, list) and place)
        place = place[step] if inside and (step == 0 or step in place) else None


@pytest.mark.parametrize("variant", STRINGS)
def test_every_free_key(variant: str, folder: Path) -> None:
    config = changed(("linux", "netDevices", "eth0", "name"), "x")
    for steps in keys_of_maps(config):
        mutant = copy.deepcopy(config if "netDevices" in steps else full())
        place: Any = mutant
        for step in steps:
            place = place[step]
        place[STRINGS[variant]] = next(iter(place.values()))
        message = outcome(json.dumps(mutant).encode(), folder)
        if variant in ("NUL", "half a pair"):
            assert message, steps
        assert not message or names(message, (*steps, "key")), (steps, message)


@pytest.mark.parametrize("raw", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
def test_bytes_that_are_no_utf8(raw: bytes, folder: Path) -> None:
    for steps in STRING_PLACES:
        data = json.dumps(changed(steps, "RAW-BYTES")).encode()
        message = outcome(data.replace(b"RAW-BYTES", b"a" + raw), folder)
        assert names(message, tuple(real_key(steps))), (steps, message)
        assert "UTF-8" in message


@pytest.mark.parametrize("variant", NUMBERS)
def test_every_number(variant: str, folder: Path) -> None:
    for steps in NUMBER_PLACES:
        message = outcome(json.dumps(changed(steps, NUMBERS[variant])).encode(), folder)
        if variant in ("2**64", "10**400", "-2**63 - 1", "1.5", "1e300"):
            assert message, steps


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "-Infinity", "0x10", "1_0", "01"])
def test_numbers_that_json_has_not(number: str, folder: Path) -> None:
    for steps in NUMBER_PLACES[::7]:
        data = json.dumps(changed(steps, "RAW-BYTES")).replace('"RAW-BYTES"', number)
        assert outcome(data.encode(), folder)


@pytest.mark.parametrize("variant", [*STRINGS, *NUMBERS])
def test_of_an_exec_and_an_update(variant: str) -> None:
    value: object = STRINGS.get(variant, NUMBERS.get(variant))
    for kind, section, load in (
        (Process, full()["process"], lambda data: load_process(data, "process")),
        (Resources, full()["linux"]["resources"], load_resources),
    ):
        for steps in places(kind, of=str if isinstance(value, str) else int):
            mutant = put(kind, copy.deepcopy(section), steps, value)
            message = refusal(load, json.dumps(mutant).encode())
            assert not message or re.search(r"(^|: )\$[.:\[]", message), message


def refusal(load: Callable[[bytes], object], data: bytes) -> str:
    """What *load* says is wrong with *data*; empty where it takes it."""
    try:
        load(data)
    except ConfigError as error:
        return str(error)
    return ""

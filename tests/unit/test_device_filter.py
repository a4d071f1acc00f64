"""Device rules as a BPF program, run by an interpreter of as much of eBPF as it uses."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.base.errors import ConfigError
from cloche.base.kinds import convert
from cloche.model.device_filter import ALWAYS, check_device_rules, device_filter
from cloche.model.oci_linux import DeviceRule
from cloche.model.spec import default_spec

from .oci_data import ENGINES, raw

BLOCK, CHAR = 1, 2
MAKE, READ, WRITE = 1, 2, 4
DENY_ALL = {"allow": False, "access": "rwm"}


def rules(*each: dict[str, Any]) -> tuple[DeviceRule, ...]:
    return tuple(convert(rule, DeviceRule) for rule in each)


def verdict(program: bytes | None, kind: int, major: int, minor: int, access: int) -> bool:
    """What the kernel does with the program: whether the access is allowed."""
    if program is None:
        return True
    context = struct.pack("<III", access << 16 | kind, major, minor)
    registers, at = [0] * 11, 0
    _check_flow(program)
    while True:
        code, pair, offset, value = struct.unpack_from("<BBhi", program, at * 8)
        to, of, at = pair & 15, pair >> 4, at + 1
        match code:
            case 0x61:
                assert of == 1
                (registers[to],) = struct.unpack_from("<I", context, offset)
            case 0xB7:
                registers[to] = value
            case 0xBF:
                registers[to] = registers[of]
            case 0x57:
                registers[to] &= value
            case 0x77:
                registers[to] >>= value
            case 0x05:
                at += offset
            case 0x55:
                at += offset if registers[to] != value else 0
            case 0x45:
                at += offset if registers[to] & value else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"instruction {code:#x}")


def _check_flow(program: bytes) -> None:
    """As the kernel's verifier: every step can be reached, and the last one is the end."""
    steps = [struct.unpack_from("<BBhi", program, at) for at in range(0, len(program), 8)]
    reached = {0}
    for at, (code, _, offset, _) in enumerate(steps):
        assert at in reached
        if code in (0x05, 0x55, 0x45):
            reached.add(at + 1 + offset)
        if code not in (0x05, 0x95):
            reached.add(at + 1)
    assert max(reached) < len(steps)


def filtered(*each: dict[str, Any], disks: bool = False) -> bytes | None:
    return device_filter(rules(*each), has_disks=disks)


@pytest.mark.parametrize(
    ("kind", "major", "minor", "access", "allowed"),
    [
        (CHAR, 1, 3, READ | WRITE | MAKE, True),
        (CHAR, 5, 2, READ | WRITE, True),
        (CHAR, 136, 77, READ | WRITE, True),
        (CHAR, 10, 200, READ | WRITE, True),
        (CHAR, 10, 229, MAKE, True),
        (BLOCK, 8, 0, MAKE, True),
        (CHAR, 10, 229, READ, False),
        (CHAR, 10, 229, MAKE | READ, False),
        (CHAR, 1, 1, READ, False),
        (BLOCK, 1, 3, READ, False),
        (BLOCK, 254, 0, READ, False),
    ],
)
def test_what_every_container_may_use(
    kind: int, major: int, minor: int, access: int, allowed: bool
) -> None:
    for program in (filtered(), filtered(DENY_ALL)):
        assert verdict(program, kind, major, minor, access) == allowed


def test_the_last_rule_that_names_a_device_decides() -> None:
    fuse = {"type": "c", "major": 10, "minor": 229}
    program = filtered(DENY_ALL, {"allow": True, **fuse, "access": "r"})
    assert verdict(program, CHAR, 10, 229, READ)
    assert not verdict(program, CHAR, 10, 229, READ | WRITE)
    program = filtered({"allow": True, "type": "a"}, {"allow": False, **fuse, "access": "w"})
    assert verdict(program, CHAR, 10, 229, READ | MAKE)
    assert not verdict(program, CHAR, 10, 229, READ | WRITE)
    assert verdict(program, BLOCK, 10, 229, READ | WRITE)
    # Two rules allow together what neither does alone.
    parts = [{"allow": True, **fuse, "access": letter} for letter in "rw"]
    assert verdict(filtered(*parts), CHAR, 10, 229, READ | WRITE)
    assert verdict(filtered({"allow": True, "type": "c", "minor": -1}), CHAR, 99, 5, READ)


def test_disks_of_the_container_are_its_own() -> None:
    assert not verdict(filtered(DENY_ALL), BLOCK, 254, 16, READ)
    assert verdict(filtered(DENY_ALL, disks=True), BLOCK, 254, 16, READ | WRITE)
    assert not verdict(filtered(DENY_ALL, disks=True), CHAR, 254, 16, READ)


def test_privileged_containers_need_no_program() -> None:
    assert filtered({"allow": True, "access": "rwm"}) is None
    assert filtered(DENY_ALL, {"allow": True, "type": "a"}) is None


def test_the_usual_containers_of_all_engines_have_the_same_program() -> None:
    spec: Any = default_spec()
    usual = filtered(*spec["linux"]["resources"]["devices"])
    names = [name for name in ENGINES if name.endswith("-default")]
    assert len(names) >= 3
    for name in names:
        found = filtered(*raw(name)["linux"]["resources"]["devices"])
        if name.startswith("containerd"):  # the console as well
            assert verdict(found, CHAR, 5, 1, READ)
        else:
            known = {(1, minor) for minor in (3, 5, 7, 8, 9)} | {(5, 0), (5, 2)}
            for major, minor in known:
                assert verdict(found, CHAR, major, minor, READ | WRITE), (name, major, minor)
    assert usual is not None
    assert len(usual) // 8 < 80


RULE = st.fixed_dictionaries(
    {"allow": st.booleans(), "type": st.sampled_from(["a", "b", "c"])},
    optional={
        "major": st.integers(-1, 2),
        "minor": st.integers(-1, 2),
        "access": st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"]),
    },
)


@given(st.lists(RULE, max_size=8), st.integers(1, 2), st.integers(0, 2), st.integers(0, 2))
def test_against_the_rules_read_one_by_one(
    each: list[dict[str, Any]], kind: int, major: int, minor: int
) -> None:
    program = filtered(*each)
    every = (*rules(*each), *ALWAYS)
    for access in range(1, 8):
        wanted = {letter for letter, bit in (("m", 1), ("r", 2), ("w", 4)) if access & bit}
        allowed = all(_allows(every, "abc"[kind], major, minor, letter) for letter in wanted)
        assert verdict(program, kind, major, minor, access) == allowed


def _allows(every: tuple[DeviceRule, ...], kind: str, major: int, minor: int, letter: str) -> bool:
    """Whether the last rule that names the device allows one kind of access."""
    for rule in reversed(every):
        numbers = zip((rule.major, rule.minor), (major, minor), strict=True)
        fits = all(named in (None, -1, number) for named, number in numbers)
        if fits and rule.type in ("a", kind) and letter in (rule.access or "rwm"):
            return rule.allow
    return False


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"allow": True, "type": "x"}, "[1].type"),
        ({"allow": True, "access": "rx"}, "[1].access"),
        ({"allow": True, "major": -2}, "[1].major"),
        ({"allow": True, "minor": 1 << 40}, "[1].minor"),
    ],
)
def test_rules_that_name_no_device(rule: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_device_rules(rules(DENY_ALL, rule))
    assert f"$.linux.resources.devices{field}: " in raised.value.message


def test_too_many_rules() -> None:
    with pytest.raises(ConfigError, match="at most 400"):
        check_device_rules(rules(*[DENY_ALL] * 401))

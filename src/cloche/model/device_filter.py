"""linux.resources.devices as a BPF program of type cgroup/dev, for the container's cgroup.

The kernel runs it whenever a process opens or makes a device node (linux/bpf.h,
struct bpf_cgroup_dev_ctx); rules mean what they mean in cgroup v1's device controller: of those
that name a device, the last one decides, for reading, writing and making alike.
"""

from __future__ import annotations

import struct
from itertools import groupby

from cloche.base.typed import Struct
from cloche.model.oci_linux import DeviceRule
from cloche.model.problems import quoted, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_PATH = "$.linux.resources.devices"
_BITS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
_ALL = 7
_KINDS = {"b": 1, "c": 2, "u": 2, "a": 0, "": 0}  # BPF_DEVCG_DEV_*; 0 is both
_MAX_NUMBER = (1 << 31) - 1
_MOST_RULES = 400  # an unprivileged program's 4096 instructions, though ours is none

# What runc adds to every container's rules (libcontainer/specconv, AllowedDevices), and the
# console, which Docker and containerd allow: so all their containers have the same program.
ALWAYS = tuple(
    DeviceRule(allow=True, type=kind, major=major, minor=minor, access=access)
    for kind, major, minor, access in (
        *(("c", None, None, "m"), ("b", None, None, "m")),
        *(("c", 1, minor, "rwm") for minor in (3, 5, 7, 8, 9)),
        *(("c", 5, minor, "rwm") for minor in (0, 1, 2)),
        *(("c", 136, None, "rwm"), ("c", 10, 200, "rwm")),
    )
)
# The container's own disks: what may only be read is so in QEMU.
DISKS = DeviceRule(allow=True, type="b", access="rwm")


class _Rule(Struct):
    """One rule; -1 stands for every number, kind 0 for every kind."""

    allow: bool
    kind: int
    major: int
    minor: int
    access: int

    def covers(self, other: _Rule) -> bool:
        """Whether all that *other* names is named by this rule too."""
        kinds = self.kind in (0, other.kind)
        numbers = self.major in (-1, other.major) and self.minor in (-1, other.minor)
        return kinds and numbers and not other.access & ~self.access


_EVERYTHING = _Rule(True, 0, -1, -1, _ALL)


def check_device_rules(rules: Sequence[DeviceRule]) -> None:
    """ConfigError for rules that name no device."""
    if len(rules) > _MOST_RULES:
        refuse(_PATH, f"{len(rules)} rules; expected at most {_MOST_RULES}")
    for index, rule in enumerate(rules):
        if rule.type not in _KINDS:
            refuse(f"{_PATH}[{index}].type", f"expected a, b or c, got {quoted(rule.type)}")
        if not {*rule.access} <= {*_BITS}:
            refuse(f"{_PATH}[{index}].access", f"expected some of rwm, got {quoted(rule.access)}")
        for name, number in (("major", rule.major), ("minor", rule.minor)):
            if number is not None and not -1 <= number <= _MAX_NUMBER:
                refuse(f"{_PATH}[{index}].{name}", f"expected a device number, got {number}")


def device_filter(rules: Iterable[DeviceRule], *, has_disks: bool) -> bytes | None:
    """The program for checked *rules* and what every container may use; None: all is allowed."""
    own = (DISKS,) if has_disks else ()
    kept = _needed([_rule(rule) for rule in (*rules, *ALWAYS, *own)])
    if kept == [_EVERYTHING]:
        return None
    return _program(kept)


def usual_filter() -> bytes:
    """The program of a container whose rules allow no more than every container may use."""
    program = device_filter((), has_disks=False)
    assert program is not None
    return program


def _rule(rule: DeviceRule) -> _Rule:
    major, minor = (-1 if number is None else number for number in (rule.major, rule.minor))
    access = sum(_BITS[letter] for letter in {*(rule.access or "rwm")})
    return _Rule(rule.allow, _KINDS[rule.type], major, minor, access)


def _needed(rules: list[_Rule]) -> list[_Rule]:
    """The rules that decide anything, the last one first; alike where they mean the same.

    What a later rule covers is never reached, what is denied at the very end is denied anyhow, and
    the order among neighbours of one verdict does not matter.
    """
    kept: list[_Rule] = []
    for rule in reversed(rules):
        if not any(later.covers(rule) for later in kept):
            kept.append(rule)
    while kept and not kept[-1].allow:
        kept.pop()
    runs = (_tidied(list(run)) for _, run in groupby(kept, key=lambda rule: rule.allow))
    return [rule for run in runs for rule in run]


def _tidied(run: list[_Rule]) -> list[_Rule]:
    """Rules of one verdict in an order of their own, without those that another one covers."""
    left = (rule for rule in run if not any(each.covers(rule) for each in run if each != rule))
    return sorted(left, key=lambda rule: (rule.kind, rule.major, rule.minor, rule.access))


# Opcodes of linux/bpf_common.h and linux/bpf.h: class, operation, source.
_LOAD_WORD = 0x61
_MOV, _MOV_REGISTER, _AND, _SHIFT_RIGHT = 0xB7, 0xBF, 0x57, 0x77
_JUMP, _JUMP_NOT_EQUAL, _JUMP_SET, _EXIT = 0x05, 0x55, 0x45, 0x95
_VERDICT, _CONTEXT, _KIND, _PENDING, _MAJOR, _MINOR = range(6)  # registers


def _instruction(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, to | of << 4, offset, value)


def _program(rules: list[_Rule]) -> bytes:
    """Rules from the last to the first: what is asked for is crossed off until nothing is left."""
    steps = [
        _instruction(_LOAD_WORD, _KIND, _CONTEXT, 0),
        _instruction(_MOV_REGISTER, _PENDING, _KIND),
        _instruction(_AND, _KIND, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, _PENDING, value=16),
        _instruction(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        _instruction(_LOAD_WORD, _MINOR, _CONTEXT, 8),
    ]
    for rule in rules:
        steps += _steps(rule)
    if rules[-1:] != [_EVERYTHING]:  # the kernel takes no program with steps that none reaches
        steps += _verdict(False)
    return b"".join(steps)


def _steps(rule: _Rule) -> Iterator[bytes]:
    """One rule; where it does not fit it jumps behind itself."""
    if rule.access == _ALL:
        body = _verdict(rule.allow)
    elif rule.allow:
        crossed_off = _instruction(_AND, _PENDING, value=~rule.access)
        body = [crossed_off, _instruction(_JUMP_NOT_EQUAL, _PENDING, offset=2), *_verdict(True)]
    else:
        is_asked_for = _instruction(_JUMP_SET, _PENDING, offset=1, value=rule.access)
        body = [is_asked_for, _instruction(_JUMP, offset=2), *_verdict(False)]
    wanted = ((_KIND, rule.kind, 0), (_MAJOR, rule.major, -1), (_MINOR, rule.minor, -1))
    tests = [(register, value) for register, value, every in wanted if value != every]
    for index, (register, value) in enumerate(tests):
        behind = len(tests) - index - 1 + len(body)
        yield _instruction(_JUMP_NOT_EQUAL, register, offset=behind, value=value)
    yield from body


def _verdict(allow: bool) -> list[bytes]:
    return [_instruction(_MOV, _VERDICT, value=int(allow)), _instruction(_EXIT)]

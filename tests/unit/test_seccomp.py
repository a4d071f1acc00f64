"""Seccomp profiles: what the compiled program decides, in an interpreter and in the kernel."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyseccomp  # type: ignore[import-untyped]
import pytest

from cloche.base.errors import ConfigError
from cloche.base.kinds import convert
from cloche.base.msgpack import pack, unpack
from cloche.model.oci import load_config
from cloche.model.oci_linux import Seccomp
from cloche.model.seccomp import Filter, compile_seccomp
from cloche.model.seccomp_profile import check_seccomp

from .bpf import AARCH64, ALLOW, ERRNO, KILL, X32_BIT, X86, X86_64, verdict
from .oci_data import DATA

EPERM = ERRNO | errno.EPERM
ENOSYS = ERRNO | errno.ENOSYS
NEWUSER = 0x10000000

if sys.platform == "linux" and pyseccomp.system_arch() != X86_64:
    pytest.skip("the expected numbers are those of x86-64", allow_module_level=True)


def profile_of(name: str) -> Seccomp:
    profile = load_config(str(DATA / f"{name}.json")).linux.seccomp
    assert profile is not None
    return profile


def made(**fields: Any) -> Seccomp:  # noqa: ANN401
    profile: Seccomp = convert(fields, Seccomp)
    check_seccomp(profile)
    return profile


def rule(*names: str, action: str = "SCMP_ACT_ERRNO", **fields: object) -> dict[str, object]:
    return {"names": list(names), "action": action, **fields}


def number(name: str, architecture: int = X86_64) -> int:
    return int(pyseccomp.resolve_syscall(architecture, name))


def known_as(call: int, architecture: int) -> str:
    """The name of a system call; its number where libseccomp knows none."""
    try:
        return str(pyseccomp.resolve_syscall(architecture, call).decode())
    except ValueError:
        return str(call)


@pytest.fixture(scope="module")
def docker() -> Filter:
    return compile_seccomp(profile_of("docker-default"), None)


@pytest.mark.parametrize(
    ("architecture", "call", "args", "expected"),
    [
        (X86_64, 0, (), ALLOW),  # read
        (X86_64, 165, (), EPERM),  # mount
        (X86_64, 435, (), ENOSYS),  # clone3: named by the profile itself
        (X86_64, 9999, (), ENOSYS),  # newer than the profile
        (X86_64, 56, (17,), ALLOW),  # clone
        (X86_64, 56, (NEWUSER | 17,), EPERM),
        (X86_64, 135, (0,), ALLOW),  # personality: alternatives on one argument
        (X86_64, 135, (0xFFFFFFFF,), ALLOW),
        (X86_64, 135, (0x1234,), EPERM),
        (X86, 3, (), ALLOW),  # read
        (X86, 21, (), EPERM),  # mount
        (X86, 9999, (), ENOSYS),
        (X86_64, X32_BIT | 0, (), ALLOW),
        (X86_64, X32_BIT | 165, (), EPERM),
        (X86_64, X32_BIT | 9999, (), ENOSYS),
        (AARCH64, 63, (), KILL),  # an architecture that the profile does not name
    ],
)
def test_dockers_profile(
    docker: Filter, architecture: int, call: int, args: tuple[int, ...], expected: int
) -> None:
    assert verdict(docker.program, architecture, call, args) == expected


@pytest.mark.parametrize("name", ["docker-default", "podman-default"])
@pytest.mark.parametrize("architecture", [X86_64, X86])
def test_every_system_call_is_decided_as_the_profile_says(name: str, architecture: int) -> None:
    profile = profile_of(name)
    program = compile_seccomp(profile, None).program
    allowed: set[str] = set()
    conditional: set[str] = set()
    for entry in profile.syscalls:
        if entry.args:
            conditional.update(entry.names)
        elif entry.action == "SCMP_ACT_ALLOW":
            allowed.update(entry.names)
    checked = 0
    for call in range(500):
        name = known_as(call, architecture)
        if name in allowed:
            assert verdict(program, architecture, call) == ALLOW, name
            checked += 1
        elif name not in conditional:
            assert verdict(program, architecture, call) & 0xFFFF0000 == ERRNO, name
    assert checked > 250


def test_no_stub_where_the_default_is_permissive_or_enosys() -> None:
    permissive = compile_seccomp(
        made(defaultAction="SCMP_ACT_ALLOW", syscalls=[rule("mkdir", errnoRet=5)]), None
    )
    assert verdict(permissive.program, X86_64, 9999) == ALLOW
    assert verdict(permissive.program, X86_64, number("mkdir")) == ERRNO | 5
    enosys = compile_seccomp(
        made(
            defaultAction="SCMP_ACT_ERRNO",
            defaultErrnoRet=38,
            syscalls=[rule("mkdir", action="SCMP_ACT_ALLOW")],
        ),
        None,
    )
    assert verdict(enosys.program, X86_64, 9999) == ENOSYS
    assert verdict(enosys.program, X86_64, 0) == ENOSYS


def test_x32_without_being_named_is_no_way_around() -> None:
    profile = made(defaultAction="SCMP_ACT_ERRNO", syscalls=[rule("read", action="SCMP_ACT_ALLOW")])
    program = compile_seccomp(profile, None).program
    assert verdict(program, X86_64, 0) == ALLOW
    assert verdict(program, X86_64, X32_BIT) == KILL


@pytest.mark.parametrize(
    ("operator", "value", "two", "matching", "other"),
    [
        ("SCMP_CMP_EQ", 5, 0, 5, 6),
        ("SCMP_CMP_NE", 5, 0, 6, 5),
        ("SCMP_CMP_LT", 5, 0, 4, 5),
        ("SCMP_CMP_LE", 5, 0, 5, 6),
        ("SCMP_CMP_GE", 1 << 40, 0, 1 << 40, 5),
        ("SCMP_CMP_GT", 5, 0, 6, 5),
        ("SCMP_CMP_MASKED_EQ", 0xF0, 0x10, 0x1F, 0x2F),
    ],
)
def test_operators(operator: str, value: int, two: int, matching: int, other: int) -> None:
    args = [{"index": 1, "value": value, "valueTwo": two, "op": operator}]
    profile = made(defaultAction="SCMP_ACT_ALLOW", syscalls=[rule("mkdir", args=args)])
    program = compile_seccomp(profile, None).program
    assert verdict(program, X86_64, number("mkdir"), (0, matching)) == EPERM
    assert verdict(program, X86_64, number("mkdir"), (0, other)) == ALLOW


@pytest.mark.parametrize(
    ("action", "value"),
    [
        ("SCMP_ACT_KILL", 0),
        ("SCMP_ACT_KILL_THREAD", 0),
        ("SCMP_ACT_KILL_PROCESS", 0x80000000),
        ("SCMP_ACT_TRAP", 0x00030000),
        ("SCMP_ACT_TRACE", 0x7FF00001),
        ("SCMP_ACT_LOG", 0x7FFC0000),
        ("SCMP_ACT_ERRNO", EPERM),
    ],
)
def test_actions(action: str, value: int) -> None:
    profile = made(defaultAction="SCMP_ACT_ALLOW", syscalls=[rule("mkdir", action=action)])
    assert verdict(compile_seccomp(profile, None).program, X86_64, number("mkdir")) == value


def test_rules_that_say_what_the_default_says_are_no_error() -> None:
    profile = made(
        defaultAction="SCMP_ACT_ALLOW",
        syscalls=[rule("read", action="SCMP_ACT_ALLOW"), rule("mkdir")],
    )
    assert verdict(compile_seccomp(profile, None).program, X86_64, number("mkdir")) == EPERM


def test_flags() -> None:
    profile = made(
        defaultAction="SCMP_ACT_ALLOW",
        flags=["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
    )
    assert compile_seccomp(profile, None).flags == 2


def test_an_unknown_system_call_is_a_warning_only_where_it_stays_allowed() -> None:
    forbidding = made(
        defaultAction="SCMP_ACT_ERRNO", syscalls=[rule("nonesuch", action="SCMP_ACT_ALLOW")]
    )
    allowing = made(defaultAction="SCMP_ACT_ALLOW", syscalls=[rule("nonesuch", "mkdir")])
    assert compile_seccomp(forbidding, None).warnings == ()
    (warning,) = compile_seccomp(allowing, None).warnings
    assert warning.startswith("$.linux.seccomp.syscalls: not known")
    assert '"nonesuch"' in warning


def test_a_foreign_architecture_is_refused_by_path() -> None:
    profile = made(defaultAction="SCMP_ACT_ALLOW", architectures=["SCMP_ARCH_S390X"])
    with pytest.raises(
        ConfigError, match=r"^\$\.linux\.seccomp\.architectures\[0\]: SCMP_ARCH_S39"
    ):
        compile_seccomp(profile, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction: a listener"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}, "listenerPath: a listener"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}, "flags[0]: no such flag"),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("a", errnoRet=5000)]},
            "syscalls[0].errnoRet: expected an errno",
        ),
    ],
)
def test_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**fields)
    assert str(caught.value).startswith(f"$.linux.seccomp.{message}")


LOAD = """
import sys
from pathlib import Path
from cloche.model.oci import load_config
from cloche.model.seccomp import compile_seccomp
made = compile_seccomp(load_config(sys.argv[1]).linux.seccomp, Path(sys.argv[2]))
print("pyseccomp" in sys.modules, len(made.program))
"""


def test_the_cache_spares_libseccomp(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(DATA / "docker-default.json"), str(tmp_path / "c")]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    second = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert first[0] == "True"
    assert second == ["False", first[1]]


@pytest.mark.parametrize("damage", [b"", b"\x00", None])
def test_a_damaged_or_foreign_cache_file_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    profile = made(defaultAction="SCMP_ACT_ALLOW", syscalls=[rule("mkdir")])
    fresh = compile_seccomp(profile, tmp_path)
    (file,) = tmp_path.iterdir()
    other = pack([b"another profile of that checksum", b"", 0, []])
    file.write_bytes(other if damage is None else damage)
    assert compile_seccomp(profile, tmp_path) == fresh
    assert convert(unpack(file.read_bytes()), Filter) == fresh


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    profile = made(defaultAction="SCMP_ACT_ALLOW", syscalls=[rule("mkdir")])
    assert compile_seccomp(profile, tmp_path / "file").program


APPLY = """
import ctypes, os, sys
program = bytes.fromhex(sys.argv[1])
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
given = Program(len(program) // 8, program)
if libc.syscall(317, 1, int(sys.argv[2]), ctypes.byref(given)):
    sys.exit(os.strerror(ctypes.get_errno()))
def attempt(*call):
    result = libc.syscall(*call)
    return ctypes.get_errno() if result < 0 else 0
print(attempt(39), attempt(83, b"/proc/x", 0), attempt(272, 0x10000000), attempt(9999))
"""


def in_kernel(made_filter: Filter) -> list[int]:
    """errno of getpid, mkdir, unshare(CLONE_NEWUSER) and an unknown call under the filter."""
    arguments = [made_filter.program.hex(), str(made_filter.flags)]
    result = subprocess.run(
        [sys.executable, "-c", APPLY, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return [int(word) for word in result.stdout.split()]


def test_the_kernel_takes_dockers_profile(docker: Filter) -> None:
    assert in_kernel(docker) == [0, errno.ENOENT, errno.EPERM, errno.ENOSYS]


def test_the_kernel_takes_every_flag() -> None:
    profile = made(
        defaultAction="SCMP_ACT_ALLOW",
        flags=[
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        ],
        syscalls=[rule("mkdir", errnoRet=errno.EXDEV), rule("unshare", errnoRet=errno.EDOM)],
    )
    assert in_kernel(compile_seccomp(profile, None)) == [0, errno.EXDEV, errno.EDOM, errno.ENOSYS]

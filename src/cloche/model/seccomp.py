"""linux.seccomp compiled to the BPF program that the guest installs (seccomp(2)).

libseccomp does the work on the host; what it made is kept under the hash of the profile, since
importing pyseccomp and compiling Docker's profile cost tens of milliseconds of every start.
"""

from __future__ import annotations

import errno
import os
import zlib

from cloche.base.kinds import convert
from cloche.base.msgpack import pack, unpack
from cloche.base.typed import Struct, plain
from cloche.model.problems import quoted, refuse
from cloche.model.seccomp_profile import ACTIONS, ARCHITECTURES, FLAGS, OPERATORS, PATH, WITH_ERRNO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike

    from pyseccomp import SyscallFilter  # type: ignore[import-untyped]

    from cloche.model.oci_linux import Seccomp, SyscallArg, Syscalls

# Changes whenever the program made of one and the same profile does.
_FORMAT = "cloche-seccomp-2"
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_X86_64 = ARCHITECTURES["SCMP_ARCH_X86_64"]
_X32 = ARCHITECTURES["SCMP_ARCH_X32"]
_X32_BIT = 0x40000000

# Classic BPF (linux/filter.h): instruction codes, and offsets in struct seccomp_data.
_LOAD, _EQUAL, _GREATER, _AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
_RETURN_ENOSYS = ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


class Filter(Struct):
    """A compiled profile, and what it was made from."""

    key: bytes

    program: bytes  # struct sock_filter[]
    flags: int  # SECCOMP_FILTER_FLAG_*
    warnings: tuple[str, ...] = ()


def compile_seccomp(profile: Seccomp, cache: str | PathLike[str] | None) -> Filter:
    """The filter for *profile*: out of the folder *cache*, or else compiled and kept there.

    ConfigError when libseccomp cannot make it. A cache that cannot be read or written only costs
    time.
    """
    key = _key(profile)
    if cache is None:
        return _compile(profile, key)
    # A checksum finds the file, the whole key in it decides: hashlib would cost 10 ms to import.
    path = os.path.join(cache, f"{zlib.crc32(key):08x}.bpf")
    found = _read(path, key)
    if found is None:
        found = _compile(profile, key)
        _write(path, found)
    return found


def _key(profile: Seccomp) -> bytes:
    """Everything that the program depends on."""
    words = (_FORMAT, os.uname().machine, _library(), repr(profile))
    return "\0".join(words).encode()


def _library() -> str:
    """Which libseccomp is installed, without loading it: a newer one knows more system calls."""
    machine = os.uname().machine
    for folder in (f"/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/lib"):
        path = f"{folder}/libseccomp.so.2"
        if os.path.exists(path):
            return os.path.realpath(path)
    return ""


def _read(path: str, key: bytes) -> Filter | None:
    try:
        with open(path, "rb") as file:
            found: Filter = convert(unpack(file.read()), Filter)
    except (OSError, ValueError):  # not there, or not whole
        return None
    return found if found.key == key else None


def _write(path: str, made: Filter) -> None:
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(pack(plain(made)))
        os.replace(temporary, path)
    except OSError:
        # Only the next start is slower for it; a half-written file is never put in place.
        if os.path.exists(temporary):
            os.unlink(temporary)


def _compile(profile: Seccomp, key: bytes) -> Filter:
    # Costs 18 ms, and runs ldconfig to find the library: only here, where nothing else will do.
    import pyseccomp

    default = _action(profile.default_action, profile.default_errno_ret)
    made = pyseccomp.SyscallFilter(default)
    # As a tree: the kernel runs a new filter for every system call it knows (its cache of
    # constant answers), which costs milliseconds when it walks a list of hundreds.
    made.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
    _add_architectures(made, profile)
    unknown: list[str] = []
    for index, rule in enumerate(profile.syscalls):
        unknown += _add_rule(made, rule, default, f"{PATH}.syscalls[{index}]")
    program = _stub(profile, default) + _export(made)
    if len(program) // 8 > _MAX_INSTRUCTIONS:
        refuse(PATH, f"compiles to {len(program) // 8} instructions, more than the kernel takes")
    return Filter(key, program, _flags(profile), _unknown_warning(profile, unknown))


def _action(action: str, errno_ret: int | None) -> int:
    value = ACTIONS[action]
    if action in WITH_ERRNO:
        value |= errno.EPERM if errno_ret is None else errno_ret
    return value


def _flags(profile: Seccomp) -> int:
    value = 0
    for name in profile.flags:
        # Of no effect without a listener, and an error then.
        if name != "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
            value |= FLAGS[name]
    return value


def _add_architectures(made: SyscallFilter, profile: Seccomp) -> None:
    for index, name in enumerate(profile.architectures):
        try:
            made.add_arch(ARCHITECTURES[name])
        except OSError as error:
            # The machine's own is there from the start. An old libseccomp does not know all of the
            # others, of which no system call can be made on x86-64 anyway.
            is_foreign = "X86" not in name and name != "SCMP_ARCH_X32"
            if error.errno != errno.EEXIST and not (error.errno == errno.EINVAL and is_foreign):
                refuse(f"{PATH}.architectures[{index}]", f"{name}: {error.strerror}")


def _add_rule(made: SyscallFilter, rule: Syscalls, default: int, path: str) -> list[str]:
    """Add *rule* for each of its system calls; returns those that libseccomp does not know."""
    import pyseccomp

    action = _action(rule.action, rule.errno_ret)
    if action == default:  # says nothing new, and libseccomp refuses it
        return []
    unknown = []
    for name in rule.names:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        if number == -1:  # __NR_SCMP_ERROR; other negative ones are system calls of other machines
            unknown.append(name)
            continue
        for args in _conjunctions(rule.args):
            try:
                made.add_rule(action, number, *(_condition(arg) for arg in args))
            except OSError as error:
                refuse(path, f"libseccomp cannot add the rule for {name}: {error.strerror}")
    return unknown


def _conjunctions(args: tuple[SyscallArg, ...]) -> list[tuple[SyscallArg, ...]]:
    """*args* as rules of which any may match.

    Several conditions on one argument are alternatives, by an old habit of runc that profiles
    rely on; conditions on different arguments must all hold.
    """
    if len({arg.index for arg in args}) == len(args):
        return [args]
    return [(arg,) for arg in args]


def _condition(arg: SyscallArg) -> object:
    import pyseccomp

    return pyseccomp.Arg(arg.index, OPERATORS[arg.op], arg.value, arg.value_two)


def _export(made: SyscallFilter) -> bytes:
    descriptor = os.memfd_create("seccomp")
    with open(descriptor, "w+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


def _unknown_warning(profile: Seccomp, unknown: list[str]) -> tuple[str, ...]:
    """A warning where a system call that is unknown here is allowed though the profile forbids it.

    The other way round (allowed by name in a profile that forbids by default) it stays forbidden;
    runc says nothing either, and every profile of Docker's names some.
    """
    if not unknown or not _permissive(profile.default_action):
        return ()
    names = ", ".join(quoted(name) for name in unknown)
    return (f"{PATH}.syscalls: not known to libseccomp, so not filtered: {names}",)


def _permissive(action: str) -> bool:
    return action in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")


def _stub(profile: Seccomp, default: int) -> bytes:
    """Instructions put before libseccomp's: ENOSYS for system calls newer than the profile.

    C libraries try a new system call and fall back on ENOSYS, but not on the EPERM that a profile
    says by default (runc does the same since 1.0.0-rc93, libcontainer/seccomp/patchbpf).
    """
    if _permissive(profile.default_action) or default == _RETURN_ENOSYS:
        return b""
    newest = _newest(profile)
    program: list[Instruction] = []
    for architecture, number in newest.items():
        if architecture == _X86_64:
            program += _stub_x86_64(number, newest.get(_X32))
        elif architecture != _X32:
            program += [
                (_LOAD, 0, 0, _ARCHITECTURE),
                (_EQUAL, 0, 3, architecture),
                (_LOAD, 0, 0, _NUMBER),
                (_GREATER, 0, 1, number),
                (_RETURN, 0, 0, _RETURN_ENOSYS),
            ]
    return b"".join(_encode(instruction) for instruction in program)


def _stub_x86_64(number: int, number_x32: int | None) -> list[Instruction]:
    x32: list[Instruction] = []
    if number_x32 is not None:
        x32 = [(_GREATER, 0, 1, number_x32), (_RETURN, 0, 0, _RETURN_ENOSYS)]
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, 4 + len(x32), _X86_64),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 2, 0, _X32_BIT),
        (_GREATER, 0, 1 + len(x32), number),
        (_RETURN, 0, 0, _RETURN_ENOSYS),
        *x32,
    ]


def _newest(profile: Seccomp) -> dict[int, int]:
    """The highest number of a system call that the profile names, by architecture."""
    import pyseccomp

    tokens = [ARCHITECTURES[name] for name in profile.architectures]
    names = {name for rule in profile.syscalls for name in rule.names}
    newest = {}
    for token in dict.fromkeys([pyseccomp.system_arch(), *tokens]):
        numbers = [pyseccomp.resolve_syscall(token, name) for name in names]
        known = [number for number in numbers if number >= 0]
        if known:
            newest[token] = max(known)
    return newest


def _encode(instruction: Instruction) -> bytes:
    code, if_true, if_false, operand = instruction
    return code.to_bytes(2, "little") + bytes((if_true, if_false)) + operand.to_bytes(4, "little")

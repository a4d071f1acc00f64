"""The vocabulary of linux.seccomp, and its checks; what needs no libseccomp."""

from __future__ import annotations

from cloche.model.problems import quoted, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.model.oci_linux import Seccomp, Syscalls

# action: SECCOMP_RET_* value (linux/seccomp.h); those with an errno take it in the low 16 bits.
ACTIONS = {
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_TRAP": 0x00030000,
}
WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")

# operator: libseccomp's scmp_compare
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

# architecture: AUDIT_ARCH_* (linux/audit.h), which is also libseccomp's token. x32 is the one
# that is not an AUDIT_ARCH: it is x86-64 with bit 30 set in the system call's number.
ARCHITECTURES = {
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_LOONGARCH64": 0xC0000102,
    "SCMP_ARCH_MIPS": 0x00000008,
    "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008,
    "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008,
    "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PARISC": 0x0000000F,
    "SCMP_ARCH_PARISC64": 0x8000000F,
    "SCMP_ARCH_PPC": 0x00000014,
    "SCMP_ARCH_PPC64": 0x80000015,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_S390": 0x00000016,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
}

# flag: SECCOMP_FILTER_FLAG_* bit of seccomp(2)
FLAGS = {
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
    "SECCOMP_FILTER_FLAG_TSYNC": 1 << 0,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 1 << 5,
}

PATH = "$.linux.seccomp"


def check_seccomp(profile: Seccomp) -> None:
    """ConfigError for names that seccomp does not have, and for what needs a listener."""
    _check_action(profile.default_action, f"{PATH}.defaultAction")
    if profile.listener_path or profile.listener_metadata:
        name = "listenerPath" if profile.listener_path else "listenerMetadata"
        refuse(f"{PATH}.{name}", "a listener on the host cannot watch processes in a VM")
    for index, name in enumerate(profile.architectures):
        if name not in ARCHITECTURES:
            refuse(f"{PATH}.architectures[{index}]", f"no such architecture: {quoted(name)}")
    for index, name in enumerate(profile.flags):
        if name not in FLAGS:
            refuse(f"{PATH}.flags[{index}]", f"no such flag: {quoted(name)}")
    _check_errno(profile.default_errno_ret, f"{PATH}.defaultErrnoRet")
    for index, rule in enumerate(profile.syscalls):
        _check_rule(rule, f"{PATH}.syscalls[{index}]")


def _check_rule(rule: Syscalls, path: str) -> None:
    _check_action(rule.action, f"{path}.action")
    _check_errno(rule.errno_ret, f"{path}.errnoRet")
    for index, name in enumerate(rule.names):
        if not name:
            refuse(f"{path}.names[{index}]", "empty")
    for index, arg in enumerate(rule.args):
        here = f"{path}.args[{index}]"
        if arg.index > 5:
            refuse(f"{here}.index", f"a system call has arguments 0 to 5, got {arg.index}")
        if arg.op not in OPERATORS:
            refuse(f"{here}.op", f"no such operator: {quoted(arg.op)}")


def _check_action(action: str, path: str) -> None:
    if action == "SCMP_ACT_NOTIFY":
        refuse(path, "a listener on the host cannot watch processes in a VM")
    if action not in ACTIONS:
        refuse(path, f"no such action: {quoted(action)}")


def _check_errno(number: int | None, path: str) -> None:
    # The kernel has 16 bits for it and takes no more than MAX_ERRNO.
    if number is not None and number > 4095:
        refuse(path, f"expected an errno of at most 4095, got {number}")

"""The seccomp filters that QEMU is started under, as the kernel carries them out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloche.vmm.bpf import ALLOW, ASK, DENIED, NO_SUCH_CALL, NOT_PERMITTED
from cloche.vmm.call_filter import CALLS, NETWORK_CALLS, call_filter
from cloche.vmm.connect_filter import CONNECT, SENDTO, connect_filter

from .bpf import AARCH64, X32_BIT, X86, X86_64, verdict

UNISTD = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
CLONE, CLONE3 = 56, 435
THREAD, FORK, NEW_USER = 0x3D0F00, 17, 0x10000000
# What a QEMU that was taken over would use against the host's kernel (unistd_64.h).
DANGEROUS = {
    "ptrace": 101,
    "mount": 165,
    "init_module": 175,
    "unshare": 272,
    "setns": 308,
    "perf_event_open": 298,
    "open_by_handle_at": 304,
    "process_vm_writev": 311,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "keyctl": 250,
    "add_key": 248,
    "kill": 62,
    "setresuid": 117,
    "chroot": 161,
    "pidfd_getfd": 438,
}


def test_the_numbers_are_the_kernels() -> None:
    text = UNISTD.read_text()
    found = {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", text)}
    every = {**CALLS, **NETWORK_CALLS, **DANGEROUS, "clone": CLONE, "clone3": CLONE3}
    assert {name: found[name] for name in every} == every


@pytest.mark.parametrize("network", [False, True])
def test_a_list_of_calls_and_nothing_else(network: bool) -> None:
    program = call_filter(network=network)
    wanted = {*CALLS.values(), *(NETWORK_CALLS.values() if network else ())}
    allowed = {number for number in range(600) if verdict(program, X86_64, number) == ALLOW}
    assert allowed == wanted
    assert allowed.isdisjoint(DANGEROUS.values())
    assert verdict(program, X86_64, 600) == NO_SUCH_CALL


def test_threads_are_made_and_no_processes() -> None:
    program = call_filter(network=False)
    assert verdict(program, X86_64, CLONE, [THREAD]) == ALLOW
    assert verdict(program, X86_64, CLONE, [FORK]) == NOT_PERMITTED
    assert verdict(program, X86_64, CLONE, [FORK | NEW_USER]) == NOT_PERMITTED
    assert verdict(program, X86_64, CLONE3, [0, 88]) == NO_SUCH_CALL


@pytest.mark.parametrize("program", [call_filter(network=True), connect_filter()])
def test_other_abis_have_no_calls(program: bytes) -> None:
    for architecture, number in ((X86, 3), (AARCH64, 3), (X86_64, X32_BIT | 3)):
        assert verdict(program, architecture, number) == NO_SUCH_CALL


def test_connections_are_asked_about() -> None:
    program = connect_filter()
    address, fast_open = 0x7F00_0000_0000, 0x2000_0000
    assert verdict(program, X86_64, CONNECT) == ASK
    assert verdict(program, X86_64, SENDTO, [3, 0, 0, 0, address, 16]) == ASK
    assert verdict(program, X86_64, SENDTO, [3, 0, 0, 0, 0, 0]) == ALLOW
    assert verdict(program, X86_64, SENDTO, [3, 0, 0, fast_open, address, 16]) == DENIED
    assert verdict(program, X86_64, 46, [3, 0, fast_open]) == DENIED
    assert verdict(program, X86_64, 307, [3, 0, 1, fast_open]) == DENIED
    assert verdict(program, X86_64, DANGEROUS["io_uring_setup"]) == NO_SUCH_CALL
    assert verdict(program, X86_64, CALLS["read"]) == ALLOW

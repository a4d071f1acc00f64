"""Taps for VMs that are made to be copied, and what can be asked of them."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

from cloche.host.own_taps import own_taps, settings_of

_TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454D0, 0x400454D8
CSUM, TSO4, TSO6, ECN = 1, 2, 4, 8


@pytest.mark.parametrize("flags", [0, CSUM, CSUM | TSO4, CSUM | TSO6, CSUM | TSO4 | TSO6 | ECN])
@pytest.mark.parametrize("header", [10, 12])
def test_what_qemu_has_set_is_read_back(flags: int, header: int) -> None:
    with own_taps(2) as taps:
        for tap in taps:
            fcntl.ioctl(tap, _TUNSETVNETHDRSZ, struct.pack("i", header))
        fcntl.ioctl(taps[1], _TUNSETOFFLOAD, flags)
        assert settings_of(taps[1]) == (header, flags)
        assert settings_of(taps[0]) == (header, 0)


def test_they_are_in_a_namespace_that_goes_with_them() -> None:
    before = {*os.listdir("/sys/class/net")}, os.readlink("/proc/self/ns/net")
    descriptors = os.listdir("/proc/self/fd")
    with own_taps(3) as taps:
        assert len(taps) == 3
        assert ({*os.listdir("/sys/class/net")}, os.readlink("/proc/self/ns/net")) == before
    assert os.listdir("/proc/self/fd") == descriptors

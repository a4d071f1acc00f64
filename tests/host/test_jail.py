"""The jail of a QEMU that uses KVM, entered by a process of the test's."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable

import pytest

from cloche.base import syscalls
from cloche.vmm.jail import FIRST_USER, Jail

KVM = "/dev/kvm"


def inside(jail: Jail, look: Callable[[], object]) -> object:
    """What *look* finds in the jail."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.follow_host_mounts()
            jail.enter()
            os.write(writer, json.dumps(look()).encode())
        except BaseException as error:  # the forked test must not go on
            os.write(writer, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        found = json.loads(file.read())
    os.waitpid(child, 0)
    return found


def test_it_has_a_kvm_of_its_own() -> None:
    """The host's may be for root alone, or for a group that nobody else is to be in."""
    if not os.path.exists(KVM):
        pytest.skip("this machine has no /dev/kvm")

    def look() -> list[int]:
        os.close(os.open(KVM, os.O_RDWR))
        found = os.stat(KVM)
        return [found.st_uid, found.st_rdev, stat.S_IMODE(found.st_mode), len(os.getgroups())]

    jail = Jail([], kvm=True, user_network=False)
    assert jail.user == FIRST_USER + os.getpid()
    assert inside(jail, look) == [jail.user, os.stat(KVM).st_rdev, 0o600, 0]


def test_without_it_no_device_can_be_opened_but_those_for_all() -> None:
    jail = Jail([], kvm=False, user_network=True)
    assert inside(jail, lambda: sorted(os.listdir("/dev"))) == ["null", "urandom"]
    assert inside(jail, lambda: os.path.getsize("/etc/resolv.conf")) == os.path.getsize(
        "/etc/resolv.conf"
    )

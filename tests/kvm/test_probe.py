"""The probe on this machine, whatever it is: each kind of machine has its test, the others skip."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cloche.vmm.accel import choose_accel

_DEVICE = "/dev/kvm"


def _device_opens() -> bool:
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _cpu_virtualizes() -> bool:
    return (
        re.search(r"^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.M) is not None
    )


def test_device_without_hardware_behind_it_means_tcg(tmp_path: Path) -> None:
    if not _device_opens():
        pytest.skip(f"{_DEVICE} does not open on this machine: nothing pretends to be KVM")
    if _cpu_virtualizes():
        pytest.skip(f"the CPU has vmx or svm, so {_DEVICE} is real on this machine")
    accel = choose_accel(str(tmp_path), "auto")
    assert accel.name == "tcg"
    assert "no hardware virtualization behind it" in accel.reason


def test_device_with_hardware_behind_it_means_kvm(tmp_path: Path) -> None:
    if not _device_opens() or not _cpu_virtualizes():
        pytest.skip(f"no hardware virtualization on this machine (vmx or svm, and {_DEVICE})")
    assert choose_accel(str(tmp_path), "auto").name == "kvm"


def test_no_device_means_tcg(tmp_path: Path) -> None:
    if _device_opens():
        pytest.skip(f"{_DEVICE} opens on this machine")
    accel = choose_accel(str(tmp_path), "auto")
    assert accel.name == "tcg"
    assert accel.reason.startswith(_DEVICE)

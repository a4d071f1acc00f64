"""The probe on a machine with virtualization: it chooses KVM by itself."""

from __future__ import annotations

import json
from pathlib import Path

from cloche.vmm.accel import PROBE_LIMIT_S, choose_accel
from cloche.vmm.kvm_probe import time_ring0_loop


def test_probe_chooses_kvm(tmp_path: Path) -> None:
    accel = choose_accel(str(tmp_path), "auto")
    assert accel.name == "kvm"
    assert "hardware virtualization" in accel.reason


def test_ring0_loop_is_far_below_the_limit() -> None:
    # Even where TCG emulates the virtualization, the loop runs as translated code. The best of
    # three, since the machine may let the outer VM wait.
    assert min(time_ring0_loop(timeout=10) for _ in range(3)) < PROBE_LIMIT_S / 4


def test_answer_of_another_boot_is_not_believed(tmp_path: Path) -> None:
    record = {"boot_id": "another", "name": "tcg", "reason": "there was none"}
    (tmp_path / "accel.json").write_text(json.dumps(record))
    assert choose_accel(str(tmp_path)).name == "kvm"


def test_setup_says_kvm_and_why(setup_output: str) -> None:
    assert "accelerator: kvm (hardware virtualization" in setup_output

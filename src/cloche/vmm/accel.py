"""Which accelerator QEMU is to use: KVM where it is real, else TCG.

`/dev/kvm` may open, create VMs and run vCPUs without hardware virtualization behind it (a PVM
host): a stock guest kernel then crawls in KVM's instruction emulator and hangs. So the probe
runs a loop in ring 0 and looks at the clock: a million iterations take less than 1 ms on
hardware, a few ms nested, and 1.1 s emulated.
"""

from __future__ import annotations

import os

from cloche.base import fastjson
from cloche.base.errors import ClocheError, ConfigError
from cloche.base.files import read_text, write_atomically

KVM = "kvm"
TCG = "tcg"
PROBE_LIMIT_S = 0.2
PROBE_TIMEOUT_S = 2.0


class Accel:
    """The accelerator chosen and why (a sentence for `setup` and `features`)."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason


def choose_accel(cache_dir: str, override: str = "") -> Accel:
    """KVM or TCG. *override* (`kvm`, `tcg`, or empty for automatic) is obeyed unprobed.

    The answer of the probe is kept in *cache_dir* for as long as this boot lasts.
    """
    if override in (KVM, TCG):
        return Accel(override, "as configured")
    if override not in ("", "auto"):
        raise ConfigError(f"accelerator {override!r}: unknown", hint="use auto, kvm or tcg")
    boot = (read_text("/proc/sys/kernel/random/boot_id") or "").strip()
    path = os.path.join(cache_dir, "accel.json")
    try:
        cached = fastjson.loads(read_text(path) or "{}")
        if cached.get("boot_id") == boot:
            return Accel(cached["name"], cached["reason"])
    except (ValueError, KeyError, AttributeError):
        pass
    accel = _probe()
    os.makedirs(cache_dir, mode=0o700, exist_ok=True)
    record = {"boot_id": boot, "name": accel.name, "reason": accel.reason}
    write_atomically(path, fastjson.dumps(record).encode())
    return accel


def _probe() -> Accel:
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Accel(TCG, f"/dev/kvm: {(error.strerror or '').lower()}")
    os.close(fd)
    # Imported here only: an emulated loop must be killed from outside, and costs nothing later.
    from cloche.vmm.kvm_probe import time_ring0_loop

    try:
        seconds = time_ring0_loop(PROBE_TIMEOUT_S)
    except (ClocheError, OSError) as error:
        return Accel(TCG, f"/dev/kvm opens but cannot run a guest: {error}")
    if seconds > PROBE_LIMIT_S:
        return Accel(
            TCG,
            "/dev/kvm opens but has no hardware virtualization behind it (a million guest "
            f"instructions took {seconds:.1f} s)",
        )
    return Accel(KVM, f"hardware virtualization (ring-0 loop took {seconds * 1000:.1f} ms)")


def tsc_khz() -> int:
    """The host's TSC frequency in kHz, as the kernel reports it in /proc/cpuinfo."""
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        if line.startswith("cpu MHz"):
            return int(float(line.split(":")[1]) * 1000)
    raise ClocheError(
        "accelerator: /proc/cpuinfo names no cpu MHz, which TCG guests need",
        hint="mount /proc and see that it lists a processor",
    )

"""The VM's side of the relay: each of pytest's reports as a line of JSON to the results port."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from .vm import RESULTS_PORT

_PORTS = Path("/sys/class/virtio-ports")
_KERNEL_LINES = 15


class Reporter:
    """A pytest plugin for the outer VM."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._port = results_port().open("wb", buffering=0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send the report."""
        hook = self._config.hook
        data = hook.pytest_report_to_serializable(config=self._config, report=report)
        self._port.write(json.dumps(data).encode() + b"\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self,
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add what the VM's kernel (KVM, that is) said last to the report of a failed test."""
        report = yield
        if report.failed:
            report.sections.append(("kernel of the outer VM", kernel_log()))
        return report


def results_port() -> Path:
    """The device of the virtio port for results."""
    for port in _PORTS.iterdir():
        if (port / "name").read_text().strip() == RESULTS_PORT:
            return Path("/dev", port.name)
    raise FileNotFoundError(f"no virtio port is named {RESULTS_PORT}")


def kernel_log() -> str:
    """The last lines of the kernel's log."""
    done = subprocess.run(["dmesg"], capture_output=True, text=True, check=False)
    return "\n".join(done.stdout.splitlines()[-_KERNEL_LINES:])

"""Runs the tests of `inside` in the outer VM and reports each one here as if it had run here.

pytest runs in the VM as well; its reports come over a virtio port, a line of JSON each, as
pytest-xdist has them come from its workers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import pytest

from cloche.base.errors import ClocheError
from cloche.guest.guest import current_guest
from cloche.model.config import load_settings

from .kernel import prepare_kernel
from .vm import outer_vm

INSIDE = Path(__file__).parents[1] / "inside"
# From the first test of `inside` on, the package's download and the VM's boot included.
TIME_LIMIT_S = 60 * 60
# One test in the VM; the slowest one takes half a minute on an idle machine.
TEST_LIMIT_S = 1500
# A limit that comes while something else is waited for comes again.
_REPEAT_S = 5


class Relay:
    """A pytest plugin for the machine's side."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._stack = ExitStack()
        self._source: Iterator[pytest.TestReport] | None = None
        self._early: list[pytest.TestReport] = []
        self._broken = ""
        self._deadline = 0.0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the time limits of these tests to the VM: waiting for it is not their time."""
        for item in filter(_is_inside, items):
            item.add_marker(pytest.mark.timeout(0))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report what became of *item* in the VM, once that is known."""
        if not _is_inside(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports_of(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_unconfigure(self) -> None:
        """End the VM."""
        self._stack.close()

    def _reports_of(self, item: pytest.Item) -> Iterable[pytest.TestReport]:
        if self._broken:
            return [_failure(item, f"not run: {self._broken}")]
        try:
            with _time_limit(self._remaining()):
                return self._next_reports(item)
        except (ClocheError, OSError) as error:
            self._broken = str(error).partition(";")[0]
            self._stack.close()
            return [_failure(item, str(error))]

    def _remaining(self) -> float:
        now = time.monotonic()
        self._deadline = self._deadline or now + TIME_LIMIT_S
        return max(self._deadline - now, 0.001)

    def _next_reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """All reports of *item*; those of others that come before stay for later."""
        if self._source is None:
            nodes = [other.nodeid for other in item.session.items if _is_inside(other)]
            self._source = self._start(nodes)
        while not any(_is_last(report, item) for report in self._early):
            self._early.append(next(self._source))
        found = [report for report in self._early if report.nodeid == item.nodeid]
        self._early = [report for report in self._early if report.nodeid != item.nodeid]
        return found

    def _start(self, nodes: Sequence[str]) -> Iterator[pytest.TestReport]:
        """Boot the VM; yields the reports of the tests *nodes* as they come, and never ends."""
        cache = self._config.cache
        if cache is None:
            raise ClocheError("outer VM: pytest's cache plugin keeps its kernel; do not disable it")
        report = _Progress(self._config)
        kernel = prepare_kernel(cache.mkdir("outer-vm"), report)
        report.step("Booting the outer VM")
        root = self._config.rootpath
        vm = self._stack.enter_context(outer_vm(kernel, root, _command(nodes), vm_environment()))
        try:
            for line in vm.results.makefile("rb"):
                hook, data = self._config.hook, json.loads(line)
                yield hook.pytest_report_from_serializable(config=self._config, data=data)
        except (ClocheError, OSError) as error:
            raise ClocheError(f"{error}; its console: {vm.console_tail()}") from error
        raise ClocheError(f"outer VM: ended early; its console: {vm.console_tail()}")


class _Progress:
    """The report of the steps before the first test, on pytest's own terminal."""

    def __init__(self, config: pytest.Config) -> None:
        self._terminal = config.pluginmanager.get_plugin("terminalreporter")

    def step(self, text: str) -> None:
        """Print the step."""
        if self._terminal is not None:
            self._terminal.ensure_newline()
            self._terminal.write_line(f"{text} …", flush=True)

    def advance(self, fraction: float) -> None:
        """Nothing: the package is downloaded once."""

    def note(self, text: str) -> None:
        """Print the note."""
        self.step(f"note: {text}")


def _is_last(report: pytest.TestReport, item: pytest.Item) -> bool:
    return report.nodeid == item.nodeid and report.when == "teardown"


def _is_inside(item: pytest.Item) -> bool:
    return item.path.is_relative_to(INSIDE)


def _command(nodes: Sequence[str]) -> list[str]:
    options = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    options += [f"--timeout={TEST_LIMIT_S}", "--basetemp=/run/pytest"]
    return [sys.executable, "-m", "pytest", *options, *nodes]


def vm_environment() -> dict[str, str]:
    """The VM's: nothing of this machine's settings but the unpacked kernel, which takes apt."""
    data_root = load_settings().data_root
    guest = current_guest(data_root)
    if guest is None:
        raise ClocheError(f"outer VM: no guest in {data_root}", hint="run `cloche setup`")
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CLOCHE_OUTER_VM": "1",
        "CLOCHE_KERNEL": str(Path(guest.manifest["kernel_directory"])),
        "CLOCHE_DATA_ROOT": "/run/cloche-data",
        "CLOCHE_ACCEL": "auto",
        "CLOCHE_MACHINE": "microvm",
        "CLOCHE_TEMPLATE": "on",
        **({"CLOCHE_AGENT": agent} if (agent := os.environ.get("CLOCHE_AGENT")) else {}),
    }


def _failure(item: pytest.Item, message: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=message,
        when="call",
    )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """ClocheError out of whatever the block waits for, *seconds* from now."""

    def over(_number: int, _frame: FrameType | None) -> None:
        raise ClocheError(f"outer VM: not done after {TIME_LIMIT_S // 60} minutes")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

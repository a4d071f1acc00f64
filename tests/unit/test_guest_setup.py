"""`cloche setup`, as a process of its own, up to where a VM would boot."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloche.cli.setup import LineReport, disk_usage

from .guest_samples import RELEASE, bzimage, elf_kernel, module_tree


@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """The settings of a host with a kernel, an agent and something that answers like QEMU."""
    image = tmp_path / f"vmlinuz-{RELEASE}"
    image.write_bytes(bzimage(gzip.compress(elf_kernel())))
    module_tree(tmp_path / "modules")
    (tmp_path / "agent").write_bytes(b"an agent")
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 7.2.22\n")
    qemu.chmod(0o755)
    return {
        "CLOCHE_DATA_ROOT": str(tmp_path / "data"),
        "CLOCHE_KERNEL": str(image),
        "CLOCHE_AGENT": str(tmp_path / "agent"),
        "CLOCHE_QEMU": str(qemu),
        "CLOCHE_ACCEL": "tcg",
        "CLOCHE_TEMPLATE": "off",
    }


def setup(host: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "cloche.cli.main", "setup", *args]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **host}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def test_check_names_the_reason_until_setup_has_run(host: dict[str, str]) -> None:
    before = setup(host, "--check")
    assert (before.returncode, before.stderr) == (1, "")
    assert before.stdout.splitlines()[0] == "not current: guest: there is no guest yet"
    done = setup(host)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"kernel: {RELEASE} ({host['CLOCHE_KERNEL']}: named in" in done.stdout
    assert "QEMU: 7.2.22" in done.stdout
    assert "template: none" in done.stdout
    after = setup(host, "--check")
    assert (after.returncode, after.stdout) == (
        0,
        "cloche is set up, everything is current.\n",
    )


def test_check_sees_a_new_agent_and_setup_clears_the_old_guest(host: dict[str, str]) -> None:
    assert setup(host).returncode == 0
    guests = Path(host["CLOCHE_DATA_ROOT"], "guests")
    old = os.readlink(guests / "current")
    Path(host["CLOCHE_AGENT"]).write_bytes(b"a newer agent")
    check = setup(host, "--check")
    assert check.returncode == 1
    assert f"{host['CLOCHE_AGENT']} has changed" in check.stdout
    done = setup(host)
    assert f"Removed guests/{old}" in done.stdout
    new = os.readlink(guests / "current")
    assert (new != old, sorted(os.listdir(guests))) == (True, sorted([new, "current"]))


def test_check_wants_the_template_where_templates_are_on(host: dict[str, str]) -> None:
    assert setup(host).returncode == 0
    check = setup({**host, "CLOCHE_TEMPLATE": "on"}, "--check")
    assert check.returncode == 1
    assert check.stdout.startswith("not current: template: none for this QEMU")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CLOCHE_QEMU", "/nope", "/nope: program not found (try: apt-get install qemu-system-x86"),
        ("CLOCHE_AGENT", "/nope", "cloche-agent: not found at /nope (build it with"),
        ("CLOCHE_KERNEL", "/nope", "/nope: no such kernel (see `kernel` in"),
        ("CLOCHE_KERNEL", "/dev/null", "/dev/null: no such kernel"),
        ("CLOCHE_DATA_ROOT", "/dev/null/x", "/dev/null/x: lock cloche's data: Not a directory"),
    ],
)
def test_what_is_missing_is_one_line_with_a_hint(
    host: dict[str, str], name: str, value: str, message: str
) -> None:
    done = setup({**host, name: value})
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_lines_for_logs(capsys: pytest.CaptureFixture[str]) -> None:
    with LineReport() as report:
        report.step("Unpacking x")
        report.advance(0.5)
        report.note("y is old")
    assert capsys.readouterr().out == "Unpacking x …\nnote: y is old\n"


def test_holes_in_a_template_do_not_count(tmp_path: Path) -> None:
    with open(tmp_path / "memory", "wb") as file:
        file.truncate(1 << 30)
        file.write(b"x" * 4096)
    assert 4096 <= disk_usage(tmp_path) < 1 << 20

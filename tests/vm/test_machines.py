"""A QEMU that starts no kernel on some machines: another machine is taken, and that is said."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche.model.config import load_settings

from . import host
from .bundles import Bundle
from .frozen import limited, own_data_root
from .runtime import Runtime

QEMU = "/usr/bin/qemu-system-x86_64"
# Once without a word, once with one.
NO_MICROVM = """
*" microvm,"*erms=off*) exec sleep 1000 ;;
*" microvm,"*) echo 'no microvm here' >&2; exit 3 ;;
"""
NOTHING = "*) echo 'no machine here' >&2; exit 3 ;;"


@pytest.fixture
def qemu(cloche: Runtime, folder: Path) -> Callable[[str], Path]:
    """Makes a QEMU of the test's own that does other things in some cases; with its data folder."""

    def make(cases: str) -> Path:
        program = folder / "qemu"
        program.write_text(f'#!/bin/sh\ncase " $*" in\n{cases}\nesac\nexec {QEMU} "$@"\n')
        program.chmod(0o755)
        data = str(own_data_root(folder / "data"))
        cloche.env |= {"CLOCHE_QEMU": str(program), "CLOCHE_DATA_ROOT": data}
        return program

    return make


@pytest.mark.parametrize("cloche", ["restored", "cold"], indirect=True)
def test_another_machine_is_taken_once_and_for_all(
    cloche: Runtime, bundle: Bundle, qemu: Callable[[str], Path]
) -> None:
    qemu(NO_MICROVM)
    assert cloche.run(limited(bundle).sh("echo ran")).output == "ran"
    silent, refused = [each for each in cloche.messages("warning") if "VM: microvm," in each]
    assert "starts no kernel, given up after " in silent
    assert "no sign of life for 8 s" in silent
    assert "QEMU ended with exit status 3" in refused
    assert "QEMU: no microvm here" in refused
    assert refused.endswith("; q35 with CPU max,erms=off,fsrm=off does")
    cloche.log.unlink()
    container = cloche.start(bundle.args("sleep", "1000"))
    (command,) = [each for _, each in host.processes(cloche.root) if QEMU in each.split()[0]]
    assert " -M q35," in command
    assert not [each for each in cloche.messages("warning") if "machine" in each]
    container.end()


@pytest.mark.parametrize("cloche", ["restored", "cold"], indirect=True)
def test_a_machine_that_is_configured_is_the_only_one(
    cloche: Runtime, bundle: Bundle, qemu: Callable[[str], Path]
) -> None:
    qemu(NO_MICROVM.replace("exec sleep 1000", "exit 4"))
    cloche.env["CLOCHE_MACHINE"] = "microvm"
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "QEMU ended with exit status 4" in message
    assert "QEMU ended with exit status 3" in message
    assert "q35" not in message
    assert "set `machine` to auto" in message


def test_setup_tells_of_every_attempt(
    cloche: Runtime, qemu: Callable[[str], Path], folder: Path
) -> None:
    program = qemu(NO_MICROVM.replace("exec sleep 1000", "exit 4"))
    # setup writes to guests and kernels: it gets kernels of its own.
    data = folder / "own"
    data.mkdir()
    kernels = Path(load_settings().data_root, "kernels")
    subprocess.run(["cp", "--archive", kernels, data], check=True)
    cloche.env |= {"CLOCHE_FREEZE": "off", "CLOCHE_DATA_ROOT": str(data)}
    said = cloche("setup").lines
    attempts = [line for line in said if "(attempt " in line]
    assert len(attempts) == 4
    assert "(attempt 3 of at most 4; given up after 8 s of silence)" in attempts[2]
    # The second template is booted on what the first has found.
    assert "user-mode network: booting the guest kernel on q35 with" in attempts[3]
    assert len([line for line in said if "starts no kernel, given up after 0." in line]) >= 2
    (machine,) = [line for line in said if line.startswith("machine: ")]
    assert machine.startswith("machine: q35 with CPU max,erms=off,fsrm=off (microvm,")
    assert "no microvm here" in machine
    assert cloche("setup", "--check").output == "cloche is set up, everything is current."
    again = cloche("setup").lines
    assert not [line for line in again if "(attempt " in line]
    assert machine in again
    program.write_text(program.read_text().replace("exit 3", "exit 5"))
    assert "not current: template" in cloche("setup", "--check", code=1).output


@pytest.mark.parametrize("cloche", ["restored", "cold"], indirect=True)
def test_a_qemu_that_starts_nothing(
    cloche: Runtime, bundle: Bundle, qemu: Callable[[str], Path]
) -> None:
    program = qemu(NOTHING)
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert f"{program} starts the guest's kernel on no machine" in message
    assert message.count("QEMU: no machine here") == 4
    assert "/etc/cloche/config.toml try another QEMU" in message

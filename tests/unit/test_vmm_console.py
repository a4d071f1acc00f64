"""What is kept of what QEMU says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cloche.vmm.console import LOG_KEPT, QemuLog

# As a QEMU that its guest has taken over: whatever it tries, it has this one descriptor.
FLOOD = """
import os
written = 0
for _ in range(1000):
    try:
        written += os.write(1, b"x" * 4096)
    except PermissionError:
        pass
for size in (1 << 40, 0):
    try:
        os.ftruncate(1, size)
    except PermissionError:
        pass
print(written, file=__import__("sys").stderr)
"""


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path) -> None:
    log = QemuLog(str(tmp_path / "qemu.log"))
    os.write(log.fd, b"first words\n")
    done = subprocess.run(
        [sys.executable, "-c", FLOOD], stdout=log.fd, stderr=subprocess.PIPE, check=True
    )
    assert int(done.stderr) == LOG_KEPT - len("first words\n")
    assert log.text.startswith("first words\nxxx")
    assert len(log.text) == os.fstat(log.fd).st_size == LOG_KEPT


def test_it_can_be_read_while_it_is_written_and_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "qemu.log"
    log = QemuLog(str(path))
    os.write(log.fd, b"one\n")
    assert path.read_bytes().rstrip(b"\0") == b"one\n"
    os.write(log.fd, b"two\n")
    log.keep()
    os.close(log.fd)
    assert path.read_text() == "one\ntwo\n"

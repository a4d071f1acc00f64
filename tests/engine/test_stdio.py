"""Standard input and output without a terminal: every byte, in order, each stream by itself."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from .client import Docker
from .image import IMAGE
from .patience import PATIENCE_SECONDS

PIPED_BYTES = 100_000_000
EXEC_BYTES = 10_000_000


@pytest.fixture
def random_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A file of random bytes, as many as the test's parameter says: no two blocks are equal."""
    path = tmp_path / "in"
    with path.open("wb") as file:
        left: int = request.param
        while left:
            left -= file.write(os.urandom(min(left, 1 << 20)))
    return path


def _through(docker: Docker, source: Path, *args: str) -> str:
    """sha256 of what a docker command makes of *source* on its stdin."""
    target = source.with_name("out")
    with source.open("rb") as stdin, target.open("wb") as stdout:
        done = subprocess.run(
            [*docker.argv, *args],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return _sha256(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize("random_file", [PIPED_BYTES], indirect=True)
def test_run_pipes_bytes(docker: Docker, random_file: Path) -> None:
    """A large input comes back from ``cat`` whole and in order, and the end of input gets there."""
    # Without the log driver, which would spend minutes on writing the bytes as JSON.
    args = docker.run_args("--rm", "-i", "--log-driver", "none", IMAGE, "cat")
    assert _through(docker, random_file, *args) == _sha256(random_file)


@pytest.mark.parametrize("random_file", [EXEC_BYTES], indirect=True)
def test_exec_pipes_bytes(docker: Docker, idle: str, random_file: Path) -> None:
    """The same through ``exec``."""
    assert _through(docker, random_file, "exec", "-i", idle, "cat") == _sha256(random_file)


def test_streams_are_apart(docker: Docker) -> None:
    """stdout and stderr stay two streams."""
    result = docker.run(IMAGE, "sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", "err\n")


def test_without_interactive_stdin_is_empty(docker: Docker) -> None:
    """Without ``-i`` the program reads an end of file at once."""
    assert docker.run(IMAGE, "sh", "-c", "cat; echo end", data=b"unread").output == "end"


def test_last_output_before_exit(docker: Docker) -> None:
    """Output that is written right before the exit is not lost."""
    result = docker.run(IMAGE, "sh", "-c", "seq 20000; exit 3", code=3)
    assert result.stdout == b"".join(b"%d\n" % number for number in range(1, 20001))


def test_program_may_close_its_output(docker: Docker) -> None:
    """A program that closes its streams and goes on is waited for."""
    result = docker.run(IMAGE, "sh", "-c", "exec >&- 2>&- <&-; usleep 300000; exit 7", code=7)
    assert result.output == ""


def test_reader_that_leaves(docker: Docker) -> None:
    """When nobody reads any more (``docker run … | head``), the docker command ends."""
    process = docker.popen(*docker.run_args("--rm", IMAGE, "yes"))
    assert process.stdout is not None
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    docker("kill", docker.last)
    assert process.wait(PATIENCE_SECONDS) != 0

"""Standard streams: every byte, in its order, to the end; whatever the other side does."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .host import qemu_of
from .programs import TELLS_PIPE_SIZE, write_program
from .runtime import Container, Runtime
from .starts import each_start

MIB = 1 << 20


@each_start
def test_bytes_come_through_unharmed(cloche: Runtime, bundle: Bundle) -> None:
    data = os.urandom(3 * MIB + 17)
    result = cloche.run(bundle.args("cat"), data=data)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


def test_bytes_come_through_exec_unharmed(idle: Container) -> None:
    data = os.urandom(5 * MIB)
    result = idle.sh("tee /tmp/in; sha256sum </tmp/in >&2", data=data)
    assert result.stdout == data
    assert result.stderr.split()[0] == hashlib.sha256(data).hexdigest()


def test_every_byte_value(idle: Container) -> None:
    data = bytes(range(256)) * 3
    assert idle.sh("cat", data=data).stdout == data


def test_the_end_of_the_input_is_seen(cloche: Runtime, bundle: Bundle) -> None:
    assert cloche.run(bundle.sh("wc -c; echo after"), data=b"").lines == ["0", "after"]
    assert cloche.run(bundle.sh("wc -c; echo after"), data=b"x" * 100).lines == ["100", "after"]


def test_input_arrives_before_its_end(cloche: Runtime, bundle: Bundle) -> None:
    bundle.sh("while read line; do echo got $line; done; echo end")
    process = cloche.popen("run", "--bundle", bundle.save(), cloche.new_id(), stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for word in (b"one", b"two"):
        process.stdin.write(word + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"got " + word + b"\n"
    process.stdin.close()
    assert process.stdout.read() == b"end\n"
    assert process.wait() == 0


def test_no_input_is_dev_null(cloche: Runtime, bundle: Bundle) -> None:
    container = cloche.start(bundle.sh("wc -c; readlink /proc/self/fd/0"))
    assert container.wait() == 0
    assert container.output.splitlines()[0] == "0"


def test_output_is_complete_when_the_exit_is_told(idle: Container) -> None:
    result = idle.sh("head -c 3000000 /dev/zero; exit 3", code=3)
    assert len(result.stdout) == 3_000_000


def test_output_of_the_first_process_is_complete(cloche: Runtime, bundle: Bundle) -> None:
    result = cloche.run(bundle.sh("seq 1 200000; exit 3"), code=3)
    assert result.lines == [str(number) for number in range(1, 200_001)]


def test_both_outputs_at_once(idle: Container) -> None:
    script = "i=0; while [ $i -lt 5000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    result = idle.sh(script)
    assert result.lines == [f"out {number}" for number in range(5000)]
    assert result.stderr.splitlines() == [f"err {number}" for number in range(5000)]


def test_a_reader_of_one_output_only_stalls_the_other_alone(idle: Container) -> None:
    # stderr is not read until stdout has ended: both have to have room of their own.
    script = "head -c 200000 /dev/zero >&2; head -c 2000000 /dev/zero; echo end >&2"
    client = idle.runtime.popen("exec", idle.id, "sh", "-c", script)
    assert client.stdout is not None
    assert client.stderr is not None
    assert len(client.stdout.read(2_000_000)) == 2_000_000
    assert client.stderr.read()[200_000:] == b"end\n"
    assert client.wait(PATIENCE_SECONDS) == 0


def test_a_closed_reader_ends_the_writer_as_a_pipe_does(idle: Container) -> None:
    client = idle.runtime.popen("exec", idle.id, "sh", "-c", "yes; echo $? >/tmp/code")
    assert client.stdout is not None
    assert client.stdout.read(4) == b"y\ny\n"
    client.stdout.close()
    client.wait(PATIENCE_SECONDS)
    assert idle.sh("cat /tmp/code").output == str(128 + signal.SIGPIPE)


def test_a_closed_reader_does_not_end_the_container(cloche: Runtime, bundle: Bundle) -> None:
    bundle.sh("trap '' PIPE; head -c 3000000 /dev/zero; head -c 3000000 /dev/zero; touch /done")
    process = cloche.popen("run", "--bundle", bundle.save(), cloche.new_id())
    assert process.stdout is not None
    process.stdout.close()
    process.wait(PATIENCE_SECONDS)
    assert (bundle.rootfs / "done").exists()


def test_a_process_that_reads_nothing_does_not_wait_for_its_input(idle: Container) -> None:
    client = idle.runtime.popen("exec", idle.id, "true", stdin=subprocess.PIPE)
    assert client.wait(PATIENCE_SECONDS) == 0  # although its stdin is open still
    assert client.stdin is not None
    client.stdin.close()


def test_input_is_not_taken_from_those_who_come_after(idle: Container, folder: Path) -> None:
    """As in `while read line; do cloche exec … </dev/null; done`: stdin can be shared."""
    file = folder / "lines"
    file.write_text("1\n2\n3\n")
    script = f"""while read line; do
        {" ".join(idle.runtime.argv)} exec {idle.id} echo got $line </dev/null
    done <{file}"""
    output = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        check=True,
        timeout=PATIENCE_SECONDS,
        env=idle.runtime.env,
    ).stdout
    assert output.split() == b"got 1 got 2 got 3".split()


def test_files_as_standard_streams(idle: Container, folder: Path) -> None:
    data = os.urandom(MIB)
    (folder / "in").write_bytes(data)
    with open(folder / "in", "rb") as source, open(folder / "out", "wb") as target:
        argv = [*idle.runtime.argv, "exec", idle.id, "cat"]
        subprocess.run(
            argv,
            stdin=source,
            stdout=target,
            check=True,
            timeout=PATIENCE_SECONDS,
            env=idle.runtime.env,
        )
    assert (folder / "out").read_bytes() == data


def test_an_output_file_is_appended_to(idle: Container, folder: Path) -> None:
    (folder / "out").write_text("before\n")
    for word in ("one", "two"):
        with open(folder / "out", "ab") as target:
            argv = [*idle.runtime.argv, "exec", idle.id, "echo", word]
            subprocess.run(
                argv, stdout=target, check=True, timeout=PATIENCE_SECONDS, env=idle.runtime.env
            )
    assert (folder / "out").read_text() == "before\none\ntwo\n"


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_descriptor_is_no_obstacle(idle: Container, closed: int) -> None:
    sign = "<" if closed == 0 else ">"
    script = f"exec {closed}{sign}&-; {' '.join(idle.runtime.argv)} exec {idle.id} true"
    done = subprocess.run(
        ["sh", "-c", script], timeout=PATIENCE_SECONDS, check=False, env=idle.runtime.env
    )
    assert done.returncode == 0


def test_our_descriptors_stay_blocking(idle: Container) -> None:
    """A shell whose stdin was made non-blocking behind its back would read EAGAIN as an end."""
    (stdin, stdin_writer), (stdout_reader, stdout) = os.pipe(), os.pipe()
    argv = [*idle.runtime.argv, "exec", idle.id, "echo", "x"]
    subprocess.run(
        argv, stdin=stdin, stdout=stdout, check=True, timeout=PATIENCE_SECONDS, env=idle.runtime.env
    )
    assert os.get_blocking(stdin)
    assert os.get_blocking(stdout)
    assert os.read(stdout_reader, 10) == b"x\n"
    for fd in (stdin, stdin_writer, stdout_reader, stdout):
        os.close(fd)


def _spent(pid: int) -> int:
    """The processor time of a process, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_small_writes_share_frames(cloche: Runtime, bundle: Bundle) -> None:
    """20,000 lines cost a small multiple of writing them to nowhere, not a frame each."""
    container = cloche.start(bundle.args("sleep", "1000"))
    qemu = qemu_of(cloche.root, container.id)
    program = "BEGIN { for (i = 0; i < 20000; i++) { print i; fflush() } }"
    spent: dict[str, int] = {}
    for target in ("/dev/null", "/proc/self/fd/1"):
        before = _spent(qemu)
        result = cloche("exec", container.id, "sh", "-c", f"awk '{program}' >{target}")
        spent[target] = _spent(qemu) - before
    assert result.lines == [str(number) for number in range(20_000)]
    assert spent["/proc/self/fd/1"] <= 4 * spent["/dev/null"] + 50, spent


def _writes(pid: int) -> int:
    """How often a process has written to a file, pipe or terminal."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["syscw"])


@pytest.mark.parametrize(
    ("script", "size", "most"),
    [
        # A MiB in pieces of a page: 40 writes, where each batch that fits a pipe took 70.
        ("dd if=/dev/zero bs=4k count=7168 2>/dev/null", 28 * MIB, 28 * 40),
        # A long burst of lines is gathered ever longer.
        ("i=0; while [ $i -lt 20000 ]; do echo $i 4567; i=$((i+1)); done", 208_890, 550),
    ],
    ids=["pages", "lines"],
)
def test_much_output_is_brought_in_large_pieces(
    idle: Container, script: str, size: int, most: int
) -> None:
    before = _writes(idle.pid)
    assert len(idle.sh(script).stdout) == size
    assert _writes(idle.pid) - before <= most


def test_whoever_writes_much_gets_room_to_go_on(cloche: Runtime, bundle: Bundle) -> None:
    write_program(bundle.rootfs / "size", TELLS_PIPE_SIZE)
    container = cloche.start(bundle.args("sleep", "1000"))
    container.sh("exec /size", code=1)
    container.sh("head -c 600000 /dev/zero; exec /size", code=16)
    container.sh("head -c 600000 /dev/zero >&2; exec /size", code=1)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_what_is_gathered_precedes_other_output(idle: Container, first: int, second: int) -> None:
    """A complaint behind many lines is not shown in front of the last of them."""
    script = f"""i=0
        while [ $i -lt 3000 ]; do echo $i >&{first}; i=$((i+1)); done
        echo end >&{second}; cat"""
    client = idle.runtime.popen("exec", idle.id, "sh", "-c", script, stdin=subprocess.PIPE)
    outputs = {1: client.stdout, 2: client.stderr}
    early, late = outputs[first], outputs[second]
    assert early is not None
    assert late is not None
    assert late.read(4) == b"end\n"
    # All of it is there already: the pipe holds more than 3,000 lines.
    os.set_blocking(early.fileno(), False)
    assert os.read(early.fileno(), 65536).splitlines()[-1] == b"2999"
    client.communicate(timeout=PATIENCE_SECONDS)
    assert client.returncode == 0


def test_one_file_gets_both_outputs_in_order(cloche: Runtime, bundle: Bundle) -> None:
    """`2>&1` on the host's side keeps the order, as where a process has the very descriptor."""
    script = "i=0; while [ $i -lt 3000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    container = cloche.start(bundle.args("sleep", "1000"))
    process = cloche.popen("exec", container.id, "sh", "-c", script, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    expected = [f"{name} {number}" for number in range(3000) for name in ("out", "err")]
    assert output.decode().splitlines() == expected


def test_a_closed_error_output_leaves_the_other(cloche: Runtime, bundle: Bundle) -> None:
    bundle.sh("exec 2>&-; sleep 0.1; echo still here; (echo lost >&2) || exit 3")
    process = cloche.popen(
        "run", "--bundle", bundle.save(), cloche.new_id(), stderr=subprocess.STDOUT
    )
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert b"still here" in output
    assert process.returncode == 3

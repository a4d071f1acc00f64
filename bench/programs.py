"""What users run in containers: the programs of `make bench-programs`, an entry each.

A program is shell in the Debian of `bench.debian`, as root; $PEER is another container's address,
at which an iperf3 waits. /bench is for its files. Sizes are such that the slowest door needs
seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

MS = "ms"


@dataclass(frozen=True)
class Program:
    """One entry.

    *once* comes before the first run in a container, *before* each run, *after* the last; none of
    them is timed. The wall time of *command* is what is told, unless *read* takes a number from
    its output; *check* raises ValueError when the output is not what it should be. With *warm* a
    first run is told apart and not counted. *seconds* is the most that a step may take.
    """

    name: str
    command: str
    once: str = ""
    before: str = ""
    after: str = ""
    unit: str = MS
    read: Callable[[str], float] | None = None
    check: Callable[[str], None] | None = None
    higher_is_better: bool = False
    warm: bool = True
    seconds: float = 180.0


_WHEEL = """\
python3 - <<'END'
import zipfile
body = "".join(f"def function_{i}(a, b={i}):\\n    return [a + b + x for x in range({i})]\\n\\n"
               for i in range(20))
with zipfile.ZipFile("/bench/sample-1.0-py3-none-any.whl", "w") as wheel:
    names = [f"sample/module_{i}.py" for i in range(10)]
    for name in names:
        wheel.writestr(name, body)
    info = "sample-1.0.dist-info"
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: sample\\nVersion: 1.0\\n")
    wheel.writestr(f"{info}/WHEEL",
                   "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\\n" for name in names))
END"""
_TREE = """\
mkdir -p /bench/tree && cd /bench/tree
for folder in a b c d e; do
    mkdir -p $folder
    for file in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        echo "$folder $file: some text that differs from file to file" >$folder/$file
    done
done"""
_C = """\
cat >/bench/hello.c <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(void) { char *s = strdup("hello"); puts(s); free(s); return 0; }
END"""
_GIT = "git -c user.name=a -c user.email=a@b.invalid -c init.defaultBranch=main"
_COMMIT = f"{_GIT} init -q . && {_GIT} add . && {_GIT} commit -q -m all"
_FORKS = "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done"
_MAKE_FILES = """\
mkdir /bench/small && perl -e 'for (1..2000) {
    open(my $f, ">", "/bench/small/$_") or die $!; print $f "x" x 200; close $f or die $! }'"""
_SQLITE = """\
(echo 'CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT);'
i=0; while [ $i -lt 100 ]; do echo "INSERT INTO t(text) VALUES('row $i');"; i=$((i+1)); done
echo 'SELECT count(*) FROM t;') >/bench/transactions.sql"""
_POSTGRES = "setpriv --reuid=postgres --regid=postgres --clear-groups"
_BIN = "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)"
_NEW_CLUSTER = "rm -rf /bench/pg && mkdir /bench/pg && chown postgres /bench/pg"
_INITDB = f"{_BIN}; cd /bench/pg; {_POSTGRES} initdb -D /bench/pg -A trust >/dev/null"
_START_POSTGRES = f"""\
[ -e /bench/pg/PG_VERSION ] || {{ {_NEW_CLUSTER}; {_INITDB}; }}
{_BIN}; cd /bench/pg
{_POSTGRES} pg_ctl -D /bench/pg -s -w -t 120 -o '-k /tmp -h ""' -l /bench/pg/log start
{_POSTGRES} pgbench -h /tmp -i -q -s 1 postgres >/dev/null"""
_PGBENCH = f"{_BIN}; cd /bench/pg; {_POSTGRES} pgbench -h /tmp -n -c 2 -T 3 postgres"
_STOP_POSTGRES = f"{_BIN}; cd /bench/pg; {_POSTGRES} pg_ctl -D /bench/pg -s -m immediate stop"
_START_REDIS = """\
redis-server --save '' --daemonize yes --port 6379 >/dev/null
until redis-cli ping >/dev/null 2>&1; do :; done"""
_STDOUT = """perl -e '$|=1; for (1..20000) { syswrite(STDOUT, "one of many short lines\\n") }'"""


def _number_after(pattern: str) -> Callable[[str], float]:
    """Reads the number that *pattern* has as its group; ValueError when it is not there."""

    def read(output: str) -> float:
        found = re.search(pattern, output)
        if found is None:
            raise ValueError(f"no {pattern!r} in the output: {output.strip()[-200:]}")
        return float(found[1])

    return read


def _field(*path: str | int) -> Callable[[str], float]:
    """Reads what is at *path* in the JSON that is printed, before which notes may be.

    ValueError when it is not there.
    """

    def read(output: str) -> float:
        try:
            found = json.loads(output[output.index("{") :])
            for step in path:
                found = found[step]
            return float(found)
        except (LookupError, TypeError, ValueError):
            where = ".".join(map(str, path))
            raise ValueError(f"no {where} in the output: {output.strip()[-300:]}") from None

    return read


def _scaled(factor: float, read: Callable[[str], float]) -> Callable[[str], float]:
    return lambda output: read(output) * factor


def _fio_program(name: str, kind: str, block: str, size: str) -> Program:
    direction = "write" if "write" in kind else "read"
    key, scale, unit = ("iops", 1.0, "/s") if block == "4k" else ("bw_bytes", 2.0**-20, "MiB/s")
    job = f"fio --name=job --filename=/bench/fio --size={size} --ioengine=psync"
    options = f"--rw={kind} --bs={block} --runtime=3 --end_fsync=1 --output-format=json"
    return Program(
        f"fio: {name}",
        f"{job} {options}",
        once=f"dd if=/dev/zero of=/bench/fio bs=1M count={size.removesuffix('m')} conv=fsync",
        after="rm -f /bench/fio",
        unit=unit,
        read=_scaled(scale, _field("jobs", 0, direction, key)),
        higher_is_better=True,
        warm=False,
    )


def _iperf_program(name: str, options: str) -> Program:
    # The server takes one test after the other, and may be about to be ready for the next. What
    # fails is in the output: with -J the exit status is 0 all the same.
    test = f"said=$(iperf3 -c $PEER -t 2 -J {options}) || :"
    done = "case $said in *sum_received*) break ;; esac"
    return Program(
        name,
        f"for i in 1 2 3 4 5; do {test}; {done}; sleep 1; done; printf '%s' \"$said\"",
        unit="Mbit/s",
        read=_scaled(1e-6, _field("end", "sum_received", "bits_per_second")),
        higher_is_better=True,
        warm=False,
    )


def _ends_with(text: str) -> Callable[[str], None]:
    """Checks that *text* was printed last: the program did what it is measured for."""

    def check(output: str) -> None:
        if not output.rstrip("\n").endswith(text):
            raise ValueError(f"{text!r} was to come, not {output.strip()[-200:]!r}")

    return check


def _has_lines(count: int) -> Callable[[str], None]:
    """Checks that *count* lines came: none was lost on the way."""

    def check(output: str) -> None:
        if (lines := output.count("\n")) != count:
            raise ValueError(f"{lines} lines came of {count}")

    return check


PROGRAMS = (
    Program("Python start", "python3 -c 'import json, asyncio, http.client'"),
    Program("find /usr", "find /usr -xdev >/dev/null"),
    Program("100 × fork and exec", _FORKS),
    Program("git status", f"{_GIT} -C /bench/tree status --short", once=f"{_TREE}; {_COMMIT}"),
    Program(
        "git init, add, commit",
        f"cd /bench/tree; {_COMMIT}",
        once=_TREE,
        before="rm -rf /bench/tree/.git",
    ),
    Program(
        "gcc of a small program",
        "cd /bench; gcc -O1 -o hello hello.c; ./hello",
        once=_C,
        check=_ends_with("hello"),
    ),
    Program("tar of 1,500 files", "tar -C /usr -cf /bench/include.tar include"),
    Program("2,000 small files, written", _MAKE_FILES, before="rm -rf /bench/small", warm=False),
    Program(
        "2,000 small files, removed",
        "rm -r /bench/small",
        before=f"[ -d /bench/small ] || {{ {_MAKE_FILES}; }}",
        warm=False,
    ),
    Program(
        "SQLite, 100 transactions",
        "sqlite3 -bail /bench/db.sqlite </bench/transactions.sql",
        once=_SQLITE,
        before="rm -f /bench/db.sqlite",
        check=_ends_with("100"),
    ),
    Program("20,000 short writes to stdout", _STDOUT, check=_has_lines(20_000)),
    Program(
        "redis, 2,000 GETs",
        "redis-benchmark -q -n 2000 -c 10 -t get --csv",
        once=_START_REDIS,
        after="redis-cli shutdown nosave",
        unit="/s",
        read=_number_after(r'"GET","([0-9.]+)"'),
        higher_is_better=True,
    ),
    _fio_program("4 KiB random read", "randread", "4k", "32m"),
    _fio_program("4 KiB random write", "randwrite", "4k", "32m"),
    _fio_program("1 MiB sequential read", "read", "1m", "256m"),
    _fio_program("1 MiB sequential write", "write", "1m", "256m"),
    _iperf_program("iperf3, out of the container", ""),
    _iperf_program("iperf3, into the container", "-R"),
    Program(
        "pip install of a wheel",
        "pip install -q --root-user-action=ignore --no-index --target /bench/site "
        "/bench/sample-1.0-py3-none-any.whl",
        once=_WHEEL,
        before="rm -rf /bench/site",
        warm=False,
    ),
    Program("PostgreSQL initdb", _INITDB, before=_NEW_CLUSTER, warm=False, seconds=240.0),
    Program(
        "PostgreSQL pgbench",
        _PGBENCH,
        once=_START_POSTGRES,
        after=_STOP_POSTGRES,
        unit="transactions/s",
        read=_number_after(r"tps = ([0-9.]+)"),
        higher_is_better=True,
        warm=False,
        seconds=240.0,
    ),
)

"""What verbs print, held against runc's output for the same containers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from cloche.model.spec import default_spec
from engine.dockerd import wait_until

from .bundles import Bundle
from .runtime import Container, Runtime


def test_state_has_runcs_keys_in_runcs_order(
    created: Container, runc: Runtime, bundle: Bundle
) -> None:
    ours, theirs = created.state(), runc.create(bundle).state()
    assert list(ours) == list(theirs)
    same = ("status", "bundle", "rootfs", "owner")
    assert [ours[key] for key in same] == [theirs[key] for key in same]
    assert ours["id"] == created.id


def test_annotations_are_in_the_state(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.config["annotations"] = {"org.example.a": "1", "b": "ü"}
    ours, theirs = cloche.create(bundle).state(), runc.create(bundle).state()
    assert list(ours) == list(theirs)
    assert ours["annotations"] == theirs["annotations"] == bundle.config["annotations"]


def test_list_prints_runcs_table(created: Container, runc: Runtime, bundle: Bundle) -> None:
    theirs = runc.create(bundle)
    (our_head, our_line), (their_head, their_line) = (
        each.runtime("list").lines for each in (created, theirs)
    )
    # The width of CREATED follows the time: Go's format leaves trailing zeros out.
    assert our_head.split() == their_head.split()
    for column in ("PID", "STATUS", "BUNDLE", "CREATED", "OWNER"):
        for head, line in ((our_head, our_line), (their_head, their_line)):
            assert line[head.index(column) - 1] == " "
    assert our_line.split()[0] == created.id
    assert our_line.split()[2:4] == their_line.split()[2:4]


def test_list_as_json_and_as_ids(created: Container, runc: Runtime, bundle: Bundle) -> None:
    cloche = created.runtime
    (ours,) = cloche("list", "--format", "json").json()
    (theirs,) = runc.create(bundle).runtime("list", "-f", "json").json()
    assert list(ours) == list(theirs)
    assert ours["owner"] == theirs["owner"] == "root"
    assert cloche("list", "-q").lines == cloche("list", "--quiet").lines == [created.id]


def test_list_of_nothing(cloche: Runtime, runc: Runtime) -> None:
    for flags in ((), ("-q",), ("-f", "json")):
        assert cloche("list", *flags).output == runc("list", *flags).output


HEAD = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]


@pytest.mark.parametrize("name", ["cloche", "runc"])
def test_ps(request: pytest.FixtureRequest, bundle: Bundle, name: str) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    container = runtime.start(bundle.args("sleep", "1000"))
    second = container.exec_detached("sleep", "2345", user="1:1")
    head, *lines = [line.split(maxsplit=7) for line in runtime("ps", container.id).lines]
    assert head == HEAD
    assert [(line[0], line[7]) for line in lines] == [
        *(("root", "sleep 1000"), ("daemon", "sleep 2345"))
    ]
    for _, pid, _, share, start, terminal, used, _ in lines:
        assert (terminal, used[:6]) == ("?", "00:00:")
        assert int(pid) > 1
        assert int(share) < 100
        assert re.fullmatch(r"\d\d:\d\d", start)
    # Who does not reap it keeps runc's container from ending.
    os.kill(second, signal.SIGKILL)
    os.waitpid(second, 0)


def test_ps_options_are_those_of_ps(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.args("sleep", "1000")
    containers = [runtime.start(bundle) for runtime in (cloche, runc)]
    for options in (
        ("-e", "-o", "pid=PID,user,group,args,comm,tty,nlwp"),
        ("-ef",),
        ("-eLf",),
        ("-ejH",),
    ):
        # All but numbers, which differ, and with them the widths of columns.
        ours, theirs = (
            [
                re.sub(r"[0-9.:]+", "0", line).split()
                for line in box.runtime("ps", box.id, *options).lines
            ]
            for box in containers
        )
        assert ours == theirs, options


def test_ps_shows_terminals(idle: Container) -> None:
    script = "sleep 7654; :"

    def are_shown() -> bool:
        lines = idle.runtime("ps", idle.id, "-o", "pid,tty,stat,args").lines
        return [line.split(maxsplit=3)[1:] for line in lines if "7654" in line] == [
            ["pts/0", "Ss+", f"sh -c {script}"],
            ["pts/0", "S+", "sleep 7654"],
        ]

    with idle.runtime.terminal("exec", "--tty", idle.id, "sh", "-c", script):
        wait_until(are_shown, "both sleep on their terminal")


@pytest.mark.parametrize("name", ["cloche", "runc"])
@pytest.mark.parametrize(
    "options", [("-e", "-o", "args"), ("-Z9", "--nothing"), ("-o",)], ids=" ".join
)
def test_ps_options_that_cannot_be(
    request: pytest.FixtureRequest, bundle: Bundle, name: str, options: tuple[str, ...]
) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    container = runtime.start(bundle)
    result = runtime("ps", container.id, *options, code=1)
    no_pid = "couldn't find PID field in ps output"
    assert (no_pid in result.stderr) == (options[-1] == "args"), result
    assert name == "runc" or len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["cloche", "runc"])
def test_ps_whose_pids_cannot_be_read(
    request: pytest.FixtureRequest, bundle: Bundle, name: str
) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    container = runtime.start(bundle.sh("sleep 1000; :"))
    message = runtime.fails("ps", container.id, "-e", "-o", "args=ARGS,pid=PID")
    assert "unable to parse pid" in message


@pytest.mark.parametrize("name", ["cloche", "runc"])
def test_ps_of_a_stopped_container(
    request: pytest.FixtureRequest, bundle: Bundle, name: str
) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    container = runtime.start(bundle)
    container.end()
    assert [line.split() for line in runtime("ps", container.id).lines] == [HEAD]


def test_ps_as_json_names_processes_of_the_host(idle: Container) -> None:
    # Stand-ins: an engine shows what the host's ps says of them (docs/engines.md).
    idle.exec_detached("sleep", "3456", user="1:1")
    pids = idle.runtime("ps", "--format", "json", idle.id).json()
    argv = ["ps", "-o", "uid=,args=", "-q", ",".join(map(str, pids))]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"0 sleep 1000", "1 sleep 3456"} <= {" ".join(line.split()) for line in shown}


def test_spec_writes_a_config_that_runs(cloche: Runtime, bundle: Bundle) -> None:
    bundle.save()
    (bundle.path / "config.json").unlink()
    cloche("spec", cwd=bundle.path)
    written = json.loads((bundle.path / "config.json").read_text())
    assert written == default_spec()
    bundle.config = written
    bundle.config["process"]["terminal"] = False
    assert cloche.run(bundle.sh("id -u; hostname")).lines == ["0", "cloche"]
    assert cloche.messages("warning") == []


def test_spec_overwrites_nothing(cloche: Runtime, bundle: Bundle) -> None:
    bundle.write("mine")
    assert "exists already" in cloche.fails("spec", "--bundle", bundle.path)
    assert (bundle.path / "config.json").read_text() == "mine"


def test_features_name_what_runcs_name(cloche: Runtime, runc: Runtime) -> None:
    ours, theirs = cloche("features").json(), runc("features").json()
    assert set(theirs["hooks"]) == set(ours["hooks"])
    assert set(theirs["linux"]["capabilities"]) >= {"CAP_SYS_ADMIN"}
    assert set(theirs["linux"]["capabilities"]) <= set(ours["linux"]["capabilities"])
    unknown = set(theirs["mountOptions"]) - set(ours["mountOptions"])
    assert unknown <= {"idmap", "ridmap"}


def test_version_and_help(cloche: Runtime) -> None:
    assert cloche("--version").lines[0].startswith("cloche version ")
    assert "create a container" in cloche("help").output
    assert "--console-socket" in cloche("create", "--help").output


def test_containers_of_another_root_are_not_seen(
    created: Container, program: Path, folder: Path
) -> None:
    other = Runtime(program, folder / "other", {})
    assert other("list", "-q").lines == []
    assert "does not exist" in other.fails("state", created.id)


@pytest.mark.parametrize("verb", ["checkpoint", "restore"])
def test_verb_that_comes_later_says_so(cloche: Runtime, verb: str) -> None:
    assert f"{verb}: not possible yet" in cloche.fails(verb, "--any", "flag", "some-id")
    assert "Not possible yet" in cloche(verb, "--help").output

"""Bad input: one line that names the file, the JSON path and what was expected; nothing left."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from .bundles import Bundle
from .runtime import Container, Runtime

ABSENT = object()


def changed(config: dict[str, Any], path: str, value: object) -> str:
    """*config* as JSON with the value at a dotted *path* changed, or taken out."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    place: Any = config
    for name in parents:
        place = place[int(name)] if name.isdigit() else place.setdefault(name, {})
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return json.dumps(config)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("ociVersion", ABSENT, "$.ociVersion: missing, but required"),
        ("ociVersion", "2.0.0", '$.ociVersion: expected a version 1.x.y, got "2.0.0"'),
        ("process", ABSENT, "$.process: missing, but required"),
        ("process.args", "sh", "$.process.args: expected array, got str"),
        ("process.args", [], "$.process.args: missing or empty"),
        ("process.args", ["sh", 1], "$.process.args[1]: expected str, got int"),
        ("process.cwd", "relative", "$.process.cwd: expected an absolute path"),
        ("process.env", ["A"], "$.process.env[0]: expected NAME=value"),
        ("process.user.uid", -1, "$.process.user.uid: expected int >= 0"),
        ("process.user.uid", "root", "$.process.user.uid: expected int, got str"),
        ("process.user.gid", 1 << 32, "$.process.user.gid: expected int <= 4294967295"),
        ("process.terminal", "yes", "$.process.terminal: expected bool, got str"),
        ("process.rlimits.0.type", "RLIMIT_X", "$.process.rlimits[0].type: expected RLIMIT_"),
        ("process.rlimits.0.soft", 5000, "$.process.rlimits[0].soft: 5000 is above the hard"),
        ("process.capabilities.bounding", "X", "$.process.capabilities.bounding: expected array"),
        ("process.scheduler", {"policy": "FIFO"}, "$.process.scheduler.policy: expected one of"),
        ("root", ABSENT, "$.root: missing, but required"),
        ("root.path", "nowhere", "$.root.path: "),
        ("mounts.0.destination", ABSENT, "$.mounts[0].destination: missing, but required"),
        ("mounts.0.destination", "/../x", "$.mounts[0].destination: leads upwards"),
        ("mounts", {}, "$.mounts: expected array, got object"),
        ("hostname", "x" * 65, "$.hostname: longer than 64 bytes"),
        ("hooks", {"prestart": [{}]}, "$.hooks.prestart[0].path: missing"),
        ("hooks", {"prestart": [{"path": "x"}]}, "$.hooks.prestart[0].path: expected an absolute"),
        ("hooks", {"prestart": {}}, "$.hooks.prestart: expected array"),
        ("annotations", {"a": 1}, "$.annotations.a: expected str, got int"),
        ("linux.namespaces.0.type", "users", "$.linux.namespaces[0].type: expected one of"),
        ("linux.namespaces.0.type", "user", "$.linux.uidMappings: missing"),
        ("linux.resources.memory", {"limit": "64m"}, "$.linux.resources.memory.limit: expected"),
        ("linux.cgroupsPath", "../..", "$.linux.cgroupsPath: names the root"),
        ("linux.maskedPaths", ["x"], "$.linux.maskedPaths[0]: expected an absolute path"),
        ("linux.sysctl", {"../x": "1"}, "$.linux.sysctl: expected names like"),
        ("linux.seccomp", {"defaultAction": "X"}, "$.linux.seccomp.defaultAction: no such action"),
        ("linux.devices", [{"path": "x", "type": "c"}], "$.linux.devices[0]"),
    ],
)
def test_a_field_that_cannot_be(
    cloche: Runtime, bundle: Bundle, path: str, value: object, problem: str
) -> None:
    bundle.write(changed(bundle.config, path, value))
    message = cloche.fails("create", "--bundle", bundle.path, cloche.new_id())
    assert problem in message
    if "cgroupsPath" not in path:
        assert f"{bundle.path}/config.json: $" in message
    assert cloche.leftovers() == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"text"', "{} {}", '{"a": \x00}', "[" * 100_000, '{"a": nan}'],
    ids=lambda text: repr(text[:12]),
)
def test_a_file_that_is_no_config(cloche: Runtime, bundle: Bundle, text: str) -> None:
    bundle.write(text)
    message = cloche.fails("run", "--bundle", bundle.path, cloche.new_id())
    assert f"{bundle.path}/config.json: $: " in message
    assert cloche.leftovers() == []


def test_bytes_that_are_no_text(cloche: Runtime, bundle: Bundle) -> None:
    (bundle.path / "config.json").write_bytes(b'{"ociVersion": "\xff\xfe"}')
    message = cloche.fails("run", "--bundle", bundle.path, cloche.new_id())
    assert f"{bundle.path}/config.json: " in message


def test_no_config(cloche: Runtime, runc: Runtime, folder: Path) -> None:
    arguments = ("run", "--bundle", folder)
    message = cloche.fails(*arguments, cloche.new_id())
    assert f"{folder}/config.json: JSON specification file config.json not found" in message
    assert "`cloche spec` writes one" in message
    runc(*arguments, runc.new_id(), code=1)


def test_no_bundle(cloche: Runtime, folder: Path) -> None:
    message = cloche.fails("run", "--bundle", folder / "nothing", cloche.new_id())
    assert f"{folder}/nothing" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["create"],
        ["create", "a", "b"],
        ["create", "--what", "a"],
        ["create", "--bundle"],
        ["start"],
        ["state", "a", "b"],
        ["kill"],
        ["delete"],
        ["list", "--format", "xml"],
        ["--log-format", "xml", "list"],
        ["--what", "list"],
        ["exec"],
        ["exec", "--process", "/nothing", "a"],
        ["ps", "a", "-o", "pid"],
        ["help", "what"],
        ["run", "a/b"],
        ["run", ".."],
        ["run", ""],
        ["run", "--detach=maybe", "a"],
        ["what"],
    ],
    ids=" ".join,
)
def test_wrong_words_fail_as_with_runc(
    cloche: Runtime, runc: Runtime, bundle: Bundle, arguments: list[str]
) -> None:
    ours = cloche(*arguments, code=None, cwd=bundle.save())
    theirs = runc(*arguments, code=None, cwd=bundle.path)
    assert ours.code == theirs.code != 0
    assert len(ours.stderr.splitlines()) == 1
    assert ours.stderr.startswith("cloche: ")
    assert ours.stdout == b""


def test_every_flag_of_runcs_is_known(cloche: Runtime, runc: Runtime) -> None:
    verbs = re.findall(r"^ {3}([a-z]+) {2,}", runc("--help").output, re.MULTILINE)
    assert "run" in verbs
    for verb in verbs:
        theirs = set(re.findall(r"^ {3}(--[a-z0-9-]+)", runc(verb, "--help").output, re.MULTILINE))
        ours = set(re.findall(r"--[a-z0-9-]+", cloche(verb, "--help").output))
        assert theirs - ours <= {"--help"} or verb in ("checkpoint", "restore"), verb


def test_global_flags_of_runcs_are_known(cloche: Runtime, runc: Runtime) -> None:
    theirs = set(re.findall(r"^ {3}(--[a-z0-9-]+)", runc("--help").output, re.MULTILINE))
    assert "--criu" in theirs
    assert theirs <= set(re.findall(r"--[a-z0-9-]+", cloche("--help").output))


@pytest.mark.parametrize("arguments", [["--help", "run"], ["help"], ["h"], ["run", "-d", "--help"]])
def test_help_wherever_runc_takes_it(cloche: Runtime, runc: Runtime, arguments: list[str]) -> None:
    assert "\n" in runc(*arguments).output
    assert cloche(*arguments).output.startswith("Usage: cloche ")


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("state", []),
        ("start", []),
        ("kill", ["TERM"]),
        ("delete", []),
        ("pause", []),
        ("resume", []),
        ("ps", []),
        ("exec", ["true"]),
    ],
)
def test_an_unknown_id(cloche: Runtime, runc: Runtime, verb: str, arguments: list[str]) -> None:
    ours = cloche(verb, "unknown", *arguments, code=None)
    theirs = runc(verb, "unknown", *arguments, code=None)
    assert ours.code == theirs.code != 0
    # Docker and containerd look for these words.
    assert "container does not exist" in ours.stderr
    assert "container does not exist" in runc.messages("error")[-1]


@pytest.mark.parametrize("name", ["FOO", "65", "SIG", "SIGX"])
def test_an_unknown_signal(idle: Container, runc: Runtime, bundle: Bundle, name: str) -> None:
    assert "unknown signal" in idle.runtime.fails("kill", idle.id, name)
    runc("kill", runc.start(bundle).id, name, code=1)


@pytest.mark.parametrize(
    "flags",
    [
        ["--user", "root"],
        ["--user", "1:x"],
        ["--additional-gids", "x"],
        ["--preserve-fds", "1"],
        ["--cwd", "relative"],
        ["--env", "X"],
    ],
    ids=" ".join,
)
def test_exec_flags_that_cannot_be(idle: Container, flags: list[str]) -> None:
    message = idle.runtime.fails("exec", *flags, idle.id, "true", code=255)
    assert "exec failed: " in message


def test_an_unknown_capability_is_left_out_with_a_warning(idle: Container) -> None:
    idle.sh("true", "--cap", "CAP_FLY")
    assert 'unknown, left out: "CAP_FLY"' in idle.runtime.messages("warning")[-1]


def test_warnings_name_the_field(cloche: Runtime, bundle: Bundle) -> None:
    bundle.process["apparmorProfile"] = "docker-default"
    bundle.process["selinuxLabel"] = "label"
    result = cloche.run(bundle.sh("echo ran"))
    assert (result.output, result.stderr) == ("ran", "")
    found = cloche.messages("warning")
    assert any(message.startswith("$.process.apparmorProfile: not applied") for message in found)
    assert any(message.startswith("$.process.selinuxLabel: not applied") for message in found)


def test_the_log_is_what_engines_read(cloche: Runtime, bundle: Bundle) -> None:
    bundle.process["cwd"] = "x"
    stderr = cloche.fails("create", "--bundle", bundle.save(), cloche.new_id())
    (line,) = cloche.log.read_text().splitlines()
    record = json.loads(line)
    assert record.keys() == {"level", "msg", "time"}
    assert record["level"] == "error"
    assert f"cloche: {record['msg']}" == stderr


def test_the_log_as_text(cloche: Runtime, folder: Path) -> None:
    log = folder / "log.txt"
    cloche("--log", log, "--log-format", "text", "state", "unknown", code=1)
    cloche("--log", log, "--log-format", "text", "state", "unknown", code=1)
    first, _second = log.read_text().splitlines()
    assert 'level=error msg="container unknown: container does not exist"' in first


def test_a_log_that_cannot_be_written_hides_nothing(cloche: Runtime) -> None:
    message = cloche.fails("--log", "/dev/full", "state", "unknown")
    assert "container does not exist" in message


def test_a_warning_is_told_where_no_log_can_be_written(cloche: Runtime, idle: Container) -> None:
    place = ("--root", idle.runtime.root, "--log", "/dev/full")
    told = cloche(*place, "exec", "--cap", "CAP_FLY", idle.id, "true").stderr
    assert 'unknown, left out: "CAP_FLY"' in told


def test_a_root_that_is_a_file(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    root = folder / "file"
    root.touch()
    message = cloche.fails("--root", root, "create", "--bundle", bundle.save(), cloche.new_id())
    assert f"--root {root}: not a directory" in message
    assert f"{root}: not a directory" in cloche.fails("--root", root, "list")


def test_a_root_that_cannot_be_made(cloche: Runtime, bundle: Bundle) -> None:
    message = cloche.fails(
        "--root", "/proc/nothing", "create", "--bundle", bundle.save(), cloche.new_id()
    )
    assert "/proc/nothing" in message
    assert "--root names another place" in message


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "running"}'])
@pytest.mark.parametrize("stage", ["running", "stopped"])
def test_a_damaged_state_file(request: pytest.FixtureRequest, stage: str, text: str) -> None:
    container: Container = request.getfixturevalue(stage)
    cloche = container.runtime
    (cloche.root / container.id / "state.json").write_text(text)
    for verb in ("state", "start", "kill", "delete"):
        message = cloche.fails(verb, container.id)
        assert "damaged state file" in message
        assert "delete --force removes it" in message
    assert "damaged state file" in cloche("list", "--quiet").stderr
    cloche("delete", "--force", container.id)
    assert cloche.leftovers() == []


@pytest.mark.parametrize(("verb", "terminal"), [("create", False), ("run", True)])
def test_a_console_socket_that_nothing_would_use(
    cloche: Runtime, runc: Runtime, bundle: Bundle, verb: str, terminal: bool
) -> None:
    bundle.process["terminal"] = terminal
    arguments = (verb, "--console-socket", "/does/not/exist", "--bundle", bundle.save())
    words = "cannot use console socket if {} will not detach or allocate tty"
    assert words.format("cloche") in cloche.fails(*arguments, cloche.new_id())
    runc(*arguments, runc.new_id(), code=1)
    assert words.format("runc") in runc.messages("error")[-1]
    assert cloche.leftovers() == []

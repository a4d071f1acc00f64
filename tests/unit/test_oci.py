"""Reading config.json: real configs, errors in one line, and what is refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import ConfigError
from cloche.model.oci import load_config, load_process
from cloche.model.spec import default_spec

from .oci_data import DATA, ENGINES, raw, write

BIND = {"destination": "/data", "type": "bind", "source": "/etc"}
ONE_ID = [{"containerID": 0, "hostID": 5, "size": 1}]


def changed(path: str, value: object) -> dict[str, Any]:
    """The default spec with *value* at a path like ``process.user.uid`` or ``mounts.0.type``."""
    config: dict[str, Any] = copy.deepcopy(default_spec())
    *parents, last = path.split(".")
    place: Any = config
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[int(last) if isinstance(place, list) else last] = value
    return config


def failure(folder: Path, config: object) -> str:
    path = write(folder, config)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: $")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ENGINES)
def test_configs_of_real_engines_load(name: str) -> None:
    config = load_config(str(DATA / f"{name}.json"))
    assert config.process.args
    assert config.root.path


def test_nothing_of_a_real_config_is_lost() -> None:
    config = load_config(str(DATA / "docker-many.json"))
    process = config.process
    assert (process.user.uid, process.user.gid, process.user.additional_gids) == (
        1000,
        1000,
        (1000, 7),
    )
    assert "A=b" in process.env
    assert process.oom_score_adj == 100
    assert {limit.type: (limit.soft, limit.hard) for limit in process.rlimits} == {
        "RLIMIT_CORE": (2**64 - 1, 2**64 - 1),
        "RLIMIT_NOFILE": (1000, 2000),
    }
    assert config.root.readonly
    assert config.linux.sysctl["net.core.somaxconn"] == "200"
    assert config.linux.resources.memory.limit == 256 << 20
    assert config.linux.seccomp is not None
    assert config.hooks.prestart[0].args[0] == "libnetwork-setkey"


def test_exec_process_of_docker() -> None:
    process = load_process((DATA / "docker-exec-process.json").read_bytes(), "process.json")
    assert process.args == ("true",)
    assert process.user.uid == 5
    assert process.cwd == "/tmp"


def test_exec_process_error_names_file_and_path() -> None:
    with pytest.raises(ConfigError, match=r"^p\.json: \$\.user\.uid: expected int, got str$"):
        load_process(b'{"cwd": "/", "user": {"uid": "root"}}', "p.json")


def test_the_default_spec_loads(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, default_spec()))
    assert config.process.terminal
    assert config.process.args == ("sh",)


def test_what_asks_for_nothing_is_taken(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, changed("linux.intelRdt", {"closID": "", "enableCMT": False}))
    )
    assert config.linux.intel_rdt is not None


def test_missing_file_is_worded_as_runc_words_it(tmp_path: Path) -> None:
    path = str(tmp_path / "config.json")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"JSON specification file {path} not found"


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{]",
        b'{"a": nope}',
        b"\xff\xfe",
        b'{"\xff": 1}',
        b"[" * 99999,
    ],
)
def test_what_is_no_json_says_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r": \$: not (valid|usable) JSON: "):
        load_config(str(path))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("process.user.uid", "root", "$.process.user.uid: expected int, got str"),
        ("process.user.uid", -1, "$.process.user.uid: expected int >= 0"),
        ("process.user.uid", 1 << 32, "$.process.user.uid: expected int <= 4294967295"),
        ("process.user.uid", 1 << 80, "$.process.user.uid: number out of range"),
        ("process.args", [], "$.process.args: missing or empty"),
        ("process.args", [1], "$.process.args[0]: expected str, got int"),
        ("process.args.0", "a\0b", "$.process.args[0]: contains a NUL byte"),
        ("linux.sysctl", {"net.a": "\0"}, '$.linux.sysctl["net.a"]: contains a NUL byte'),
        ("linux.sysctl", {"net.\0": "1"}, "$.linux.sysctl: contains a NUL byte"),
        ("process.cwd", "tmp", '$.process.cwd: expected an absolute path, got "tmp"'),
        ("process.cwd", None, "$.process.cwd: missing, but required"),
        ("process.env.0", "PATH", '$.process.env[0]: expected NAME=value, got "PATH"'),
        ("process.user.umask", 0o1000, "$.process.user.umask: expected at most 511"),
        ("process.rlimits.0.type", "RLIMIT_X", "$.process.rlimits[0].type: expected RLIMIT_NOFILE"),
        ("process.rlimits.0.soft", 9999, "$.process.rlimits[0].soft: 9999 is above the hard"),
        ("process.oomScoreAdj", 1001, "$.process.oomScoreAdj: expected int <= 1000"),
        ("root.path", "", "$.root.path: empty"),
        ("root", None, "$.root: missing, but required"),
        ("ociVersion", "1.x.0", "$.ociVersion: expected a version 1.x.y"),
        ("ociVersion", "1.0", "$.ociVersion: expected a version 1.x.y"),
        ("ociVersion", "2.0.0", '$.ociVersion: expected a version 1.x.y, got "2.0.0"'),
        ("hostname", "x" * 65, "$.hostname: longer than 64 bytes"),
        ("mounts.0.destination", "/a/../..", "$.mounts[0].destination: leads upwards"),
        ("mounts.1.options.0", "idmap", "$.mounts[1].options: only bind mounts can be id-mapped"),
        ("mounts.1.uidMappings", ONE_ID, "$.mounts[1].uidMappings: only bind mounts can be"),
        ("mounts.1", {**BIND, "options": ["idmap"]}, "$.mounts[1].uidMappings: missing: an id"),
        ("mounts.1", {**BIND, "uidMappings": ONE_ID}, "$.mounts[1].uidMappings: a writable mount"),
        (
            "mounts.1",
            {**BIND, "destination": "/proc/1"},
            '$.mounts[1].destination: "/proc/1" cannot',
        ),
        ("mounts.1", {**BIND, "destination": "/proc"}, "$.mounts[1].destination: /proc cannot be"),
        ("linux.namespaces.0.type", "pids", "$.linux.namespaces[0].type: expected one of"),
        ("linux.namespaces.1.type", "pid", "$.linux.namespaces[1].type: pid is there twice"),
        (
            "linux.namespaces.0",
            {"type": "mount", "path": "/proc/1/ns/mnt"},
            "$.linux.namespaces[0].path: a mount namespace",
        ),
        (
            "linux.sysctl",
            {"kernel.hostname": "x"},
            '$.linux.sysctl: "kernel.hostname" conflicts with',
        ),
        ("linux.sysctl", {"../x": "1"}, "$.linux.sysctl: expected names like net.core.somaxconn"),
        ("linux.maskedPaths.0", "proc", "$.linux.maskedPaths[0]: expected an absolute path"),
        ("linux.rootfsPropagation", "all", "$.linux.rootfsPropagation: expected shared, slave"),
        ("linux.devices", [{"path": "/dev/x", "type": "x"}], "$.linux.devices[0].type: expected c"),
        ("linux.resources.cpu", {"cpus": "3-1"}, "$.linux.resources.cpu.cpus: "),
        ("linux.resources.cpu", {"period": 10}, "$.linux.resources.cpu.period: expected 1000"),
        ("linux.resources.memory", {"swap": 5}, "$.linux.resources.memory.swap: a limit of"),
        ("linux.resources.unified", {"../memory.max": "1"}, "$.linux.resources.unified: expected"),
        ("linux.resources.unified", {"cgroup.procs": "1"}, "$.linux.resources.unified: "),
        ("linux.seccomp", {"defaultAction": "ALLOW"}, "$.linux.seccomp.defaultAction: no such"),
        ("hooks.prestart", [{"path": "x"}], "$.hooks.prestart[0].path: expected an absolute path"),
        ("hooks.poststop", [{"path": "/x", "timeout": 0}], "$.hooks.poststop[0].timeout: expected"),
    ],
)
def test_errors_name_path_and_expectation(
    tmp_path: Path, path: str, value: object, message: str
) -> None:
    assert failure(tmp_path, changed(path, value)).startswith(message)


def test_null_means_absent(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, changed("process.capabilities", None)))
    assert config.process.capabilities is None


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    config = default_spec() | {"extension": {"a": [1, None]}, "linux": {"newer": True}}
    config.pop("hostname")
    assert load_config(write(tmp_path, config)).linux.namespaces == ()


def test_hostname_needs_a_uts_namespace(tmp_path: Path) -> None:
    assert "private UTS namespace" in failure(tmp_path, changed("linux.namespaces", []))


def test_a_long_bad_value_stays_one_short_line(tmp_path: Path) -> None:
    message = failure(tmp_path, changed("process.cwd", "x\n" * 5000))
    assert len(message) < 600


def test_engine_names_are_known() -> None:
    assert {"docker-default", "podman-default", "containerd-default", "runc-spec"} <= {*ENGINES}
    assert raw("runc-spec")["hostname"] == "runc"

"""`cloche features` says what the code does: what it names is taken, and only that."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import ConfigError
from cloche.model.features import features

from .oci_data import compiled, full

SPECIFIED = [
    line
    for line in (Path(__file__).parents[1] / "vectors/oci-features.txt").read_text().splitlines()
    if not line.startswith("#")
]
DOCUMENT: Any = features()
LINUX = DOCUMENT["linux"]
SECCOMP = LINUX["seccomp"]
BIG_ENDIAN = {
    *("SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_PARISC"),
    *("SCMP_ARCH_PARISC64", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64", "SCMP_ARCH_S390"),
    "SCMP_ARCH_S390X",
}


def leaves(value: dict[str, Any], at: str = "") -> Iterator[str]:
    """The paths of all values; annotations are free."""
    for key, item in value.items():
        if isinstance(item, dict) and key != "annotations":
            yield from leaves(item, f"{at}{key}.")
        else:
            yield f"{at}{key}" + ("{}" if key == "annotations" else "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


def warnings(folder: Path, **changes: Any) -> list[str]:  # noqa: ANN401
    """Compile the full config with *changes*, dotted paths written with __; the warnings."""
    config = copy.deepcopy(full())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = config
        for name in parents:
            place = place[int(name)] if name.isdigit() else place[name]
        place[last] = value
    return compiled(config, folder, folder / "seccomp")[1]


def test_it_has_the_fields_of_the_specification_and_no_others() -> None:
    assert sorted(leaves(DOCUMENT)) == sorted(SPECIFIED)


def test_namespaces(folder: Path) -> None:
    """All at once; what only a user or time namespace can have is in the full config."""
    warnings(folder, linux__namespaces=[{"type": kind} for kind in LINUX["namespaces"]])


@pytest.mark.parametrize("kind", ["moon", "Network", ""])
def test_a_namespace_that_is_not_named_is_refused(folder: Path, kind: str) -> None:
    spaces = [{"type": each} for each in (*LINUX["namespaces"], kind)]
    with pytest.raises(ConfigError, match=r"\$\.linux\.namespaces\[\d+\]\.type"):
        warnings(folder, linux__namespaces=spaces)


def test_capabilities(folder: Path) -> None:
    sets = ("bounding", "effective", "inheritable", "permitted", "ambient")
    every = dict.fromkeys(sets, LINUX["capabilities"])
    known = warnings(folder, process__capabilities=every)
    assert not any(".capabilities" in warning for warning in known)
    unknown = warnings(folder, process__capabilities={"bounding": ["CAP_MOON"]})
    assert any("$.process.capabilities" in warning and "CAP_MOON" in warning for warning in unknown)


@pytest.mark.parametrize("option", DOCUMENT["mountOptions"])
def test_mount_options(folder: Path, option: str) -> None:
    """Each is understood: none is left for the file system to understand."""
    mount: dict[str, Any] = {"destination": "/x", "type": "tmpfs", "options": [option]}
    if option in ("bind", "rbind", "idmap", "ridmap"):
        mount |= {"source": "data", "type": "bind"}
    if "idmap" in option:
        ids = [{"containerID": 0, "hostID": 1000, "size": 10}]
        mount |= {"uidMappings": ids, "gidMappings": ids}
    config = full()
    config["mounts"] = [mount]
    plan: Any = compiled(config, folder, folder / "seccomp")[0]
    assert plan["mounts"][0]["data"] == ""


@pytest.mark.parametrize("option", ["idmap", "ridmap"])
def test_options_for_mapped_mounts(folder: Path, option: str) -> None:
    assert (option in DOCUMENT["mountOptions"]) == LINUX["mountExtensions"]["idmap"]["enabled"]
    if option in DOCUMENT["mountOptions"]:
        return
    mounts = [{"destination": "/x", "type": "tmpfs", "options": [option]}]
    with pytest.raises(ConfigError, match=r"\$\.mounts\[0\]\.options\[0\]"):
        warnings(folder, mounts=mounts)


@pytest.mark.parametrize("name", [*SECCOMP["actions"], "SCMP_ACT_NOTIFY"])
def test_seccomp_actions(folder: Path, name: str) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": name}]}
    if name in SECCOMP["actions"]:
        warnings(folder, linux__seccomp=profile)
        return
    with pytest.raises(ConfigError, match=r"\$\.linux\.seccomp\.syscalls\[0\]\.action"):
        warnings(folder, linux__seccomp=profile)


@pytest.mark.parametrize("name", SECCOMP["operators"])
def test_seccomp_operators(folder: Path, name: str) -> None:
    arg = {"index": 0, "value": 1, "valueTwo": 1, "op": name}
    rule = {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [arg]}
    warnings(folder, linux__seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})


@pytest.mark.parametrize("name", SECCOMP["archs"])
def test_seccomp_architectures(folder: Path, name: str) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [name]}
    if name not in BIG_ENDIAN:
        warnings(folder, linux__seccomp=profile)
        return
    # Known, but libseccomp has no filter for both byte orders.
    with pytest.raises(ConfigError, match=r"seccomp\.architectures\[0\]: SCMP_ARCH_"):
        warnings(folder, linux__seccomp=profile)


@pytest.mark.parametrize("name", SECCOMP["supportedFlags"])
def test_seccomp_flags(folder: Path, name: str) -> None:
    warnings(folder, linux__seccomp={"defaultAction": "SCMP_ACT_ALLOW", "flags": [name]})


@pytest.mark.parametrize("kind", ["actions", "operators", "archs", "supportedFlags"])
def test_what_seccomp_does_not_name_is_refused(folder: Path, kind: str) -> None:
    arg = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}
    rule: dict[str, Any] = {"names": ["read"], "action": "SCMP_ACT_LOG", "args": [arg]}
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    place, key, value = {
        "actions": (rule, "action", "X"),
        "operators": (arg, "op", "X"),
        "archs": (profile, "architectures", ["X"]),
        "supportedFlags": (profile, "flags", ["X"]),
    }[kind]
    place[key] = value
    with pytest.raises(ConfigError, match=r"\$\.linux\.seccomp"):
        warnings(folder, linux__seccomp=profile)


@pytest.mark.parametrize("name", DOCUMENT["hooks"])
def test_hooks(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\$\.hooks\.{name}\[0\]\.path"):
        warnings(folder, hooks={name: [{"path": "relative"}]})


@pytest.mark.parametrize(
    ("section", "change", "path"),
    [
        ("apparmor", {"process__apparmorProfile": "x"}, "$.process.apparmorProfile"),
        ("selinux", {"process__selinuxLabel": "x"}, "$.process.selinuxLabel"),
    ],
)
def test_security_modules(folder: Path, section: str, change: dict[str, Any], path: str) -> None:
    """A module that is not there means a warning for the field that needs it."""
    warned = any(each.startswith(path) for each in warnings(folder, **change))
    assert warned is not LINUX[section]["enabled"]


def test_intel_rdt(folder: Path) -> None:
    assert LINUX["intelRdt"]["enabled"] is False
    with pytest.raises(ConfigError, match=r"\$\.linux\.intelRdt"):
        warnings(folder, linux__intelRdt={"closID": "x"})


def test_rdma(folder: Path) -> None:
    warned = any(each.startswith("$.linux.resources.rdma") for each in warnings(folder))
    assert warned is not LINUX["cgroup"]["rdma"]


@pytest.mark.parametrize("version", [DOCUMENT["ociVersionMin"], DOCUMENT["ociVersionMax"]])
def test_versions(folder: Path, version: str) -> None:
    warnings(folder, ociVersion=version)


@pytest.mark.parametrize("version", ["0.9.0", "2.0.0"])
def test_versions_beyond(folder: Path, version: str) -> None:
    with pytest.raises(ConfigError, match=r"\$\.ociVersion"):
        warnings(folder, ociVersion=version)

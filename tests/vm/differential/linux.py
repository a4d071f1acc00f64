"""Cases of the ``linux`` section: names, devices, paths, sysctls, limits and filters."""

from __future__ import annotations

from typing import Any

from vm.bundles import Bundle

from .cases import add_case, case, more


@case()
def hostname(bundle: Bundle) -> None:
    bundle.config["hostname"] = "bell-1.example"


@case()
def hostname_of_64_bytes(bundle: Bundle) -> None:
    bundle.config["hostname"] = "h" * 64


@case()
def hostname_without_a_uts_namespace(bundle: Bundle) -> None:
    _without(bundle, "uts")


@case()
def domainname(bundle: Bundle) -> None:
    bundle.config["domainname"] = "example.org"


def _without(bundle: Bundle, kind: str) -> None:
    spaces = bundle.linux["namespaces"]
    bundle.linux["namespaces"] = [each for each in spaces if each["type"] != kind]


@case()
def without_an_ipc_namespace(bundle: Bundle) -> None:
    _without(bundle, "ipc")


@case()
def without_a_cgroup_namespace(bundle: Bundle) -> None:
    _without(bundle, "cgroup")


@case()
def namespace_twice(bundle: Bundle) -> None:
    bundle.linux["namespaces"].append({"type": "ipc"})


@case()
def namespace_unknown(bundle: Bundle) -> None:
    bundle.linux["namespaces"].append({"type": "moon"})


@case()
def sysctls(bundle: Bundle) -> None:
    bundle.linux["sysctl"] = {
        "net.ipv4.ip_forward": "1",
        "net/ipv4/ip_local_port_range": "2000 3000",
        "net.ipv4.ping_group_range": "0 2147483647",
        "net.ipv4.ip_unprivileged_port_start": "7",
        "kernel.msgmax": "9000",
        "kernel.sem": "251 32001 101 129",
        "fs.mqueue.msg_max": "20",
        "kernel.shm_rmid_forced": "1",
    }
    more(bundle, "cat /proc/sys/net/ipv4/ip_forward")


@case()
def sysctl_of_the_whole_kernel(bundle: Bundle) -> None:
    bundle.linux["sysctl"] = {"kernel.panic_on_warn": "0"}


@case()
def sysctl_unknown(bundle: Bundle) -> None:
    bundle.linux["sysctl"] = {"net.nothing": "1"}


@case()
def sysctl_with_a_bad_value(bundle: Bundle) -> None:
    bundle.linux["sysctl"] = {"net.ipv4.ip_local_port_range": "moon"}


@case()
def sysctl_that_names_the_host(bundle: Bundle) -> None:
    _without(bundle, "uts")
    del bundle.config["hostname"]
    bundle.linux["sysctl"] = {"kernel.hostname": "x"}


def _device(path: str, kind: str, major: int = 1, minor: int = 5, **rest: int) -> dict[str, object]:
    return {"path": path, "type": kind, "major": major, "minor": minor, **rest}


@case()
def devices(bundle: Bundle) -> None:
    bundle.process["user"]["umask"] = 0
    bundle.linux["devices"] = [
        _device("/dev/mine", "c", fileMode=0o640, gid=5),
        _device("/dev/deep/er", "u", minor=8, uid=7),
        _device("/dev/tun", "c", 10, 200, fileMode=0o600),
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o622, "uid": 1000},
        _device("/opt/elsewhere", "c", minor=3),
    ]
    more(bundle, "head -c 4 /dev/mine | od -An -tx1; stat -c '%n %F %a %t:%T' /opt /opt/elsewhere")


@case()
def device_in_place_of_a_default_one(bundle: Bundle) -> None:
    bundle.linux["devices"] = [_device("/dev/null", "c", minor=3, fileMode=0o666, uid=9)]


@case()
def device_of_an_unknown_type(bundle: Bundle) -> None:
    bundle.linux["devices"] = [_device("/dev/x", "x")]


@case()
def device_with_a_relative_path(bundle: Bundle) -> None:
    bundle.linux["devices"] = [_device("dev/x", "c")]


@case()
def device_numbers_too_large(bundle: Bundle) -> None:
    bundle.linux["devices"] = [_device("/dev/x", "c", 1 << 20, 0)]


@case()
def devices_twice(bundle: Bundle) -> None:
    bundle.linux["devices"] = [_device("/dev/x", "c"), _device("/dev/x", "c", minor=3)]


@case()
def paths_masked_and_read_only(bundle: Bundle) -> None:
    (bundle.rootfs / "secret").mkdir()
    (bundle.rootfs / "secret/file").write_text("secret")
    (bundle.rootfs / "token").write_text("secret")
    (bundle.rootfs / "shown").mkdir()
    (bundle.rootfs / "link").symlink_to("token")
    bundle.linux["maskedPaths"] += ["/secret", "/token", "/not-there"]
    bundle.linux["readonlyPaths"] += ["/shown", "/etc/passwd", "/not-there"]
    more(
        bundle,
        "ls -a /secret; cat /token /link; touch /shown/x; echo >>/etc/passwd; touch /secret/x",
    )


@case()
def path_masked_through_a_link(bundle: Bundle) -> None:
    (bundle.rootfs / "link").symlink_to("etc")
    bundle.linux["maskedPaths"] += ["/link/passwd"]
    bundle.linux["readonlyPaths"] += ["/link"]
    more(bundle, "cat /etc/passwd; touch /etc/x")


@case()
def path_masked_and_read_only(bundle: Bundle) -> None:
    bundle.linux["maskedPaths"] += ["/etc"]
    bundle.linux["readonlyPaths"] += ["/etc"]


@case()
def no_paths_masked(bundle: Bundle) -> None:
    del bundle.linux["maskedPaths"]
    del bundle.linux["readonlyPaths"]


def _limit(bundle: Bundle, values: dict[str, Any]) -> None:
    bundle.linux["resources"].update(values)


_RESOURCES: dict[str, dict[str, Any]] = {
    "none": {},
    "memory": {"memory": {"limit": 64 << 20}},
    "memory-reservation": {"memory": {"limit": 96 << 20, "reservation": 32 << 20}},
    "memory-unlimited": {"memory": {"limit": -1, "reservation": -1}},
    "processes": {"pids": {"limit": 50}},
    "processes-unlimited": {"pids": {"limit": -1}},
    "processes-zero": {"pids": {"limit": 0}},
    "quota": {"cpu": {"quota": 50_000, "period": 80_000}},
    "quota-alone": {"cpu": {"quota": 70_000}},
    "period-alone": {"cpu": {"period": 50_000}},
    "quota-unlimited": {"cpu": {"quota": -1, "period": 100_000}},
    "shares": {"cpu": {"shares": 512}},
    "shares-zero": {"cpu": {"shares": 0, "quota": 0, "period": 0}},
    "quota-too-small": {"cpu": {"quota": 10, "period": 100_000}},
    "memory-page": {"memory": {"limit": 4096}},
    "swap-below-memory": {"memory": {"limit": 64 << 20, "swap": 32 << 20}},
}
for _name, _value in _RESOURCES.items():
    add_case(f"limit-{_name}", _limit, _value)


@case()
def cgroup_path_that_leads_out(bundle: Bundle) -> None:
    bundle.linux["cgroupsPath"] = "../../x"


def _filter(bundle: Bundle, script: str, *rules: dict[str, Any], **rest: object) -> None:
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": list(rules),
        **rest,
    }
    more(bundle, script)


def _rule(action: str, *names: str, **rest: object) -> dict[str, Any]:
    return {"names": list(names), "action": f"SCMP_ACT_{action}", **rest}


_MKDIR = ("mkdir", "mkdirat")
_TRY = "mkdir /tmp/x; echo $?"
for _name, _rules in {
    "errno": [_rule("ERRNO", *_MKDIR)],
    "errno-chosen": [_rule("ERRNO", *_MKDIR, errnoRet=28)],
    "kill-process": [_rule("KILL_PROCESS", *_MKDIR)],
    "kill-thread": [_rule("KILL_THREAD", *_MKDIR)],
    "kill": [_rule("KILL", *_MKDIR)],
    "trap": [_rule("TRAP", *_MKDIR)],
    "log": [_rule("LOG", *_MKDIR)],
    "trace": [_rule("TRACE", *_MKDIR)],
    "unknown-call": [_rule("ERRNO", *_MKDIR, "no_such_call")],
    "nothing": [],
    "unknown-action": [_rule("MOON", *_MKDIR)],
}.items():
    add_case(f"filter-{_name}", _filter, _TRY, *_rules)


def _argument(op: str, value: int, two: int = 0) -> dict[str, Any]:
    return {"index": 1, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}


for _op, _number, _two in (
    ("EQ", 10, 0), ("NE", 10, 0), ("LT", 11, 0), ("LE", 10, 0), ("GT", 11, 0), ("GE", 12, 0),
    ("MASKED_EQ", 8, 8),
):  # fmt: skip
    add_case(
        f"filter-{_op}",
        _filter,
        "trap '' USR1 USR2; for each in 10 12 4 0; do kill -$each $$; echo $?; done",
        _rule("ERRNO", "kill", args=[_argument(_op, _number, _two)]),
    )


@case()
def filter_by_default(bundle: Bundle) -> None:
    """Everything is allowed but what is not named: the other way round."""
    names = ["mount", "umount2", "swapon", "reboot", "sethostname", "setdomainname", "unshare"]
    _filter(bundle, "hostname x; echo $?; unshare true; echo $?", _rule("ERRNO", *names))
    bundle.capabilities("CAP_SYS_ADMIN")


@case()
def filter_with_new_privileges(bundle: Bundle) -> None:
    bundle.process["noNewPrivileges"] = False
    _filter(bundle, _TRY, _rule("ERRNO", *_MKDIR))


@case()
def filter_for_a_user_with_new_privileges(bundle: Bundle) -> None:
    bundle.process["noNewPrivileges"] = False
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    _filter(bundle, _TRY, _rule("ERRNO", *_MKDIR))


@case()
def filter_with_flags(bundle: Bundle) -> None:
    _filter(bundle, _TRY, _rule("ERRNO", *_MKDIR), flags=["SECCOMP_FILTER_FLAG_LOG"])


@case()
def filter_with_an_unknown_flag(bundle: Bundle) -> None:
    _filter(bundle, _TRY, flags=["SECCOMP_FILTER_FLAG_MOON"])


@case()
def filter_of_two_architectures(bundle: Bundle) -> None:
    architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    _filter(bundle, _TRY, _rule("ERRNO", *_MKDIR), architectures=architectures)

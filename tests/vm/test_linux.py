"""Names, namespaces, sysctls, paths, devices and cgroups of a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import host
from .bundles import Bundle
from .runtime import Container, Runtime, new_id
from .starts import each_start
from .test_process import same_under_runc


def test_hostname_and_domainname(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["hostname"] = "box-1"
    bundle.config["domainname"] = "example.org"
    result = cloche.run(bundle.sh("hostname; cat /proc/sys/kernel/domainname"))
    assert result.lines == ["box-1", "example.org"]


def test_a_container_has_namespaces_of_its_own(running: Container) -> None:
    kinds = ("mnt", "pid", "ipc", "uts", "cgroup")
    script = "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)
    inside = running.sh(script).lines
    assert len({*inside}) == len(kinds)
    # The first process is number 1, and no process of the guest's own can be seen.
    assert running.sh("cat /proc/1/comm").output == "sleep"
    assert "init" not in running.sh("cat /proc/[0-9]*/comm").lines


def test_without_a_pid_namespace_the_guests_processes_are_seen(
    cloche: Runtime, bundle: Bundle
) -> None:
    spaces = bundle.linux["namespaces"]
    bundle.linux["namespaces"] = [each for each in spaces if each["type"] != "pid"]
    assert cloche.run(bundle.sh("cat /proc/1/comm; echo $(($$ > 1))")).lines == ["init", "1"]


def test_sysctls(cloche: Runtime, bundle: Bundle) -> None:
    # The second is not in any namespace: only a kernel of one's own lets a container have it.
    bundle.linux["sysctl"] = {
        "net.ipv4.ip_forward": "1",
        "kernel.panic": "7",
        "net/ipv4/ip_local_port_range": "2000 3000",
    }
    files = "net/ipv4/ip_forward kernel/panic net/ipv4/ip_local_port_range"
    result = cloche.run(bundle.sh(f"cd /proc/sys; cat {files}"))
    assert [line.split() for line in result.lines] == [["1"], ["7"], ["2000", "3000"]]


def test_an_unknown_sysctl_is_an_error(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["sysctl"] = {"net.nothing": "1"}
    name = cloche.new_id()
    message = cloche.fails("run", "--bundle", bundle.save(), name)
    assert "net/nothing" in message or "net.nothing" in message
    assert cloche.leftovers() == []


def test_masked_and_read_only_paths(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    (bundle.rootfs / "secret").mkdir()
    (bundle.rootfs / "secret/file").write_text("secret")
    (bundle.rootfs / "shown").mkdir()
    (bundle.rootfs / "token").write_text("secret")
    bundle.linux["maskedPaths"] += ["/secret", "/token", "/not-there"]
    bundle.linux["readonlyPaths"] += ["/shown"]
    bundle.sh(
        "ls /secret; wc -c </token; touch /shown/x 2>&1; "
        "echo 1 2>&1 >/proc/sys/vm/swappiness; wc -c </proc/keys; ls /sys/firmware"
    )
    result = same_under_runc(cloche, runc, bundle)
    assert result.lines[0] == "0"
    assert "Read-only file system" in result.lines[1]


def test_devices(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.linux["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "gid": 5},
        {"path": "/dev/deep/pipe", "type": "p", "fileMode": 0o600, "uid": 1000},
    ]
    bundle.process["user"]["umask"] = 0
    names = "mine deep/pipe null zero full random urandom tty fd stdin stdout stderr ptmx"
    listing = f"cd /dev; for each in {names}; do stat -c '%n %F %a %u:%g %t:%T' $each; done"
    result = same_under_runc(cloche, runc, bundle.sh(f"{listing}; readlink fd ptmx"))
    assert result.lines[0] == "mine character special file 640 0:5 1:5"
    assert result.lines[1] == "deep/pipe fifo 600 1000:0 0:0"
    zeroes = "head -c 5 /dev/mine | od -An -tx1; echo x >/dev/null; head -c 1 /dev/full | wc -c"
    assert cloche.run(bundle.sh(zeroes)).lines == [" 00 00 00 00 00", "1"]


@each_start
def test_limits_are_in_the_guests_cgroup(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "pids": {"limit": 50},
        "cpu": {"shares": 512},
    }
    script = "cd /sys/fs/cgroup; cat memory.max memory.low pids.max cpu.weight; nproc; "
    result = cloche.run(bundle.sh(script + "grep MemTotal /proc/meminfo"))
    assert result.lines[:5] == [str(64 << 20), str(32 << 20), "50", "20", "1"]
    # 64 MiB and the guest's own needs fit the smallest VM.
    assert int(result.lines[5].split()[1]) < 256 << 10


def test_huge_pages(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
    result = cloche.run(bundle.sh("cd /sys/fs/cgroup; cat hugetlb.2MB.max hugetlb.2MB.rsvd.max"))
    assert result.lines == [str(4 << 20)] * 2


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"unified": {"memory.nothing": "1"}}, "unified"),
        ({"unified": {"memory.high": "much"}}, "unified"),
        ({"cpu": {"quota": 5000, "burst": 50_000}}, "cpu.burst"),
        ({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}, "hugepageLimits[0].pageSize"),
    ],
)
def test_what_the_guests_kernel_refuses_is_named(
    cloche: Runtime, bundle: Bundle, resources: dict[str, object], field: str
) -> None:
    bundle.linux["resources"] = resources
    message = cloche.fails("create", "--bundle", bundle.save(), cloche.new_id())
    assert f"$.linux.resources.{field}: " in message
    assert cloche.leftovers() == []


def test_what_no_cgroup_can_is_warned_about(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {
        "memory": {"kernel": 1 << 20, "kernelTCP": 1 << 20, "disableOOMKiller": True},
        "cpu": {"realtimeRuntime": 1000, "realtimePeriod": 2000},
        "network": {"classID": 1, "priorities": [{"name": "eth0", "priority": 1}]},
        "rdma": {"mlx5_0": {"hcaHandles": 1}},
    }
    assert cloche.run(bundle.sh("echo runs")).lines == ["runs"]
    prefix = "$.linux.resources."
    named = {
        warning.partition(":")[0].removeprefix(prefix)
        for warning in cloche.messages("warning")
        if warning.startswith(prefix)
    }
    assert named == {
        *("memory.kernel", "memory.kernelTCP", "memory.disableOOMKiller"),
        *("cpu.realtimeRuntime", "cpu.realtimePeriod", "rdma"),
        *("network.classID", "network.priorities"),
    }


def test_processors_follow_the_quota(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {
        "memory": {"limit": 64 << 20},
        "cpu": {"quota": 150_000, "period": 100_000},
    }
    result = cloche.run(bundle.sh("nproc; cat /sys/fs/cgroup/cpu.max"))
    assert result.lines == ["2", "150000 100000"]


def test_a_process_beyond_the_memory_limit_is_killed_alone(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    hungry = "head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null"
    result = cloche.run(
        bundle.sh(f"({hungry}); echo $?; grep oom_kill /sys/fs/cgroup/memory.events")
    )
    assert result.lines[0] == "137"
    assert int(result.lines[1].split()[1]) >= 1


def test_the_first_process_beyond_its_limit(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    bundle.args("dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
    assert cloche.run(bundle, code=None).code == 137


@pytest.mark.parametrize("path", ["", "/cloche-tests/{id}", "cloche-tests/deep/{id}"])
def test_the_hosts_cgroup_is_where_the_config_says(
    cloche: Runtime, bundle: Bundle, path: str
) -> None:
    name = new_id()
    if path:
        bundle.linux["cgroupsPath"] = path.format(id=name)
    container = cloche.create(bundle)
    wanted = path.format(id=name).strip("/") if path else f"cloche/{container.id}"
    for pid in (container.pid, host.qemu_of(cloche.root, container.id)):
        places = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert {line.split(":")[2] for line in places if ":memory:" in line} == {f"/{wanted}"}
    cloche("delete", container.id)
    assert host.cgroups(name) == host.cgroups(container.id) == []

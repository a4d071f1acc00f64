"""/dev, /proc and /sys as a container sees them, and just so under runc."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .bundles import Bundle
from .runtime import Runtime
from .test_process import same_under_runc

NODES = "for each in /dev /dev/* /dev/pts/*; do stat -c '%n %F %a %u:%g %t:%T' $each; done"
LINKS = "for each in fd stdin stdout stderr ptmx; do readlink /dev/$each; done"
# Mount point, options of the mount, type; cgroups are v2 in the guest, whatever the host has.
MOUNTS = 'awk \'{ t = $0; sub(/.* - /, "", t); split(t, f, " "); print $5, $6, f[1] }\''
MOUNTS += " /proc/self/mountinfo | grep -v cgroup"
# Kernels differ in these: kcore is not built into every one, sysrq-trigger neither.
KERNELS_OWN = re.compile(r"/dev/core|/proc/(kcore|keys|timer_list|sysrq-trigger)")


def common(lines: list[str]) -> list[str]:
    """The *lines* that do not depend on how the kernel was built."""
    return [line for line in lines if not KERNELS_OWN.search(line)]


@pytest.mark.parametrize("user", [0, 1000])
def test_dev(cloche: Runtime, runc: Runtime, bundle: Bundle, user: int) -> None:
    bundle.process["user"] = {"uid": user, "gid": user}
    bundle.sh(
        f"{NODES}; {LINKS}; echo x >/dev/stdout; echo x >/dev/null; head -c1 /dev/zero | wc -c"
    )
    ours, theirs = cloche.run(bundle), runc.run(bundle)
    assert common(ours.lines) == common(theirs.lines)
    assert "/dev/tty character special file 666 0:0 5:0" in ours.lines


def test_mounts(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.config["root"]["readonly"] = True
    (bundle.rootfs / "tmp").chmod(0o1777)
    bundle.mount("/tmp", "tmpfs", "", "nosuid", "noexec", "size=1m", "mode=1777")
    ours, theirs = (runtime.run(bundle.sh(MOUNTS)).lines for runtime in (cloche, runc))
    # The root's own type is that of the share, or of the host's disk.
    assert [line for line in common(ours) if not line.startswith("/ ")] == [
        line for line in common(theirs) if not line.startswith("/ ")
    ]
    assert [line.split()[:2] for line in ours[:1]] == [line.split()[:2] for line in theirs[:1]]
    # Covered in the guest's kernel as well as in the host's.
    covered = [line for line in ours if line.startswith(("/proc/keys", "/proc/timer_list"))]
    assert [line.split()[2] for line in covered] == ["devtmpfs", "devtmpfs"]


def test_what_is_masked_and_read_only(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    masked = "/proc/acpi /proc/keys /proc/timer_list /proc/scsi /sys/firmware"
    shut = "/proc/bus/x /proc/fs/x /proc/irq/x /proc/sys/kernel/panic /sys/kernel/mm/ksm/run"
    bundle.sh(
        f"for each in {masked}; do ls -A $each; cat $each 2>/dev/null | wc -c; done; "
        f"for each in {shut}; do (echo 1 >$each) 2>&1; done"
    )
    assert "Read-only file system" in same_under_runc(cloche, runc, bundle).output


def test_cgroups_are_the_containers_own(cloche: Runtime, bundle: Bundle) -> None:
    bundle.sh(
        "cat /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs | wc -l; mkdir /sys/fs/cgroup/x "
        "2>&1; awk '$5 == \"/sys/fs/cgroup\" { print $4, $6 }' /proc/self/mountinfo"
    )
    own, processes, refused, mount = cloche.run(bundle).lines
    assert own == "0::/"
    assert int(processes) >= 1
    assert "Read-only file system" in refused
    assert mount == "/ ro,nosuid,nodev,noexec,relatime"


@pytest.mark.parametrize("user", [0, 1000])
def test_a_terminal(cloche: Runtime, runc: Runtime, bundle: Bundle, user: int) -> None:
    bundle.process["terminal"] = True
    bundle.process["user"] = {"uid": user, "gid": user}
    script = (
        "tty; stat -c '%F %a %u:%g %t:%T' /dev/console $(tty) /dev/tty; ls /dev/pts; "
        f"awk '$5 == \"/dev/console\" {{ print $4, $6 }}' /proc/self/mountinfo; {LINKS}; echo end"
    )
    bundle.sh(script)
    shown = []
    for runtime in (cloche, runc):
        with runtime.terminal("run", "--bundle", bundle.save(), runtime.new_id()) as terminal:
            shown.append(terminal.expect("(?s).*end").split())
            assert terminal.wait() == 0
    assert shown[0] == shown[1]
    assert "/dev/pts/0" in shown[0]


def test_a_dev_of_ones_own_stays_as_it_is(cloche: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    # runc would fail for want of a /dev/null in it.
    (tmp_path / "file").write_text("mine")
    bundle.without_mount("/dev").without_mount("/dev/pts").without_mount("/dev/shm")
    bundle.without_mount("/dev/mqueue").mount("/dev", "bind", tmp_path, "rbind")
    assert cloche.run(bundle.sh("ls /dev")).lines == ["file"]


def test_the_scheduler_was_patched_for_limits_before(cloche: Runtime, bundle: Bundle) -> None:
    """A cgroup of the agent's has one: patching it now may trap another CPU (docs/templates.md)."""
    spaces = bundle.linux["namespaces"]
    bundle.linux["namespaces"] = [each for each in spaces if each["type"] != "pid"]
    bundle.capabilities("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN")
    bundle.sh("cd /proc/1/root/sys/fs/cgroup/settled; cat cpu.max; wc -l <cgroup.procs")
    assert cloche.run(bundle).lines == ["100000 100000", "0"]

"""Block devices of the host, by linux.devices and as sources of mounts: loop devices here."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .bundles import Bundle
from .disks import SIZE, Disk
from .runtime import Runtime
from .test_process import same_under_runc


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    """A disk of zeroes."""
    disk = Disk(folder / "disk.img")
    yield disk
    disk.detach()


@pytest.fixture
def ext4(disk: Disk) -> Disk:
    """A disk with a file system, and a file in it."""
    subprocess.run(["mkfs.ext4", "-q", disk.path], check=True)
    mounted(disk, lambda folder: (folder / "file").write_text("from the host\n"))
    return disk


def mounted(disk: Disk, use: object) -> object:
    """What *use* returns for the folder that the disk is mounted on, on the host."""
    folder = disk.file.parent / "mounted"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", disk.path, str(folder)], check=True)
    try:
        assert callable(use)
        return use(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def give(bundle: Bundle, disk: Disk, access: str, **fields: object) -> None:
    """A node /dev/xvda for *disk*, with such access, as of `docker run --device`."""
    bundle.linux["devices"] = [disk.node("/dev/xvda", **fields)]
    deny = {"allow": False, "access": "rwm"}
    bundle.linux["resources"] = {"devices": [deny, disk.rule(access)]}


@pytest.mark.parametrize("cloche", ["restored", "q35"], indirect=True)
def test_a_disk_is_read_and_written(cloche: Runtime, bundle: Bundle, disk: Disk) -> None:
    with open(disk.path, "r+b") as device:
        device.write(b"from the host")
    give(bundle, disk, "rwm", fileMode=0o640, gid=8)
    bundle.sh(
        "stat -c '%F %a %u:%g' /dev/xvda; blockdev --getsize64 /dev/xvda; "
        "head -c 13 /dev/xvda; printf back | dd of=/dev/xvda bs=1 seek=4096 conv=notrunc 2>&1"
    )
    result = cloche.run(bundle)
    assert result.lines[:2] == ["block special file 640 0:8", str(SIZE)]
    assert result.lines[2].startswith("from the host")
    with open(disk.path, "rb") as device:
        device.seek(4096)
        assert device.read(4) == b"back"
    warnings = [each for each in cloche.messages("warning") if "$.linux" in each]
    assert warnings == []


def test_a_disk_that_may_only_be_read(cloche: Runtime, bundle: Bundle, disk: Disk) -> None:
    give(bundle, disk, "r")
    bundle.sh("blockdev --getro /dev/xvda; echo x >/dev/xvda; head -c 1 /dev/xvda | od -An -tx1")
    result = cloche.run(bundle)
    assert result.lines == ["1", " 00"]
    assert "not permitted" in result.stderr
    assert disk.file.read_bytes()[:2] == b"\0\0"


def test_wildcards_hand_out_no_disks(cloche: Runtime, bundle: Bundle, disk: Disk) -> None:
    """A privileged container of an engine names all disks of the host, and such a rule."""
    bundle.linux["devices"] = [disk.node("/dev/xvda"), {**disk.node("/dev/sda"), "major": 8}]
    bundle.linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    script = "ls /dev/sda; ls /sys/block | grep -c vd"
    result = cloche.run(bundle.sh(script), code=None)
    assert "/dev/sda: No such file" in result.stderr
    assert result.lines[0] == "2"  # the two slots that every VM has, with nothing behind them
    assert any('left out: "/dev/sda" (8:0)' in each for each in cloche.messages("warning"))


def test_a_disk_that_is_not_there(cloche: Runtime, bundle: Bundle) -> None:
    number = {"major": 8, "minor": 1048575}
    bundle.linux["devices"] = [{"path": "/dev/sda", "type": "b", **number}]
    rule = {"allow": True, "type": "b", **number, "access": "rw"}
    bundle.linux["resources"] = {"devices": [rule]}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "block device 8:1048575 of the host: no such device or address" in message
    assert cloche.leftovers() == []


def test_more_disks_than_there_is_room_for(cloche: Runtime, bundle: Bundle) -> None:
    numbers = [{"major": 8, "minor": minor} for minor in range(9)]
    bundle.linux["devices"] = [{"path": f"/dev/{n['minor']}", "type": "b", **n} for n in numbers]
    rules = [{"allow": True, "type": "b", **number, "access": "r"} for number in numbers]
    bundle.linux["resources"] = {"devices": rules}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "$.linux.devices: more than 8 block devices of the host" in message


def test_a_file_system_of_a_disk_is_mounted_in_the_guest(
    cloche: Runtime, bundle: Bundle, ext4: Disk
) -> None:
    bundle.mount("/disk", "ext4", ext4.path, "noatime")
    bundle.sh("cat /disk/file; grep /disk /proc/mounts | cut -d' ' -f3,4; echo back >/disk/new")
    result = cloche.run(bundle)
    assert result.lines[0] == "from the host"
    assert result.lines[1].startswith("ext4 rw,noatime")
    assert mounted(ext4, lambda folder: (folder / "new").read_text()) == "back\n"


def test_a_file_system_that_is_mounted_read_only(
    cloche: Runtime, bundle: Bundle, ext4: Disk
) -> None:
    before = ext4.file.read_bytes()
    bundle.mount("/disk", "ext4", ext4.path, "ro")
    result = cloche.run(bundle.sh("cat /disk/file; touch /disk/new"), code=1)
    assert result.output == "from the host"
    assert "Read-only file system" in result.stderr
    assert ext4.file.read_bytes() == before


def test_what_a_container_mounts_itself_is_written_back(
    cloche: Runtime, bundle: Bundle, ext4: Disk
) -> None:
    give(bundle, ext4, "rwm")
    bundle.capabilities("CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE")
    bundle.sh("mkdir /disk && mount -t ext4 /dev/xvda /disk && echo back >/disk/new")
    cloche.run(bundle)
    assert mounted(ext4, lambda folder: (folder / "new").read_text()) == "back\n"


def test_devices_that_a_guest_has_not(cloche: Runtime, bundle: Bundle) -> None:
    """The node is there, as it has to be; what it leads to is the guest's, which is nothing."""
    names = {"/dev/kvm": 232, "/dev/vfio": 196}
    bundle.linux["devices"] = [
        {"path": path, "type": "c", "major": 10, "minor": minor} for path, minor in names.items()
    ]
    rule = {"allow": True, "type": "c", "major": 10, "access": "rwm"}
    bundle.linux["resources"] = {"devices": [rule]}
    script = "; ".join(f"stat -c %n:%t:%T {path}; cat {path}" for path in names)
    result = cloche.run(bundle.sh(script), code=1)
    assert result.lines == [f"{path}:a:{minor:x}" for path, minor in names.items()]
    assert result.stderr.count("No such device") == 2
    told = [each for each in cloche.messages("warning") if each.startswith("$.linux.devices")]
    assert len(told) == 1
    assert '"/dev/kvm" (10:232), "/dev/vfio" (10:196)' in told[0]


@pytest.mark.parametrize("link", ["/srv", "srv", "../../../../../../srv", "/not/there/yet"])
def test_symlinks_in_paths_of_devices_stay_inside(
    cloche: Runtime, runc: Runtime, bundle: Bundle, folder: Path, link: str
) -> None:
    (bundle.rootfs / "link").symlink_to(link)
    bundle.linux["devices"] = [
        {"path": "/link/deep/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600},
        {"path": "/link/pipe", "type": "p", "uid": 3, "gid": 4},
    ]
    bundle.sh("cd /link && stat -c '%n %F %a %u:%g' deep/zero pipe; head -c 2 deep/zero | wc -c")
    result = same_under_runc(cloche, runc, bundle)
    assert result.lines[0] == "deep/zero character special file 600 0:0"
    assert result.lines[-1] == "2"
    assert not Path("/srv/deep").exists()


def test_a_read_only_image_of_erofs(cloche: Runtime, bundle: Bundle, disk: Disk) -> None:
    tree = disk.file.parent / "tree"
    tree.mkdir()
    (tree / "file").write_text("in erofs\n")
    subprocess.run(["mkfs.erofs", "--quiet", disk.path, str(tree)], check=True)
    bundle.mount("/disk", "erofs", disk.path, "ro")
    result = cloche.run(bundle.sh("cat /disk/file; grep /disk /proc/mounts | cut -d' ' -f3"))
    assert result.lines == ["in erofs", "erofs"]

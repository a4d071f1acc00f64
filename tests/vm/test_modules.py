"""Modules of the guest's kernel are loaded when something asks for them, as on any Linux."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.guest.guest import current_guest
from cloche.guest.module_store import ModuleStore
from cloche.guest.modules import read_module
from cloche.model.capabilities import CAPABILITIES
from cloche.model.config import load_settings

from .bundles import Bundle
from .runtime import Container, Runtime
from .starts import each_machine

_PACKAGES = {
    "ip": "iproute2",
    "iptables": "iptables",
    "mkfs.ext4": "e2fsprogs",
    "nft": "nftables",
    "wg": "wireguard-tools",
}
_TUN = {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200}
_FUSE = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
_LOOP = {"path": "/dev/loop-control", "type": "c", "major": 10, "minor": 237}
_LOOP0 = {"path": "/dev/loop0", "type": "b", "major": 7, "minor": 0}
# Wherever the host has its programs and their libraries.
_FOLDERS = ("/usr", "/lib", "/lib64", "/etc/alternatives")


def equip(bundle: Bundle, *devices: dict[str, Any]) -> Bundle:
    """Let *bundle* use the host's programs, and *devices*."""
    missing = sorted(package for tool, package in _PACKAGES.items() if not shutil.which(tool))
    if missing:
        pytest.fail(f"missing tools: apt-get install {' '.join(missing)}")
    for folder in _FOLDERS:
        bundle.mount(folder, "bind", Path(folder).resolve(), "rbind", "ro")
    bundle.mount("/run", "tmpfs")
    bundle.process["env"] = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    bundle.linux["devices"] = list(devices)
    bundle.linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    return bundle


@pytest.fixture(scope="module")
def mighty(
    program: Path, busybox_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """A running container that may do anything, as with --privileged."""
    directory = tmp_path_factory.mktemp("mighty")
    runtime = Runtime(program, directory / "cloche", {})
    bundle = Bundle(directory / "bundle", busybox_root).args("sleep", "10000")
    bundle.capabilities(*CAPABILITIES)
    bundle.linux["maskedPaths"] = bundle.linux["readonlyPaths"] = []
    yield runtime.start(equip(bundle, _TUN, _FUSE, _LOOP, _LOOP0))
    runtime.clean_up()


LINKS = {
    "bond": "type bond",
    "bridge": "type bridge",
    "dummy": "type dummy",
    "geneve": "type geneve id 7 remote 10.9.9.9",
    "gre": "type gre remote 10.9.9.9",
    "ifb": "type ifb",
    "ipip": "type ipip remote 10.9.9.9",
    "veth": "type veth peer name veth-peer",
    "vrf": "type vrf table 7",
    "vxlan": "type vxlan id 7 dstport 4789 remote 10.9.9.9",
    "wireguard": "type wireguard",
}


@pytest.mark.parametrize("kind", LINKS)
def test_network_devices(mighty: Container, kind: str) -> None:
    made = mighty.sh(f"ip link add t-{kind} {LINKS[kind]} && ip -d link show t-{kind}")
    assert kind in made.output.replace("wireguard", " wireguard ").split() or kind == "veth"


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan", "vlan id 5"])
def test_network_devices_upon_another(mighty: Container, kind: str) -> None:
    name = kind.split()[0]
    script = f"ip link show base-{name} || ip link add base-{name} type dummy;"
    mighty.sh(f"{script} ip link add link base-{name} name t-{name} type {kind}")


def test_a_bridge_of_veths_carries_packets(mighty: Container) -> None:
    mighty.sh(
        "ip link add br7 type bridge && ip addr add 10.77.0.1/24 dev br7 && ip link set br7 up && "
        "ip link add v7 type veth peer name w7 && ip link set v7 master br7 up && "
        "unshare -n sh -c 'echo $$ >/run/pid; while [ ! -e /run/moved ]; do sleep 0.1; done;"
        " ip addr add 10.77.0.2/24 dev w7 && ip link set w7 up && ping -c1 -w30 10.77.0.1"
        "' >/run/ping 2>&1 & "
        "while [ ! -s /run/pid ]; do sleep 0.1; done; "
        "ip link set w7 netns $(cat /run/pid) && touch /run/moved; wait $!",
    )
    assert "1 packets received" in mighty.sh("cat /run/ping").output


def test_a_tunnel(mighty: Container) -> None:
    mighty.sh("ip tuntap add vpn7 mode tun && ip addr add 10.78.0.1/24 dev vpn7")
    assert "POINTOPOINT" in mighty.sh("ip link show vpn7").output


def test_wireguard_has_a_key_and_a_port(mighty: Container) -> None:
    mighty.sh(
        "ip link add wg7 type wireguard && wg genkey >/run/key && "
        "wg set wg7 private-key /run/key listen-port 51820 && ip link set wg7 up"
    )
    assert mighty.sh("wg show wg7 listen-port").output == "51820"


def test_fuse_speaks_with_its_server(mighty: Container) -> None:
    """A mount's first message to the server: its length, then FUSE_INIT."""
    script = (
        "exec 5<>/dev/fuse; mkdir -p /run/f;"
        "mount -t fuse -o fd=5,rootmode=40000,user_id=0,group_id=0 server /run/f && "
        "dd bs=65536 count=1 <&5 2>/dev/null | od -An -tu4 -N8; umount -l /run/f"
    )
    length, operation = mighty.sh(script).output.split()
    assert int(length) >= 56
    assert operation == "26"


def test_a_loop_device_has_a_file_system(mighty: Container) -> None:
    mighty.sh(
        "truncate -s 16M /run/image && mkfs.ext4 -q /run/image && mkdir -p /run/l && "
        "mount -o loop /run/image /run/l && echo there >/run/l/file && umount /run/l"
    )
    assert mighty.sh("mount -o loop /run/image /run/l && cat /run/l/file").output == "there"


FILE_SYSTEMS = (
    *("btrfs", "ceph", "cifs", "exfat", "f2fs", "iso9660", "nfs", "nfs4", "overlay"),
    *("squashfs", "udf", "vfat", "xfs"),
)


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_file_systems(mighty: Container, kind: str) -> None:
    """The mount comes to nothing, for there is nothing to mount; the file system is known."""
    script = f"mount -t {kind} /dev/null /mnt 2>&1; grep -w {kind} /proc/filesystems"
    mighty.sh(f"mkdir -p /mnt; {script}")


def test_an_overlay_upon_a_tmpfs(mighty: Container) -> None:
    mighty.sh(
        "mkdir -p /run/o/lower /run/o/upper /run/o/work /run/o/all && echo low >/run/o/lower/file "
        "&& cd /run/o && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work x all"
    )
    assert mighty.sh("echo up >>/run/o/all/file; cat /run/o/upper/file").lines == ["low", "up"]


def test_packet_filters_of_both_kinds(mighty: Container) -> None:
    mighty.sh(
        "nft add table ip t7 && "
        "nft 'add chain ip t7 post { type nat hook postrouting priority 100; }' && "
        "nft add rule ip t7 post ip saddr 10.7.0.0/16 counter masquerade"
    )
    assert "masquerade" in mighty.sh("nft list ruleset").output
    rule = "-p tcp -m multiport --dports 80,443 -m conntrack --ctstate NEW -j ACCEPT"
    for tool in ("iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"):
        mighty.sh(f"{tool} -w -A INPUT {rule} && {tool} -w -t nat -A POSTROUTING -j MASQUERADE")
        assert "multiport" in mighty.sh(f"{tool} -w -S INPUT").output


def test_queueing_and_congestion(mighty: Container) -> None:
    mighty.sh("ip link add q7 type dummy && tc qdisc add dev q7 root netem delay 10ms")
    mighty.sh("tc qdisc replace dev q7 root fq_codel")


def test_br_netfilter_by_its_name(mighty: Container) -> None:
    """As the modprobe of docker's own image does it: ip asks for a device of that name."""
    mighty.sh(
        "ip link show br_netfilter 2>/dev/null; ls /proc/sys/net/bridge/bridge-nf-call-iptables"
    )


def test_what_is_not_there_is_not_found(mighty: Container) -> None:
    before = mighty.sh("cut -d' ' -f1 /proc/modules | sort").lines
    assert "Unknown device type" in mighty.sh("ip link add x type nosuch", code=None).stderr
    assert (
        "No such device"
        in mighty.sh("mkdir -p /mnt; busybox mount -t nosuch x /mnt", code=None).stderr
    )
    assert mighty.sh("cut -d' ' -f1 /proc/modules | sort").lines == before
    assert "WARNING" not in mighty.sh("dmesg").output


def test_many_at_once(mighty: Container) -> None:
    """The kernel has 50 helpers at once; the others wait for their turn."""
    names = " ".join(f"nosuch{number}" for number in range(120))
    mighty.sh(
        f"mkdir -p /mnt; for name in {names}; "
        "do busybox mount -t $name x /mnt 2>/dev/null & done; wait"
    )
    mighty.sh("mount -t minix /dev/null /mnt; grep minix /proc/filesystems")


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_net_admin_is_enough(cloche: Runtime, bundle: Bundle, tool: str) -> None:
    """What the first containers of a service mesh do."""
    equip(bundle).capabilities("CAP_NET_ADMIN", "CAP_NET_RAW")
    rule = "-t nat -A OUTPUT -p tcp -m owner ! --uid-owner 7 -j REDIRECT --to-ports 15001"
    cloche.run(bundle.sh(f"{tool} -w {rule} && {tool} -w -t nat -S OUTPUT | grep 15001"))


def test_without_a_capability_nothing_is_loaded(cloche: Runtime, bundle: Bundle) -> None:
    equip(bundle).capabilities("CAP_NET_RAW")
    asks = "ip link add x type dummy; busybox mount -t xfs x /mnt"
    bundle.sh(f"{asks}; grep -E '^(dummy|xfs)' /proc/modules")
    assert cloche.run(bundle, code=1).output == ""


def test_fuse_and_tun_are_there_without_a_warning(cloche: Runtime, bundle: Bundle) -> None:
    equip(bundle, _TUN, _FUSE)
    cloche.run(bundle.sh("exec 5<>/dev/fuse 6<>/dev/net/tun"))
    assert cloche.messages("warning") == []


def test_a_container_loads_a_module_of_its_own(cloche: Runtime, bundle: Bundle) -> None:
    guest = current_guest(load_settings().data_root)
    assert guest is not None
    store = ModuleStore(Path(guest.manifest["kernel_directory"]) / "modules")
    found = store.find("dummy", set())
    assert found
    (bundle.rootfs / "dummy.ko").write_bytes(read_module(found[-1][1]))
    script = "insmod /dummy.ko && grep -c ^dummy /proc/modules"
    assert cloche.run(bundle.capabilities("CAP_SYS_MODULE").sh(script)).output == "1"
    bundle.capabilities("CAP_NET_ADMIN")
    assert "not permitted" in cloche.run(bundle.sh(script), code=1).stderr


@each_machine
def test_in_every_kind_of_start(cloche: Runtime, bundle: Bundle) -> None:
    equip(bundle, _TUN).capabilities("CAP_NET_ADMIN")
    cloche.run(bundle.sh("exec 5<>/dev/net/tun && ip link add d0 type dummy"))


def test_a_mount_of_the_config_asks_for_its_file_system(cloche: Runtime, bundle: Bundle) -> None:
    bundle.mount("/data", "configfs")
    assert cloche.run(bundle.sh("grep -c /data /proc/mounts")).output == "1"


def test_a_store_that_is_gone_is_told_of(cloche: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """A kernel that an older cloche has unpacked has fewer modules; one may be damaged."""
    real, data = Path(load_settings().data_root), tmp_path / "data"
    shutil.copytree(real / "guests", data / "guests", symlinks=True)
    shutil.copytree(real / "agents", data / "agents")
    (data / "templates").symlink_to(real / "templates")
    cloche.env["CLOCHE_DATA_ROOT"] = str(data)
    for manifest in (data / "guests").glob("*/manifest.json"):
        told = json.loads(manifest.read_text()) | {"kernel_directory": str(data / "kernel")}
        manifest.write_text(json.dumps(told))
    (data / "kernel/modules").mkdir(parents=True)
    equip(bundle).capabilities("CAP_NET_ADMIN")
    result = cloche.run(bundle.sh("ip link add x type dummy"), code=None)
    assert result.code != 0
    assert "cloche: kernel module rtnl-link-dummy: " in result.stderr
    assert "modules.dep: no such file" in result.stderr


def test_a_kernel_in_use_is_not_removed(cloche: Runtime, bundle: Bundle) -> None:
    guest = current_guest(load_settings().data_root)
    assert guest is not None
    container = cloche.start(bundle)
    held = [os.readlink(fd) for fd in Path(f"/proc/{container.pid}/fd").iterdir()]
    assert guest.manifest["kernel_directory"] in held

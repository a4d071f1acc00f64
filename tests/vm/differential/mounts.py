"""Cases of mounts: their flags, where they end up, and what cannot be mounted."""

from __future__ import annotations

from vm.bundles import Bundle

from .cases import add_case, case, more


def _data(bundle: Bundle) -> str:
    """A folder on the host with a file and a folder."""
    data = bundle.path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "file").write_text("from the host\n")
    (data / "file").chmod(0o640)
    return str(data)


def _bind(bundle: Bundle, *options: str) -> None:
    bundle.mount("/data", "bind", _data(bundle), *options)
    more(
        bundle, "ls /data; cat /data/file; touch /data/new; cp /bin/true /data/t; /data/t; echo $?"
    )


for _options in (
    "bind", "rbind", "bind,ro", "rbind,ro", "rbind,rro", "bind,nosuid,nodev,noexec",
    "bind,noatime", "bind,nodiratime,relatime", "bind,strictatime", "bind,private",
    "rbind,rprivate", "rbind,rslave", "rbind,rshared", "bind,unbindable", "bind,ro,rw",
    "bind,rw,ro", "bind,nosymfollow", "rbind,rnosuid,rnodev,rnoexec",
):  # fmt: skip
    add_case(
        f"bind-{_options.replace(',', '-')}",
        _bind,
        *_options.split(","),
    )


@case()
def bind_by_type_only(bundle: Bundle) -> None:
    bundle.mount("/data", "bind", _data(bundle))
    more(bundle, "ls /data")


@case()
def bind_by_option_only(bundle: Bundle) -> None:
    bundle.mount("/data", "none", _data(bundle), "bind")
    more(bundle, "ls /data")


@case()
def bind_relative_to_the_bundle(bundle: Bundle) -> None:
    _data(bundle)
    bundle.mount("/data", "bind", "data", "bind")
    more(bundle, "ls /data")


@case()
def bind_of_a_file(bundle: Bundle) -> None:
    data = _data(bundle)
    bundle.mount("/etc/motd", "bind", f"{data}/file", "bind", "ro")
    bundle.mount("/deep/er/file", "bind", f"{data}/file", "bind")
    more(bundle, "cat /etc/motd /deep/er/file; stat -c '%n %F %a' /deep /deep/er /deep/er/file")


@case()
def bind_of_a_link(bundle: Bundle) -> None:
    data = bundle.path / "link"
    data.symlink_to(_data(bundle))
    bundle.mount("/data", "bind", data, "bind")
    more(bundle, "ls /data")


@case()
def binds_below_each_other(bundle: Bundle) -> None:
    data = _data(bundle)
    bundle.mount("/a", "bind", data, "rbind").mount("/a/sub", "tmpfs", "tmpfs", "size=1m")
    bundle.mount("/a/sub/b", "bind", data, "rbind", "ro")
    more(bundle, "ls /a /a/sub /a/sub/b; touch /a/sub/b/x")


@case()
def mount_hides_an_earlier_one(bundle: Bundle) -> None:
    bundle.mount("/x/y", "tmpfs", "tmpfs", "size=1m").mount("/x", "tmpfs", "tmpfs", "size=2m")
    more(bundle, "ls -a /x")


@case()
def mount_twice_at_one_place(bundle: Bundle) -> None:
    bundle.mount("/x", "tmpfs", "tmpfs", "size=1m").mount("/x", "tmpfs", "tmpfs", "size=2m", "ro")
    more(bundle, "touch /x/y")


@case()
def mount_target_is_a_link(bundle: Bundle) -> None:
    (bundle.rootfs / "link").symlink_to("/var/tmp")
    bundle.mount("/link", "tmpfs", "tmpfs", "size=1m")


@case()
def mount_target_leads_out_of_the_root(bundle: Bundle) -> None:
    (bundle.rootfs / "link").symlink_to("../../../../var")
    bundle.mount("/link/tmp/deeper", "tmpfs", "tmpfs", "size=1m")


@case()
def mount_target_is_a_dangling_link(bundle: Bundle) -> None:
    (bundle.rootfs / "link").symlink_to("/not/there")
    bundle.mount("/link", "tmpfs", "tmpfs", "size=1m")


@case()
def mount_target_is_relative(bundle: Bundle) -> None:
    bundle.mount("mnt/x", "tmpfs", "tmpfs", "size=1m")


@case()
def mount_target_is_not_clean(bundle: Bundle) -> None:
    bundle.mount("//mnt/./x/", "tmpfs", "tmpfs", "size=1m")


@case()
def mount_targets_are_made(bundle: Bundle) -> None:
    bundle.mount("/made/for/it", "tmpfs", "tmpfs", "size=1m")
    more(bundle, "stat -c '%n %F %a %u:%g' /made /made/for")


def _tmpfs(bundle: Bundle, *options: str) -> None:
    bundle.mount("/etc", "tmpfs", "tmpfs", *options)
    more(bundle, "stat -c '%a %u:%g' /etc; ls /etc; touch /etc/new")


for _name, _options in {
    "plain": "size=1m",
    "mode": "size=1m,mode=1750",
    "owner": "uid=12,gid=34,mode=700",
    "inodes": "nr_inodes=100,size=2m",
    "flags": "nosuid,nodev,noexec,ro,size=64k",
    "sync": "sync,dirsync,size=64k",
    "times": "noatime,nodiratime,size=64k",
    "strict": "strictatime,size=64k",
    "lazy": "lazytime,size=64k",
    "copy": "tmpcopyup,size=1m",
    "propagation": "size=64k,shared",
    "unknown": "size=64k,nonsense=1",
}.items():
    add_case(
        f"tmpfs-{_name}",
        _tmpfs,
        *_options.split(","),
    )


@case()
def tmpfs_without_options(bundle: Bundle) -> None:
    bundle.mount("/root", "tmpfs", "tmpfs").mount("/new", "tmpfs", "tmpfs")
    more(bundle, "stat -c %a /root /new")


@case()
def no_mounts_at_all(bundle: Bundle) -> None:
    bundle.config["mounts"] = []
    bundle.linux["maskedPaths"] = bundle.linux["readonlyPaths"] = []
    bundle.args("sh", "-c", "ls /proc /sys; ls /dev")


@case()
def proc_only(bundle: Bundle) -> None:
    bundle.config["mounts"] = [{"destination": "/proc", "type": "proc", "source": "proc"}]


@case()
def no_dev_mount(bundle: Bundle) -> None:
    for place in ("/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"):
        bundle.without_mount(place)


@case()
def sys_that_can_be_written(bundle: Bundle) -> None:
    bundle.without_mount("/sys").without_mount("/sys/fs/cgroup").mount("/sys", "sysfs", "sysfs")


@case()
def proc_with_options(bundle: Bundle) -> None:
    bundle.without_mount("/proc").mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev", "ro")


@case()
def read_only_root(bundle: Bundle) -> None:
    bundle.config["root"]["readonly"] = True
    bundle.mount("/tmp", "tmpfs", "tmpfs", "size=1m")
    more(bundle, "touch /x; touch /tmp/x /dev/x; ls /tmp; mkdir /dev/shm/y && echo shm")


def _propagation(bundle: Bundle, mode: str) -> None:
    bundle.linux["rootfsPropagation"] = mode


for _mode in ("private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable"):
    add_case(
        f"root-{_mode}",
        _propagation,
        _mode,
    )


@case()
def bind_source_is_missing(bundle: Bundle) -> None:
    bundle.mount("/data", "bind", "/does/not/exist", "bind")


@case()
def unknown_file_system(bundle: Bundle) -> None:
    bundle.mount("/data", "nosuchfs", "none")


@case()
def folder_onto_a_file(bundle: Bundle) -> None:
    bundle.mount("/etc/passwd", "bind", _data(bundle), "bind")


@case()
def file_onto_a_folder(bundle: Bundle) -> None:
    bundle.mount("/etc", "bind", f"{_data(bundle)}/file", "bind")


@case()
def tmpfs_onto_a_file(bundle: Bundle) -> None:
    bundle.mount("/etc/passwd", "tmpfs", "tmpfs")


@case()
def mount_onto_proc(bundle: Bundle) -> None:
    bundle.mount("/proc/sys", "tmpfs", "tmpfs")


@case()
def root_is_missing(bundle: Bundle) -> None:
    bundle.config["root"]["path"] = "nowhere"


@case()
def root_is_a_file(bundle: Bundle) -> None:
    bundle.config["root"]["path"] = "config.json"

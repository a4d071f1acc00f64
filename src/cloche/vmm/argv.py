"""QEMU's command line, as one pure function: the only place that spells QEMU options.

A VM has the same devices at boot, at save and at restore; what differs is what stands behind
them. These are the *slots*: taps, block images, the share, the agent's socket.
"""

from __future__ import annotations

NIC_SLOTS = 3
BLOCK_SLOTS = 2
EMPTY_SLOT_SIZE = 1 << 40  # more than any image, which is not resized
AGENT_PORT = "cloche.agent"
FILES_PORT = "cloche.files"
BULK_SERIAL = "cloche-bulk"
# MiB of translated code that TCG keeps. By itself QEMU takes up to 1024, which no limit on a
# container's memory has room for; a full cache only means that code is translated anew.
TRANSLATION_CACHE = 128
SHARE_TAG = "cloche"
# Sets of descriptors below it are those of the disks, numbered as their slots are.
_FIRST_SET = 1000
ROOT_SERIAL = "cloche-root"
# Template and clones carry these; the agent tells the slots apart by them, then sets the real ones.
MAC_PREFIX = "52:54:00:c1:0c:"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class RootImage:
    """A disk with a container's root: the file *path*, read by QEMU's *driver* for its format."""

    def __init__(self, path: str, driver: str, read_only: bool) -> None:
        self.path = path
        self.driver = driver
        self.read_only = read_only


class Variant:
    """One way to spell a VM's machine: its type, the *options* of that, the processor's model."""

    __slots__ = ("cpu", "machine", "options")

    def __init__(self, machine: str, options: Sequence[str], cpu: str) -> None:
        self.machine = machine
        self.options = options
        self.cpu = cpu

    def __str__(self) -> str:
        return f"{','.join([self.machine, *self.options])} with CPU {self.cpu}"


# Without PIT and PIC: a PIC that no firmware has set up tells of the PIT's first tick as of
# interrupt 0, which is a division by zero to Linux. Half of the boots in QEMU 10.0 met that.
# Stock kernels find virtio-mmio by ACPI.
_OPTIONS = {"microvm": ("acpi=on", "rtc=on", "pit=off", "pic=off"), "q35": ()}
# QEMU 7.2 carries `rep movsb` out byte by byte under TCG: without ERMS the guest copies three
# times faster. FSRM (newer QEMUs have it) has to go with it: to Linux it implies ERMS, and
# its memmove() of a few bytes then runs through all memory.
_CPUS = {"tcg": ("max,erms=off,fsrm=off", "max"), "kvm": ("host",)}


def variants(accel: str, machine: str) -> list[Variant]:
    """What to try with a QEMU that has not been tried yet, the fastest first, the plain one last.

    *machine* is a type, or `auto` for all of them.
    """
    types = _OPTIONS if machine == "auto" else (machine,)
    return [Variant(each, _OPTIONS[each], cpu) for each in types for cpu in _CPUS[accel]]


class Machine:
    """Everything that QEMU is told about one VM; descriptors are numbers in QEMU's own table.

    *memory* is in MiB. *memory_shared* maps the memory file shared (a template being made),
    else copy-on-write (a clone); with no file the memory is anonymous (a cold boot). *reserve*
    has the host commit to all of it now. *incoming* says that the state is loaded through QMP; a
    kernel is then not given. *disks* are the host's, each a descriptor and whether it is only
    read; they and the *root_image* come behind the slots, so only a VM that boots can have them.
    *parameters* are the user's own. With *files_fd*, a socket, QEMU has nothing of the *share*:
    cloche-files serves it, with *bulk_fd* as its bulk file. Descriptors that are *passed* can be
    images by their `passed_name`.
    """

    def __init__(
        self,
        *,
        qemu: str,
        variant: Variant,
        accel: str,
        cpus: int,
        memory: int,
        agent_fd: int,
        qmp_fd: int,
        console_fd: int,
        kernel: str = "",
        initramfs: str = "",
        cmdline: str = "",
        memory_file: str = "",
        memory_shared: bool = False,
        reserve: bool = False,
        incoming: bool = False,
        share: str = "",
        tap_fds: Sequence[int] = (),
        user_network: bool = False,
        images: Sequence[str] = (),
        disks: Sequence[tuple[int, bool]] = (),
        root_image: RootImage | None = None,
        parameters: Sequence[str] = (),
        files_fd: int = -1,
        bulk_fd: int = -1,
        passed: Sequence[int] = (),
    ) -> None:
        self.qemu = qemu
        self.variant = variant
        self.accel = accel
        self.cpus = cpus
        self.memory = memory
        self.agent_fd = agent_fd
        self.qmp_fd = qmp_fd
        self.console_fd = console_fd
        self.kernel = kernel
        self.initramfs = initramfs
        self.cmdline = cmdline
        self.memory_file = memory_file
        self.memory_shared = memory_shared
        self.reserve = reserve
        self.incoming = incoming
        self.share = share
        self.tap_fds = tap_fds
        self.user_network = user_network
        self.images = images
        self.disks = disks
        self.root_image = root_image
        self.parameters = parameters
        self.files_fd = files_fd
        self.bulk_fd = bulk_fd
        self.passed = passed


def passed_name(fd: int) -> str:
    """The name of an image that is open as *fd* in QEMU's table, one of those *passed*."""
    return f"/dev/fdset/{_FIRST_SET + fd}"


def quote(value: str) -> str:
    """A value inside a comma-separated QEMU option: commas are doubled."""
    return value.replace(",", ",,")


def _name(vm: Machine) -> str:
    """For those who look at ps(1): which sandbox's it is, where nothing else of it says so."""
    return f"cloche {quote(vm.share)}" if vm.files_fd >= 0 and vm.share else "cloche"


def qemu_argv(vm: Machine) -> list[str]:
    """The argument vector of QEMU for *vm*."""
    bus = "device" if vm.variant.machine == "microvm" else "pci"
    return [
        vm.qemu,
        *("-name", _name(vm)),
        # No configuration files, no default devices, no window.
        *("-no-user-config", "-nodefaults", "-display", "none"),
        # A panicking guest reboots at once (panic=-1), and that ends QEMU.
        "-no-reboot",
        # QEMU forks and execs nothing, gains no privilege, changes no scheduling.
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        *_machine(vm),
        *_memory(vm),
        *_boot(vm),
        *_channels(vm, bus),
        *_share(vm, bus),
        *_nics(vm, bus),
        *(word for fd in vm.passed for word in ("-add-fd", f"fd={fd},set={_FIRST_SET + fd}")),
        *_disks(vm, bus),
        *_host_disks(vm, bus),
        *_root_disk(vm.root_image, bus),
        *vm.parameters,
    ]


def _machine(vm: Machine) -> list[str]:
    options = [vm.variant.machine, "memory-backend=ram", *vm.variant.options]
    accel = f"tcg,tb-size={TRANSLATION_CACHE}" if vm.accel == "tcg" else vm.accel
    return [
        *("-M", ",".join(options), "-accel", accel),
        *("-cpu", vm.variant.cpu, "-smp", str(vm.cpus), "-m", f"{vm.memory}M"),
    ]


def _memory(vm: Machine) -> list[str]:
    # Few guests touch all of their memory. Unless told so, Linux refuses a private mapping that is
    # larger than the host's memory and swap: a guest of 2048 MiB would not start on a small host.
    options = f"id=ram,size={vm.memory}M,reserve={'on' if vm.reserve else 'off'}"
    if not vm.memory_file:
        return ["-object", f"memory-backend-ram,{options}"]
    share = "on" if vm.memory_shared else "off"
    return [
        "-object",
        f"memory-backend-file,{options},mem-path={quote(vm.memory_file)},share={share}",
    ]


def _boot(vm: Machine) -> list[str]:
    if vm.incoming:
        return ["-incoming", "defer"]
    return ["-kernel", vm.kernel, "-initrd", vm.initramfs, "-append", vm.cmdline]


def _channels(vm: Machine, bus: str) -> list[str]:
    return [
        *("-chardev", f"socket,id=qmp,fd={vm.qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={vm.console_fd}", "-serial", "chardev:console"),
        *("-device", f"virtio-serial-{bus},id=serial"),
        *("-chardev", f"socket,id=agent,fd={vm.agent_fd}"),
        *("-device", f"virtserialport,bus=serial.0,chardev=agent,id=agent,name={AGENT_PORT}"),
    ]


def _share(vm: Machine, bus: str) -> list[str]:
    if vm.files_fd >= 0:
        return _files(vm, bus)
    # passthrough keeps owners and modes as they are; remap keeps inode numbers of the several
    # file systems that are bind-mounted below the share apart.
    return [
        "-fsdev",
        f"local,id=share,path={quote(vm.share)},security_model=passthrough,multidevs=remap",
        *("-device", f"virtio-9p-{bus},fsdev=share,mount_tag={SHARE_TAG}"),
    ]


def _files(vm: Machine, bus: str) -> list[str]:
    # QEMU locks an image's bytes, and would find those of a memfd locked by the VM before.
    backend = "driver=raw,node-name=bulk,file.driver=file,file.locking=off,file.filename="
    return [
        *("-chardev", f"socket,id=files,fd={vm.files_fd}"),
        *("-device", f"virtserialport,bus=serial.0,chardev=files,id=files,name={FILES_PORT}"),
        *("-add-fd", f"fd={vm.bulk_fd},set=0", "-blockdev", f"{backend}/dev/fdset/0"),
        *("-device", f"virtio-blk-{bus},drive=bulk,serial={BULK_SERIAL}"),
    ]


def _nics(vm: Machine, bus: str) -> list[str]:
    argv: list[str] = []
    for slot in range(NIC_SLOTS):
        if slot < len(vm.tap_fds):
            backend = f"tap,id=net{slot},fd={vm.tap_fds[slot]}"
        elif slot == 0 and vm.user_network:
            backend = "user,id=net0"
        else:
            # A hub with this one port: what is sent goes nowhere.
            backend = f"hubport,id=net{slot},hubid={slot}"
        mac = f"{MAC_PREFIX}{slot:02x}"
        # rombar would load an iPXE image for each PCI card.
        rom = ",romfile=" if bus == "pci" else ""
        # Announcing itself after a restore would cost the guest work; nobody knows the clone yet.
        # Linux has sent no UFO packet since 4.14, and a newer host might take none.
        offers = "guest_announce=off,guest_ufo=off,host_ufo=off"
        card = f"virtio-net-{bus},netdev=net{slot},mac={mac},{offers}{rom}"
        argv += ["-netdev", backend, "-device", card]
    return argv


def _disks(vm: Machine, bus: str) -> list[str]:
    argv: list[str] = []
    for slot in range(BLOCK_SLOTS):
        node = f"node-name=slot{slot},read-only=on"
        if slot < len(vm.images):
            image = quote(vm.images[slot])
            backend = f"driver=raw,{node},file.driver=file,file.filename={image}"
        else:
            backend = f"driver=null-co,{node},size={EMPTY_SLOT_SIZE},read-zeroes=on"
        argv += ["-blockdev", backend]
        argv += ["-device", f"virtio-blk-{bus},drive=slot{slot},serial=cloche{slot}"]
    return argv


def disk_serial(index: int) -> str:
    """The serial number by which the guest finds the host's disk of that index."""
    return f"cloche{BLOCK_SLOTS + index}"


def _host_disks(vm: Machine, bus: str) -> list[str]:
    argv: list[str] = []
    for index, (fd, read_only) in enumerate(vm.disks):
        slot = BLOCK_SLOTS + index
        node = f"node-name=slot{slot},read-only={'on' if read_only else 'off'}"
        # A set of descriptors in place of a name: the host's /dev may have none for the number.
        backend = f"driver=raw,{node},file.driver=host_device,file.filename=/dev/fdset/{slot}"
        argv += ["-add-fd", f"fd={fd},set={slot}", "-blockdev", backend]
        argv += ["-device", f"virtio-blk-{bus},drive=slot{slot},serial={disk_serial(index)}"]
    return argv


def _root_disk(image: RootImage | None, bus: str) -> list[str]:
    if image is None:
        return []
    node = f"node-name=root,read-only={'on' if image.read_only else 'off'}"
    backend = f"driver={image.driver},{node},file.driver=file,file.filename={quote(image.path)}"
    device = f"virtio-blk-{bus},drive=root,serial={ROOT_SERIAL}"
    return ["-blockdev", backend, "-device", device]


def kernel_cmdline(*, machine: str, accel: str, tsc_khz: int, randomize: bool) -> str:
    """The guest kernel's command line.

    The guest's only secrets come from its own containers, which share one trust domain, so the
    mitigations between guest processes buy little and cost each system call (docs/guest.md).
    """
    words = ["console=ttyS0", "panic=-1", "reboot=t", "mitigations=off", "cryptomgr.notests"]
    words += ["random.trust_cpu=on", "8250.nr_uarts=1", "cgroup_no_v1=all"]
    # Nothing loads profiles for AppArmor or TOMOYO in a guest, and each of their hooks costs.
    words += ["lsm=landlock,yama"]
    if machine == "microvm":
        # It has no PCI bus: looking for one takes 33,000 exits, each of them dear with KVM.
        words.append("pci=off")
    if not randomize:
        words.append("norandmaps")
    if accel == "tcg":
        # Under TCG the guest may hang calibrating the TSC, which is the host's own.
        words += [f"tsc_early_khz={tsc_khz}", "tsc=reliable", "no_timer_check"]
    return " ".join(words)

"""The ``linux`` section of config.json as types (OCI runtime specification 1.3, config-linux.md).

Names and nesting are the specification's; what a field means is said there, and in docs/oci.md
what cloche does with it.
"""

# Annotations are objects here: base.typed looks at them.

from cloche.base.kinds import Int, Items
from cloche.base.typed import Struct, field
from cloche.model.texts import FileName, FreeText, PageText, PathText

TYPE_CHECKING = False
if TYPE_CHECKING:
    U16 = int
    U32 = int
    U64 = int
    I64 = int
    Names = tuple[str, ...]
else:
    U16 = Int(0, 0xFFFF)
    U32 = Int(0, 0xFFFF_FFFF)
    U64 = Int(0)
    I64 = Int(-(1 << 63), (1 << 63) - 1)
    Names = Items(FreeText, least=1)


class Namespace(Struct):
    """One namespace to be new (no path) or to be joined."""

    type: FreeText
    path: PathText = ""


class IDMapping(Struct):
    """A range of user or group ids in a user namespace."""

    container_id: U32 = field(name="containerID")
    host_id: U32 = field(name="hostID")
    size: U32


class TimeOffset(Struct):
    """Offset of one clock in a time namespace."""

    secs: I64 = 0
    nanosecs: U32 = 0


class Device(Struct, rename="camel"):
    """A device node to be made in the container."""

    path: PathText
    type: FreeText
    major: I64 = 0
    minor: I64 = 0
    file_mode: U32 | None = None
    uid: U32 | None = None
    gid: U32 | None = None


class DeviceRule(Struct):
    """One rule of the device controller."""

    allow: bool
    type: FreeText = ""
    major: I64 | None = None
    minor: I64 | None = None
    access: FreeText = ""


class Memory(Struct, rename="camel"):
    """Memory limits in bytes; -1 is unlimited."""

    limit: I64 | None = None
    reservation: I64 | None = None
    swap: I64 | None = None
    kernel: I64 | None = None
    kernel_tcp: I64 | None = field(default=None, name="kernelTCP")
    swappiness: U64 | None = None
    disable_oom_killer: bool | None = field(default=None, name="disableOOMKiller")
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class CPU(Struct, rename="camel"):
    """CPU limits; times in microseconds."""

    shares: U64 | None = None
    quota: I64 | None = None
    burst: U64 | None = None
    period: U64 | None = None
    realtime_runtime: I64 | None = None
    realtime_period: U64 | None = None
    cpus: PageText = ""
    mems: PageText = ""
    idle: I64 | None = None


class Pids(Struct):
    """Most processes and threads at a time; -1 is unlimited."""

    limit: I64 | None = None


class WeightDevice(Struct, rename="camel"):
    """Weight of one block device."""

    major: I64
    minor: I64
    weight: U16 | None = None
    leaf_weight: U16 | None = None


class ThrottleDevice(Struct):
    """Bytes or operations per second of one block device."""

    major: I64
    minor: I64
    rate: U64


class BlockIO(Struct, rename="camel"):
    """Block device weights and rates."""

    weight: U16 | None = None
    leaf_weight: U16 | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_read_iops_device: tuple[ThrottleDevice, ...] = field(
        default=(), name="throttleReadIOPSDevice"
    )
    throttle_write_iops_device: tuple[ThrottleDevice, ...] = field(
        default=(), name="throttleWriteIOPSDevice"
    )


class HugepageLimit(Struct, rename="camel"):
    """Limit in bytes for one size of huge pages."""

    page_size: FreeText
    limit: U64


class InterfacePriority(Struct):
    """Priority of traffic through one interface."""

    name: FreeText
    priority: U32


class Network(Struct):
    """Class and priorities of network traffic (cgroup v1 controllers)."""

    class_id: U32 | None = field(default=None, name="classID")
    priorities: tuple[InterfacePriority, ...] = ()


class Rdma(Struct, rename="camel"):
    """Limits of one RDMA device."""

    hca_handles: U32 | None = None
    hca_objects: U32 | None = None


class Resources(Struct, rename="camel"):
    """The limits of a container's cgroup."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory = Memory()
    cpu: CPU = CPU()
    pids: Pids | None = None
    block_io: BlockIO = field(default=BlockIO(), name="blockIO")
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: Network = Network()
    rdma: dict[FreeText, Rdma] = field(default={})
    unified: dict[FileName, PageText] = field(default={})


class SyscallArg(Struct, rename="camel"):
    """A condition on one argument of a system call."""

    index: U32
    value: U64
    op: FreeText
    value_two: U64 = 0


class Syscalls(Struct, rename="camel"):
    """What is done for some system calls."""

    names: Names
    action: FreeText
    errno_ret: U32 | None = None
    args: tuple[SyscallArg, ...] = ()


class Seccomp(Struct, rename="camel"):
    """A seccomp profile."""

    default_action: FreeText
    default_errno_ret: U32 | None = None
    architectures: tuple[FreeText, ...] = ()
    flags: tuple[FreeText, ...] = ()
    listener_path: FreeText = ""
    listener_metadata: FreeText = ""
    syscalls: tuple[Syscalls, ...] = ()


class NetDevice(Struct):
    """A network device of the host, to be moved into the container's network namespace."""

    name: FreeText = ""


class MemoryPolicy(Struct):
    """set_mempolicy(2) of the container's processes."""

    mode: FreeText
    nodes: PageText = ""
    flags: tuple[FreeText, ...] = ()


class IntelRdt(Struct, rename="camel"):
    """Cache and memory bandwidth of the processor.

    *enable_cmt* and *enable_mbm* are of versions 1.1 and 1.2, *enable_monitoring* of 1.3.
    """

    clos_id: FreeText = field(default="", name="closID")
    schemata: tuple[FreeText, ...] = ()
    l3_cache_schema: FreeText = ""
    mem_bw_schema: FreeText = ""
    enable_cmt: bool = field(default=False, name="enableCMT")
    enable_mbm: bool = field(default=False, name="enableMBM")
    enable_monitoring: bool = False


class Personality(Struct):
    """personality(2) of the process."""

    domain: FreeText
    flags: tuple[FreeText, ...] = ()


class Linux(Struct, rename="camel"):
    """What is special to Linux."""

    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()
    time_offsets: dict[FreeText, TimeOffset] = field(default={})
    devices: tuple[Device, ...] = ()
    net_devices: dict[FreeText, NetDevice] = field(default={})
    # Names of cgroups may be longer than those of files.
    cgroups_path: PageText = ""
    rootfs_propagation: FreeText = ""
    resources: Resources = Resources()
    seccomp: Seccomp | None = None
    sysctl: dict[PathText, PageText] = field(default={})
    masked_paths: tuple[PathText, ...] = ()
    readonly_paths: tuple[PathText, ...] = ()
    mount_label: FreeText = ""
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None
    personality: Personality | None = None

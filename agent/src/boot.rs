//! What PID 1 does before it can talk: file systems, kernel modules, the port.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use cloche_agent::errno;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{self, MountFlags, MountPropagationFlags};

use crate::bpf::DeviceFilter;
use crate::child::rootfs::EMPTY;
use crate::console;
use crate::files;
use crate::network::Slots;
use crate::share::{Share, MOUNT_POINT};
use crate::spare::Spare;
use crate::sys;

/// Notes about best-effort steps that failed; the host gets them as `log` events.
pub type Notes = Vec<String>;

/// Name of the virtio-serial port that leads to the host.
const PORT: &[u8] = b"cloche.agent\n";

/// Moves / from the kernel's rootfs onto a bind mount of it: nothing can pivot_root(2) away from
/// rootfs itself, since it has no parent mount.
pub fn leave_rootfs(notes: &mut Notes) {
    let moved = || -> sys::Result<()> {
        make_folder("/root");
        mount::mount_bind("/", "/root")?;
        rustix::process::chdir("/root")?;
        mount::mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    note(notes, "moving off rootfs", moved());
}

/// Opens /dev/console as standard input, output and error.
pub fn open_console() {
    make_folder("/dev");
    let _ = mount_plain("devtmpfs", "/dev", "mode=0755");
    let Ok(console) = files::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY) else {
        return;
    };
    for number in 0..3 {
        let _ = sys::duplicate(&console, number, 0);
    }
    if rustix::fd::AsRawFd::as_raw_fd(&console) < 3 {
        core::mem::forget(console);
    }
}

/// Mounts the kernel's file systems.
pub fn mount_all(notes: &mut Notes) {
    const MOUNTS: [(&str, &str, &str); 7] = [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        // A container with a writable tree cannot change its own limits.
        ("cgroup2", "/sys/fs/cgroup", "nsdelegate"),
        ("devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("tmpfs", "/run", "mode=0755"),
        ("tmpfs", "/tmp", "mode=1777"),
    ];
    for (kind, target, data) in MOUNTS {
        make_folder(target);
        note(notes, target, mount_plain(kind, target, data));
    }
    // What hides the folders that containers must not see.
    make_folder(EMPTY);
    let made = mount::mount("tmpfs", EMPTY, "tmpfs", MountFlags::RDONLY, None);
    note(notes, EMPTY, made);
}

/// Makes every controller usable in child cgroups.
pub fn enable_controllers(notes: &mut Notes) {
    let controllers = files::read("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let control = "/sys/fs/cgroup/cgroup.subtree_control";
    for name in controllers.split(u8::is_ascii_whitespace).filter(|name| !name.is_empty()) {
        let enable = [b"+", name].concat();
        let what = String::from_utf8_lossy(name);
        note(notes, &what, files::write(control, &enable));
    }
}

/// Lifts the kernel's limits on the number of processes and open files: memory runs out first, and then a
/// container's process is killed. Else a fork bomb would keep the agent from making any.
pub fn lift_limits(notes: &mut Notes) {
    const LIMITS: [(&str, &str); 4] = [
        ("/proc/sys/kernel/pid_max", "4194304"),
        ("/proc/sys/kernel/threads-max", "4194304"),
        // The most that Linux takes. A host may give its processes more open files than a fresh
        // kernel lets anybody have, and containers get what their caller has.
        ("/proc/sys/fs/nr_open", "2147483584"),
        // Else a list of all processes goes to the slow console each time.
        ("/proc/sys/vm/oom_dump_tasks", "0"),
    ];
    for (path, value) in LIMITS {
        note(notes, path, files::write(path, value.as_bytes()));
    }
}

/// Has the kernel patch its scheduler for CPU limits now. It does so in place when the first cgroup
/// gets one, and a CPU that QEMU before 8.1 emulates in a thread of its own may be left with what
/// was translated meanwhile: a breakpoint without an end. (QEMU commit deba78709ae8.)
pub fn settle_scheduler(notes: &mut Notes) {
    const KEPT: &str = "/sys/fs/cgroup/settled";
    make_folder(KEPT);
    // Nothing runs in it; a kernel without such limits has no such file.
    match files::write("/sys/fs/cgroup/settled/cpu.max", b"100000 100000") {
        Err(Errno::NOENT) => {}
        result => note(notes, KEPT, result),
    }
}

/// Lets the agent go first: under a fork bomb it must still be heard.
pub fn take_precedence(notes: &mut Notes) {
    note(notes, "scheduling", sys::take_precedence());
}

/// Loads the modules that /modules/load lists, in its order.
pub fn load_modules(notes: &mut Notes) {
    let list = match files::read("/modules/load") {
        Ok(list) => list,
        Err(Errno::NOENT) => return,
        Err(error) => return note(notes, "/modules/load", Err(error)),
    };
    for line in list.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let path = String::from_utf8_lossy(line);
        match load_module(&path) {
            Err(Errno::EXIST) => {}
            result => note(notes, &path, result),
        }
    }
}

fn load_module(path: &str) -> sys::Result<()> {
    let file = files::open(path, OFlags::RDONLY)?;
    rustix::system::finit_module(&file, c"", 0)
}

/// Has the kernel ask this program for modules (see `helper`), whatever it was built to execute.
pub fn name_helper(notes: &mut Notes) {
    const SETTING: &str = "/proc/sys/kernel/modprobe";
    match files::write(SETTING, b"/sbin/modprobe") {
        // A kernel without modules.
        Err(Errno::NOENT) => {}
        result => note(notes, SETTING, result),
    }
}

/// Names block devices by their serial number: /dev/disk/<serial>.
pub fn link_disks(notes: &mut Notes) {
    let linked = || -> sys::Result<()> {
        let folder = files::open("/sys/block", OFlags::RDONLY | OFlags::DIRECTORY)?;
        make_folder("/dev/disk");
        for name in files::names(&folder)? {
            let serial = [name.as_slice(), b"/serial"].concat();
            let serial = files::read_at(&folder, serial.as_slice()).unwrap_or_default();
            let serial = serial.trim_ascii();
            if !serial.is_empty() && !serial.contains(&b'/') {
                let link = [b"/dev/disk/", serial].concat();
                let device = [b"../", name.as_slice()].concat();
                rustix::fs::symlink(device.as_slice(), link.as_slice())?;
            }
        }
        Ok(())
    };
    note(notes, "/dev/disk", linked());
}

/// Finds the network devices and brings up a loopback.
pub fn prepare_network(notes: &mut Notes) -> Option<Slots> {
    match Slots::prepare() {
        Ok(slots) => Some(slots),
        Err(error) => {
            note(notes, "network", Err(error));
            None
        }
    }
}

/// Loads the device filter of most containers, which the host has put beside the modules: the
/// kernel's check of it costs more than the rest of a container's cgroup.
pub fn load_usual_filter(notes: &mut Notes) -> Option<DeviceFilter> {
    const PATH: &str = "/device-filter";
    match files::read(PATH).and_then(DeviceFilter::load) {
        Ok(filter) => Some(filter),
        Err(error) => {
            note(notes, PATH, Err(error));
            None
        }
    }
}

/// Makes the container init that waits for the first plan. There need not be one.
pub fn make_spare(
    slots: Option<&Slots>,
    usual: Option<&DeviceFilter>,
    notes: &mut Notes,
) -> Option<Spare> {
    match share_mounts().and_then(|()| Spare::make(slots.map(Slots::connected), usual)) {
        Ok(spare) => Some(spare),
        Err(error) => {
            note(notes, "spare init", Err(error));
            None
        }
    }
}

/// Lets mount namespaces that follow this one (the spare init's) see what is mounted here.
fn share_mounts() -> sys::Result<()> {
    mount::mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
}

/// Opens the port to the host; waits for the device up to ten seconds.
pub fn open_port() -> OwnedFd {
    const STEP: u32 = 10;
    for _ in 0..10_000 / STEP {
        if let Some(port) = find_port(PORT, OFlags::RDWR | OFlags::NONBLOCK) {
            return port;
        }
        sys::sleep(STEP);
    }
    console::say(format_args!("no virtio port is named cloche.agent"));
    sys::power_off()
}

/// Opens the port of that name, if it is there.
pub fn find_port(wanted: &[u8], flags: OFlags) -> Option<OwnedFd> {
    let class = files::open("/sys/class/virtio-ports", OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
    let names = files::names(&class).ok()?;
    let name = names.into_iter().find(|name| {
        let label = [name, b"/name".as_slice()].concat();
        files::read_at(&class, label.as_slice()).is_ok_and(|label| label == wanted)
    })?;
    let path = [b"/dev/", name.as_slice()].concat();
    files::open(path.as_slice(), flags).ok()
}

/// Mounts the share, where this VM has one that is served by FUSE.
pub fn mount_share(notes: &mut Notes) -> Option<Share> {
    let mut share = Share::find()?;
    note(notes, MOUNT_POINT, share.mount(MOUNT_POINT));
    Some(share)
}

fn mount_plain(kind: &str, target: &str, data: &str) -> sys::Result<()> {
    let data = alloc::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    mount::mount(kind, target, kind, MountFlags::empty(), data.as_c_str())
}

pub fn make_folder(path: &str) {
    let _ = rustix::fs::mkdir(path, Mode::from_raw_mode(0o755));
}

fn note(notes: &mut Notes, what: &str, result: sys::Result<()>) {
    if let Err(error) = result {
        let cause = errno::text(error.raw_os_error());
        console::trouble(notes, format!("{what}: {cause}"));
    }
}

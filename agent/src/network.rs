//! The guest's network: the slots as they are at boot, and the `network` request.
//!
//! Containers must see no interface that they were not given. So there are three network
//! namespaces, made before the template is saved: one with a loopback only, in which the agent
//! stays if no network is asked for; one with slot 0 as well, the usual case; and the kernel's
//! first, in which the other slots wait.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use cloche_agent::answers::Failure;
use cloche_agent::errno;
use cloche_agent::messages::{Interface, Network, NetworkChange, Route, Setting};
use cloche_agent::netlink::{self, Link};
use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl::{SIOCGIFHWADDR, SIOCGIFINDEX};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::fail::{Outcome, Step};
use crate::files;
use crate::sys::{self, Result};

const NEWNET: u64 = raw::CLONE_NEWNET as u64;
const LOOPBACK: u32 = 1;
/// The host gives its network devices this MAC until the real one is known; the slot follows.
const SLOT_MAC: [u8; 5] = [0x52, 0x54, 0x00, 0xc1, 0x0c];

/// Network devices and the namespaces that they are in.
pub struct Slots {
    /// Index of each slot's device in the kernel's first namespace.
    devices: Vec<u32>,
    /// The kernel's first namespace, and an rtnetlink socket of it.
    first: OwnedFd,
    first_socket: OwnedFd,
    /// Slots in use.
    used: Vec<Used>,
    /// The namespace with slot 0, and its index there.
    connected: OwnedFd,
    slot0: Option<u32>,
    /// Where slot 0 still is, if not there.
    parked: Option<OwnedFd>,
    /// The `network` request has asked for interfaces.
    pub is_connected: bool,
}

/// A slot's device where it is used: a container may have renamed it.
struct Used {
    slot: u32,
    index: u32,
    name: String,
}

/// struct ifreq: a name, then a union of which this uses the first bytes.
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

impl Slots {
    /// Finds the network devices and makes the namespaces; the agent ends in the empty one.
    pub fn prepare() -> Result<Slots> {
        let first = files::open("/proc/self/ns/net", OFlags::RDONLY)?;
        let first_socket = open_netlink()?;
        let devices = find_devices()?;
        for (slot, index) in devices.iter().enumerate() {
            // Out of the way of the names that containers want.
            let name = format!("slot{slot}");
            change(&first_socket, &Link { index: *index, name: Some(&name), ..Link::default() })?;
        }
        let connected = new_namespace()?;
        let mut slot0 = None;
        if let Some(index) = devices.first() {
            move_device(&first_socket, *index, &connected)?;
            slot0 = Some(settle("slot0")?);
        }
        new_namespace()?;
        Ok(Slots {
            devices,
            first,
            first_socket,
            used: Vec::new(),
            connected,
            slot0,
            parked: None,
            is_connected: false,
        })
    }

    /// Sets the network up as asked; what is created from now on lives in it.
    pub fn set_up(&mut self, plan: &Network) -> Outcome<()> {
        if plan.interfaces.is_empty() {
            return write_sysctls(&plan.sysctls.0);
        }
        sys::setns(&self.connected, NEWNET).step("network", "namespace")?;
        self.is_connected = true;
        write_sysctls(&plan.sysctls.0)?;
        let socket = open_netlink().step("network", "netlink")?;
        self.add(&socket, &plan.interfaces, &plan.routes)
    }

    /// Changes a network that containers live in. What fails keeps nothing else from being done;
    /// the first failure is told.
    pub fn change(&mut self, plan: &NetworkChange) -> Outcome<()> {
        if !self.is_connected {
            return Err(Failure::new("network", "namespace", errno::ENODEV));
        }
        sys::setns(&self.connected, NEWNET).step("network", "namespace")?;
        let socket = open_netlink().step("network", "netlink")?;
        let mut outcome = Ok(());
        for route in &plan.old_routes {
            outcome = outcome.and(self.remove_route(&socket, route));
        }
        for slot in &plan.gone {
            let parked = self.park(&socket, *slot).step("interface", &format!("slot{slot}"));
            outcome = outcome.and(parked);
        }
        outcome.and(self.add(&socket, &plan.interfaces, &plan.routes))
    }

    /// As for `change`.
    fn add(&mut self, socket: &OwnedFd, interfaces: &[Interface], routes: &[Route]) -> Outcome<()> {
        let mut outcome = Ok(());
        for interface in interfaces {
            let added = self.device(interface.slot).step("interface", interface.name);
            outcome = outcome.and(added.and_then(|index| {
                let name = interface.name.into();
                self.used.push(Used { slot: interface.slot, index, name });
                configure(socket, index, interface)
            }));
        }
        for route in routes {
            let object = route.destination.unwrap_or("default");
            let added = self
                .route(route)
                .and_then(|found| ask(socket, &found.request()).step("route", object));
            outcome = outcome.and(added);
        }
        outcome
    }

    fn remove_route(&self, socket: &OwnedFd, route: &Route) -> Outcome<()> {
        match ask(socket, &self.route(route)?.removal()) {
            // It went with what it needed.
            Err(Errno::SRCH) => Ok(()),
            result => result.step("route", route.destination.unwrap_or("default")),
        }
    }

    /// A route as rtnetlink wants it.
    fn route(&self, plan: &Route) -> Outcome<netlink::Route> {
        let index = if plan.interface == "lo" {
            LOOPBACK
        } else {
            let found = self.used.iter().find(|used| used.name == plan.interface);
            found.ok_or(Errno::NODEV).step("route", plan.interface)?.index
        };
        Ok(netlink::Route {
            index,
            destination: optional(plan.destination)?,
            prefix: plan.prefix,
            gateway: optional(plan.gateway)?,
            source: optional(plan.source)?,
            metric: plan.metric,
            scope: plan.scope,
            onlink: plan.onlink,
        })
    }

    /// Takes a slot's device, if it is in use, out of the containers' sight, with its addresses
    /// and routes.
    fn park(&mut self, socket: &OwnedFd, slot: u32) -> Result<()> {
        let Some(place) = self.used.iter().position(|used| used.slot == slot) else {
            return Ok(());
        };
        let index = self.used[place].index;
        let name = format!("slot{slot}");
        // The kernel renames no device that is up.
        change(socket, &Link { index, up: Some(false), ..Link::default() })?;
        change(socket, &Link { index, name: Some(&name), ..Link::default() })?;
        move_device(socket, index, &self.first)?;
        sys::setns(&self.first, NEWNET)?;
        let found = index_of(&name);
        sys::setns(&self.connected, NEWNET)?;
        self.used.swap_remove(place);
        *self.devices.get_mut(slot as usize).ok_or(Errno::NODEV)? = found?;
        if slot == 0 {
            self.slot0 = None;
        }
        Ok(())
    }

    /// Makes a container's own `namespace` the one that slot 0 belongs in, and enters it.
    pub fn rehome(&mut self, namespace: OwnedFd) -> Result<()> {
        if self.is_connected {
            // Another container has the devices.
            return Err(Errno::BUSY);
        }
        sys::setns(&namespace, NEWNET)?;
        change(&open_netlink()?, &Link { index: LOOPBACK, up: Some(true), ..Link::default() })?;
        let before = core::mem::replace(&mut self.connected, namespace);
        self.parked.get_or_insert(before);
        Ok(())
    }

    /// Brings slot 0 from where it is `parked` to where it is wanted.
    fn fetch(&mut self, parked: &OwnedFd) -> Result<()> {
        let Some(index) = self.slot0 else { return Ok(()) };
        sys::setns(parked, NEWNET)?;
        move_device(&open_netlink()?, index, &self.connected)?;
        sys::setns(&self.connected, NEWNET)?;
        self.slot0 = Some(settle("slot0")?);
        Ok(())
    }

    /// The namespace with slot 0.
    pub fn connected(&self) -> &OwnedFd {
        &self.connected
    }

    /// Index of a slot's device, which is brought into the agent's namespace.
    fn device(&mut self, slot: u32) -> Result<u32> {
        let index = *self.devices.get(slot as usize).ok_or(Errno::NODEV)?;
        if slot == 0 {
            if let Some(parked) = self.parked.take() {
                self.fetch(&parked)?;
            }
            if let Some(here) = self.slot0 {
                return Ok(here);
            }
        }
        let name = format!("slot{slot}");
        match move_device(&self.first_socket, index, &self.connected) {
            Ok(()) => settle(&name),
            // It is here already. (That is not looked up first: for a name that is not there the
            // kernel asks for a module, and this process is the one that has to answer.)
            Err(Errno::NODEV) => index_of(&name),
            Err(error) => Err(error),
        }
    }
}

/// Enters a new network namespace with its loopback up, and returns it.
fn new_namespace() -> Result<OwnedFd> {
    sys::unshare(NEWNET)?;
    change(&open_netlink()?, &Link { index: LOOPBACK, up: Some(true), ..Link::default() })?;
    files::open("/proc/self/ns/net", OFlags::RDONLY)
}

fn move_device(socket: &OwnedFd, index: u32, namespace: &OwnedFd) -> Result<()> {
    let namespace = Some(namespace.as_raw_fd());
    change(socket, &Link { index, namespace, ..Link::default() })
}

/// Index of a device that has just come into this namespace, and is now as it should be there:
/// without addresses that nobody asked for. (The kernel decides that when it comes up.)
fn settle(name: &str) -> Result<u32> {
    let index = index_of(name)?;
    let quiet = Link { index, own_addresses: Some(false), ..Link::default() };
    match change(&open_netlink()?, &quiet) {
        // A kernel without IPv6.
        Err(Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => Ok(index),
        result => result.map(|()| index),
    }
}

/// Indexes of the network devices by slot: told by their MAC, else in the order in which the
/// kernel found them.
fn find_devices() -> Result<Vec<u32>> {
    let folder = files::open("/sys/class/net", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut found = Vec::new();
    for name in files::names(&folder)? {
        let name = String::from_utf8_lossy(&name).into_owned();
        if name == "lo" {
            continue;
        }
        let index = index_of(&name)?;
        let mac = query(&name, SIOCGIFHWADDR)?;
        // struct sockaddr: two bytes of family, then the address.
        let slot = mac[2..7].eq(&SLOT_MAC).then_some(mac[7]);
        found.push((slot.unwrap_or(u8::MAX), index));
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, index)| index).collect())
}

fn index_of(name: &str) -> Result<u32> {
    let [a, b, c, d, ..] = query(name, SIOCGIFINDEX)?;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

fn query(name: &str, request: u32) -> Result<[u8; 24]> {
    let flags = SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    let mut value = Request { name: [0; 16], value: [0; 24] };
    let length = name.len().min(15);
    value.name[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: both requests take an ifreq, which they complete.
    unsafe { sys::ioctl(&socket, request, &mut value) }?;
    Ok(value.value)
}

/// NETLINK_ROUTE is protocol 0, the default.
fn open_netlink() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
}

fn change(socket: &OwnedFd, link: &Link) -> Result<()> {
    ask(socket, &link.request())
}

/// Sends one request and waits for its acknowledgement, which the kernel gives at once.
fn ask(socket: &OwnedFd, request: &[u8]) -> Result<()> {
    net::send(socket, request, SendFlags::empty())?;
    let mut answer = [0u8; 1024];
    loop {
        let (size, _) = net::recv(socket, &mut answer, RecvFlags::empty())?;
        match netlink::acknowledged(&answer[..size]) {
            Some(0) => return Ok(()),
            Some(error) => return Err(Errno::from_raw_os_error(error)),
            None => {}
        }
    }
}

fn configure(socket: &OwnedFd, index: u32, plan: &Interface) -> Outcome<()> {
    if plan.addresses.iter().any(|(address, ..)| address.contains(':')) {
        let own = Link { index, own_addresses: Some(true), ..Link::default() };
        change(socket, &own).step("interface", plan.name)?;
    }
    let link = Link {
        index,
        name: Some(plan.name),
        mac: plan.mac,
        mtu: Some(plan.mtu),
        up: Some(plan.up),
        ..Link::default()
    };
    change(socket, &link).step("interface", plan.name)?;
    write_sysctls(&plan.sysctls.0)?;
    for (address, prefix, broadcast) in &plan.addresses {
        let local = parse(address)?;
        let broadcast = optional(*broadcast)?;
        let request = netlink::add_address(index, local, *prefix, broadcast);
        ask(socket, &request).step("address", address)?;
    }
    for (address, mac) in &plan.neighbours {
        let request = netlink::add_neighbour(index, parse(address)?, *mac);
        ask(socket, &request).step("neighbour", address)?;
    }
    Ok(())
}

/// Sets sysctls of this network namespace. What this kernel does not have is passed over.
fn write_sysctls(sysctls: &[Setting]) -> Outcome<()> {
    for (name, value) in sysctls {
        match files::write(format!("/proc/sys/{name}").as_str(), value.as_bytes()) {
            Err(Errno::NOENT) => {}
            result => result.step("sysctl", name)?,
        }
    }
    Ok(())
}

fn optional(text: Option<&str>) -> Outcome<Option<IpAddr>> {
    text.map(parse).transpose()
}

pub fn parse(text: &str) -> Outcome<IpAddr> {
    text.parse().map_err(|_| {
        let message = format!("{text:?} is not an IP address");
        Failure::worded("network", text, errno::EINVAL, message)
    })
}

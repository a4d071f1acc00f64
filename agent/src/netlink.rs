//! rtnetlink requests as bytes, and what the kernel's answers say (rtnetlink(7)).

use alloc::vec::Vec;
use core::net::IpAddr;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const NLMSG_ERROR: u16 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const NUD_PERMANENT: u16 = 0x80;
/// IN6_ADDR_GEN_MODE_EUI64 and _NONE.
const FROM_MAC: u8 = 0;
const NONE: u8 = 1;
const NESTED: u16 = 1 << 15;

/// One request. Every one asks for an acknowledgement.
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, header: &[u8]) -> Message {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        // Sequence and port: there is one request at a time on a socket of its own.
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        Message { bytes }
    }

    fn attribute(mut self, kind: u32, value: &[u8]) -> Message {
        let length = (4 + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind as u16).to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn address(self, kind: u32, address: &IpAddr) -> Message {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    /// The bytes to send.
    pub fn finish(mut self) -> Vec<u8> {
        let length = (self.bytes.len() as u32).to_ne_bytes();
        self.bytes[..4].copy_from_slice(&length);
        self.bytes
    }
}

/// Changes to a network interface; what is `None` stays as it is.
#[derive(Default)]
pub struct Link<'a> {
    pub index: u32,
    pub name: Option<&'a str>,
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u32>,
    pub up: Option<bool>,
    /// Whether the kernel gives it an IPv6 address of its own making (fe80::…) once it is up.
    pub own_addresses: Option<bool>,
    /// Descriptor of the network namespace to which it moves.
    pub namespace: Option<i32>,
}

impl Link<'_> {
    pub fn request(&self) -> Vec<u8> {
        let up = if self.up == Some(true) { IFF_UP } else { 0 };
        let changed = if self.up.is_some() { IFF_UP } else { 0 };
        // struct ifinfomsg: family, padding, type, index, flags, changed flags.
        let mut header = Vec::from([0u8; 4]);
        header.extend_from_slice(&self.index.to_ne_bytes());
        header.extend_from_slice(&up.to_ne_bytes());
        header.extend_from_slice(&changed.to_ne_bytes());
        let mut message = Message::new(RTM_NEWLINK, 0, &header);
        if let Some(namespace) = self.namespace {
            message = message.attribute(IFLA_NET_NS_FD, &namespace.to_ne_bytes());
        }
        if let Some(mac) = self.mac {
            message = message.attribute(IFLA_ADDRESS, &mac);
        }
        if let Some(mtu) = self.mtu {
            message = message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        if let Some(name) = self.name {
            message = message.attribute(IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        }
        if let Some(own) = self.own_addresses {
            // IFLA_AF_SPEC { AF_INET6 { IFLA_INET6_ADDR_GEN_MODE } }, each length with its header.
            let mut specification = Vec::new();
            for word in [12, u16::from(AF_INET6) | NESTED, 5, IFLA_INET6_ADDR_GEN_MODE] {
                specification.extend_from_slice(&word.to_ne_bytes());
            }
            let mode = if own { FROM_MAC } else { NONE };
            specification.extend_from_slice(&[mode, 0, 0, 0]);
            message = message.attribute(IFLA_AF_SPEC | u32::from(NESTED), &specification);
        }
        message.finish()
    }
}

const IFLA_ADDRESS: u32 = 1;
const IFLA_IFNAME: u32 = 3;
const IFLA_MTU: u32 = 4;
const IFLA_AF_SPEC: u32 = 26;
const IFLA_NET_NS_FD: u32 = 28;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;

/// Gives the interface an address, without a route to its network: routes are given one by one.
pub fn add_address(index: u32, address: IpAddr, prefix: u8, broadcast: Option<IpAddr>) -> Vec<u8> {
    const IFA_ADDRESS: u32 = 1;
    const IFA_LOCAL: u32 = 2;
    const IFA_BROADCAST: u32 = 4;
    const IFA_FLAGS: u32 = 8;
    const IFA_F_NODAD: u32 = 0x02;
    const IFA_F_NOPREFIXROUTE: u32 = 0x200;
    // struct ifaddrmsg: family, prefix, flags, scope, index.
    let mut header = Vec::from([family(&address), prefix, 0, scope_of(&address)]);
    header.extend_from_slice(&index.to_ne_bytes());
    let mut flags = IFA_F_NOPREFIXROUTE;
    if address.is_ipv6() {
        // Nobody else can have it, and waiting for that to be sure takes a second.
        flags |= IFA_F_NODAD;
    }
    let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &header)
        .address(IFA_LOCAL, &address)
        .address(IFA_ADDRESS, &address)
        .attribute(IFA_FLAGS, &flags.to_ne_bytes());
    if let Some(broadcast) = broadcast {
        message = message.address(IFA_BROADCAST, &broadcast);
    }
    message.finish()
}

/// A unicast route of the main table.
pub struct Route {
    pub index: u32,
    pub destination: Option<IpAddr>,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub metric: u32,
    pub scope: u8,
    pub onlink: bool,
}

impl Route {
    /// Adds it, or changes the one like it.
    pub fn request(&self) -> Vec<u8> {
        self.message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes it away again.
    pub fn removal(&self) -> Vec<u8> {
        self.message(RTM_DELROUTE, 0)
    }

    fn message(&self, kind: u16, flags: u16) -> Vec<u8> {
        const RTA_DST: u32 = 1;
        const RTA_OIF: u32 = 4;
        const RTA_GATEWAY: u32 = 5;
        const RTA_PRIORITY: u32 = 6;
        const RTA_PREFSRC: u32 = 7;
        const TABLE_MAIN: u8 = 254;
        const PROTOCOL_BOOT: u8 = 3;
        const UNICAST: u8 = 1;
        const ONLINK: u32 = 4;
        let known = self.destination.or(self.gateway).or(self.source);
        let family = known.map_or(AF_INET, |address| family(&address));
        // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
        let mut header =
            Vec::from([family, self.prefix, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, self.scope, UNICAST]);
        header.extend_from_slice(&(if self.onlink { ONLINK } else { 0 }).to_ne_bytes());
        let mut message =
            Message::new(kind, flags, &header).attribute(RTA_OIF, &self.index.to_ne_bytes());
        let addresses = [
            (RTA_DST, &self.destination),
            (RTA_GATEWAY, &self.gateway),
            (RTA_PREFSRC, &self.source),
        ];
        for (kind, address) in addresses {
            // The default route has no destination at all.
            if let Some(address) = address.filter(|_| kind != RTA_DST || self.prefix > 0) {
                message = message.address(kind, &address);
            }
        }
        if self.metric != 0 {
            message = message.attribute(RTA_PRIORITY, &self.metric.to_ne_bytes());
        }
        message.finish()
    }
}

/// A neighbour that is known for good.
pub fn add_neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    const NDA_DST: u32 = 1;
    const NDA_LLADDR: u32 = 2;
    // struct ndmsg: family, padding, index, state, flags, type.
    let mut header = Vec::from([family(&address), 0, 0, 0]);
    header.extend_from_slice(&index.to_ne_bytes());
    header.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    header.extend_from_slice(&[0, 0]);
    Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &header)
        .address(NDA_DST, &address)
        .attribute(NDA_LLADDR, &mac)
        .finish()
}

/// The error number in an acknowledgement (0: it went well); `None` if it is none.
pub fn acknowledged(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(*answer.get(4..6)?.first_chunk()?);
    let error = i32::from_ne_bytes(*answer.get(16..20)?.first_chunk()?);
    (kind == NLMSG_ERROR).then(|| error.wrapping_neg())
}

fn family(address: &IpAddr) -> u8 {
    if address.is_ipv4() {
        AF_INET
    } else {
        AF_INET6
    }
}

/// RT_SCOPE_LINK for link-local addresses, else RT_SCOPE_UNIVERSE.
fn scope_of(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => 253,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind and value of each attribute behind a header of `size` bytes.
    fn attributes(message: &[u8], size: usize) -> Vec<(u16, Vec<u8>)> {
        let mut rest = &message[16 + size..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            found.push((u16::from_ne_bytes([rest[2], rest[3]]), rest[4..length].to_vec()));
            rest = &rest[length.next_multiple_of(4)..];
        }
        found
    }

    #[test]
    fn the_length_covers_padded_attributes() {
        let link = Link { index: 3, name: Some("eth0"), up: Some(true), ..Link::default() };
        let bytes = link.request();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(
            u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            bytes.len() as u32
        );
        assert_eq!(attributes(&bytes, 16), [(3, b"eth0\0".to_vec())]);
        assert_eq!(bytes[20..32], [3u32, 1, 1].map(u32::to_ne_bytes).concat());
    }

    #[test]
    fn flags_change_only_where_that_is_asked_for() {
        let flags = |up| Link { index: 3, up, ..Link::default() }.request()[24..32].to_vec();
        assert_eq!(flags(None), [0u32, 0].map(u32::to_ne_bytes).concat());
        assert_eq!(flags(Some(false)), [0u32, 1].map(u32::to_ne_bytes).concat());
        assert_eq!(flags(Some(true)), [1u32, 1].map(u32::to_ne_bytes).concat());
    }

    #[test]
    fn a_route_names_its_family_and_what_it_has() {
        let route = Route {
            index: 2,
            destination: None,
            prefix: 0,
            gateway: "172.17.0.1".parse().ok(),
            source: None,
            metric: 7,
            scope: 0,
            onlink: true,
        };
        let bytes = route.request();
        assert_eq!(bytes[16], AF_INET);
        assert_eq!(bytes[24..28], 4u32.to_ne_bytes());
        let expected = [
            (4, 2u32.to_ne_bytes().to_vec()),
            (5, vec![172, 17, 0, 1]),
            (6, 7u32.to_ne_bytes().to_vec()),
        ];
        assert_eq!(attributes(&bytes, 12), expected);
        let removal = route.removal();
        assert_eq!(removal[4..6], RTM_DELROUTE.to_ne_bytes());
        assert_eq!(removal[16..], bytes[16..]);
    }

    #[test]
    fn an_ipv6_default_route_has_no_destination() {
        let route = Route {
            index: 2,
            destination: "::".parse().ok(),
            prefix: 0,
            gateway: "fe80::1".parse().ok(),
            source: None,
            metric: 0,
            scope: 0,
            onlink: false,
        };
        let bytes = route.request();
        assert_eq!(bytes[16], AF_INET6);
        assert_eq!(
            attributes(&bytes, 12).iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [4, 5]
        );
    }

    #[test]
    fn ipv6_addresses_wait_for_no_duplicate_detection() {
        let bytes = add_address(2, "fd00::2".parse().unwrap(), 64, None);
        let flags = attributes(&bytes, 8).into_iter().find(|(kind, _)| *kind == 8).unwrap();
        assert_eq!(flags.1, 0x202u32.to_ne_bytes());
    }

    #[test]
    fn acknowledgements_carry_an_error_number() {
        let mut answer = vec![0u8; 36];
        answer[4] = 2;
        answer[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer), Some(17));
        assert_eq!(acknowledged(&answer[..10]), None);
        answer[4] = 3;
        assert_eq!(acknowledged(&answer), None);
    }
}

//! A name server on loopback addresses that hands every query to the host (Docker's 127.0.0.11).

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use cloche_agent::answers;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::fail::{Outcome, Step};
use crate::network;
use crate::poll::{Kind, Poll};
use crate::sys::Result;

const PORT: u16 = 53;
/// Questions without an answer that are remembered, and open connections; the oldest go first.
const MOST: usize = 256;
/// Longest question. (Answers may be of any length.)
const LONGEST: usize = 16_384;

#[derive(Default)]
pub struct Relay {
    servers: Vec<Server>,
    connections: Vec<Connection>,
    questions: Vec<Question>,
    last: u32,
}

struct Server {
    key: u32,
    address: String,
    datagrams: OwnedFd,
    listener: OwnedFd,
}

/// A client that asks over TCP: each message has its length in two bytes before it.
struct Connection {
    key: u32,
    address: String,
    socket: OwnedFd,
    received: Vec<u8>,
}

struct Question {
    number: u64,
    asker: Asker,
}

enum Asker {
    /// Key of the server's socket, and who asked.
    Datagram(u32, SocketAddr),
    /// Key of the connection.
    Connection(u32),
}

impl Relay {
    /// Listens on port 53 of each of `addresses`.
    pub fn listen(&mut self, addresses: &[&str], poll: &Poll) -> Outcome<()> {
        for text in addresses {
            if self.servers.iter().any(|server| server.address == *text) {
                continue;
            }
            let address = network::parse(text)?;
            let key = self.new_key();
            let server = Server::open(key, text, address, poll).step("dns relay", text)?;
            self.servers.push(server);
        }
        Ok(())
    }

    fn new_key(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// Something can be read from the relay's socket of this kind and key.
    pub fn ready(&mut self, kind: Kind, key: u32, poll: &Poll, out: &mut Vec<u8>) {
        match kind {
            Kind::DnsDatagram => self.take_datagrams(key, out),
            Kind::DnsListener => self.take_connections(key, poll),
            _ => self.take_bytes(key, out),
        }
    }

    fn take_datagrams(&mut self, key: u32, out: &mut Vec<u8>) {
        let Some(server) = self.servers.iter().find(|server| server.key == key) else {
            return;
        };
        let mut buffer = [0u8; 4096];
        while let Ok((size, _, Some(from))) =
            net::recvfrom(&server.datagrams, &mut buffer, RecvFlags::empty())
        {
            let Ok(from) = SocketAddr::try_from(from) else {
                continue;
            };
            let asker = Asker::Datagram(key, from);
            let number = remember(&mut self.questions, &mut self.last, asker);
            answers::dns_query(out, number, &server.address, false, &buffer[..size]);
        }
    }

    fn take_connections(&mut self, key: u32, poll: &Poll) {
        let Some(server) = self.servers.iter().find(|server| server.key == key) else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = net::accept_with(&server.listener, flags) {
            self.last += 1;
            let key = self.last;
            if poll.add(&socket, Kind::DnsConnection, key, EventFlags::IN).is_err() {
                continue;
            }
            if self.connections.len() >= MOST {
                self.connections.remove(0);
            }
            let (address, received) = (server.address.clone(), Vec::new());
            self.connections.push(Connection { key, address, socket, received });
        }
    }

    fn take_bytes(&mut self, key: u32, out: &mut Vec<u8>) {
        let found = self.connections.iter().position(|connection| connection.key == key);
        let Some(index) = found else { return };
        let connection = &mut self.connections[index];
        let open = connection.receive();
        while let Some(message) = connection.next() {
            let number = remember(&mut self.questions, &mut self.last, Asker::Connection(key));
            answers::dns_query(out, number, &connection.address, true, &message);
        }
        if !open {
            self.connections.swap_remove(index);
        }
    }

    /// Hands the host's answer to whoever asked. An empty one means that there is none: a client
    /// by UDP waits in vain, as it would on a network, one by TCP sees its connection closed.
    pub fn answer(&mut self, number: u64, data: &[u8]) {
        let found = self.questions.iter().position(|question| question.number == number);
        let Some(index) = found else { return };
        match self.questions.remove(index).asker {
            Asker::Datagram(key, to) => {
                let server = self.servers.iter().find(|server| server.key == key);
                if let Some(server) = server.filter(|_| !data.is_empty()) {
                    let _ = net::sendto(&server.datagrams, data, SendFlags::empty(), &to);
                }
            }
            Asker::Connection(key) => {
                let found = self.connections.iter().position(|connection| connection.key == key);
                let Some(index) = found else { return };
                if !self.connections[index].send(data) {
                    self.connections.swap_remove(index);
                }
            }
        }
    }
}

fn remember(questions: &mut Vec<Question>, last: &mut u32, asker: Asker) -> u64 {
    if questions.len() >= MOST {
        questions.remove(0);
    }
    *last += 1;
    let number = u64::from(*last);
    questions.push(Question { number, asker });
    number
}

impl Server {
    fn open(key: u32, text: &str, address: IpAddr, poll: &Poll) -> Result<Server> {
        let datagrams = bound(address, SocketType::DGRAM)?;
        let listener = bound(address, SocketType::STREAM)?;
        net::listen(&listener, 16)?;
        poll.add(&datagrams, Kind::DnsDatagram, key, EventFlags::IN)?;
        poll.add(&listener, Kind::DnsListener, key, EventFlags::IN)?;
        Ok(Server { key, address: text.into(), datagrams, listener })
    }
}

impl Connection {
    /// Reads what is there; false once the client has closed its end.
    fn receive(&mut self) -> bool {
        let mut buffer = [0u8; 2048];
        while self.received.len() <= LONGEST {
            match net::recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((0, _)) => return false,
                Ok((size, _)) => self.received.extend_from_slice(&buffer[..size]),
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        // More than one message at once, faster than they are answered: no resolver does that.
        false
    }

    /// The next whole message.
    fn next(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(u16::from_be_bytes(*self.received.first_chunk()?));
        let message = self.received.get(2..2 + length)?.to_vec();
        self.received.drain(..2 + length);
        Some(message)
    }

    /// Sends an answer; false if the connection is to be closed.
    fn send(&self, data: &[u8]) -> bool {
        let Ok(length) = u16::try_from(data.len()) else {
            return false;
        };
        let framed = [&length.to_be_bytes(), data].concat();
        let sent = net::send(self.socket.as_fd(), &framed, SendFlags::NOSIGNAL);
        !data.is_empty() && sent == Ok(framed.len())
    }
}

fn bound(address: IpAddr, kind: SocketType) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, kind, flags, None)?;
    net::sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &SocketAddr::new(address, PORT))?;
    Ok(socket)
}

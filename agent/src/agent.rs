//! The agent's one thread: waits, takes requests, moves bytes.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use cloche_agent::answers::{self, Failure};
use cloche_agent::errno;
use cloche_agent::frames::{Frame, Kind as FrameKind, MAX_DATA};
use cloche_agent::messages::{self, Hello, Network, Request};
use cloche_agent::msgpack::Writer;
use linux_raw_sys::general as raw;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;

use crate::bpf::DeviceFilter;
use crate::container::Container;
use crate::dns::Relay;
use crate::fail::{Outcome, Step};
use crate::files;
use crate::jobs::Job;
use crate::loader::Loader;
use crate::mounts;
use crate::network::Slots;
use crate::poll::{Kind, Poll, Ready, Wait};
use crate::port::Port;
use crate::process::Process;
use crate::renew::Renewer;
use crate::share::Share;
use crate::slate::Slate;
use crate::spare::Spare;
use crate::syncer::{Syncer, Waiting};
use crate::sys;

const VERSION: u32 = 1;

/// What becomes of a request whose first part went well.
pub enum Answer {
    /// Done, and nothing to tell.
    Nil,
    /// The reply has been written, or will be when it is time.
    Other,
}

pub struct Agent {
    pub poll: Poll,
    pub port: Port,
    signals: OwnedFd,
    pub containers: Vec<Container>,
    pub processes: Vec<Process>,
    pub jobs: Vec<Job>,
    /// The agent's own PID namespace, to come back to after a clone into another one.
    pub own_pids: OwnedFd,
    next_key: u32,
    pub slots: Option<Slots>,
    /// What most containers' device rules come to.
    pub usual_filter: Option<DeviceFilter>,
    /// For the first container, if it fits.
    pub spare: Option<Spare>,
    /// For further processes on their way to execve.
    pub slates: Vec<Rc<Slate>>,
    relay: Relay,
    loader: Loader,
    renewer: Renewer,
    pub syncer: Syncer,
    /// None: the share is of a kind that a request mounts.
    share: Option<Share>,
    /// What went wrong at boot, for the host once it has said hello.
    notes: Vec<String>,
}

impl Agent {
    /// Takes over the port. Without any of what is opened here the agent is of no use: panics.
    pub fn new(
        port: OwnedFd,
        slots: Option<Slots>,
        usual_filter: Option<DeviceFilter>,
        spare: Option<Spare>,
        share: Option<Share>,
        notes: Vec<String>,
    ) -> Agent {
        match Agent::assemble(port, slots, usual_filter, spare, share, notes) {
            Ok(agent) => agent,
            Err(error) => panic!("setting up: {error:?}"),
        }
    }

    fn assemble(
        port: OwnedFd,
        slots: Option<Slots>,
        usual_filter: Option<DeviceFilter>,
        spare: Option<Spare>,
        share: Option<Share>,
        notes: Vec<String>,
    ) -> sys::Result<Agent> {
        const CHILD: u64 = 1 << (raw::SIGCHLD - 1);
        let poll = Poll::new()?;
        let syncer = Syncer::start(&poll)?;
        let loader = Loader::start(&poll)?;
        sys::block_signals(CHILD)?;
        let signals = sys::signal_fd(CHILD)?;
        poll.add(&signals, Kind::Child, 0, EventFlags::IN)?;
        Ok(Agent {
            port: Port::new(port, &poll)?,
            poll,
            signals,
            containers: Vec::new(),
            processes: Vec::new(),
            jobs: Vec::new(),
            own_pids: files::open("/proc/self/ns/pid", OFlags::RDONLY)?,
            next_key: 0,
            slots,
            usual_filter,
            spare,
            slates: Vec::new(),
            relay: Relay::default(),
            loader,
            renewer: Renewer::prepare()?,
            syncer,
            share,
            notes,
        })
    }

    /// Serves the host until it says `shutdown`.
    pub fn serve(&mut self) -> ! {
        let mut wait = Wait::Forever;
        loop {
            for index in 0..self.poll.wait(wait) {
                if let Some(ready) = self.poll.event(index) {
                    self.dispatch(ready);
                }
            }
            self.receive();
            wait = self.pump();
            self.port.flush();
        }
    }

    fn dispatch(&mut self, ready: Ready) {
        match ready.kind {
            Kind::Port => {
                if self.port.ready(ready.flags) {
                    self.loader.forget();
                }
            }
            Kind::Child => self.reap(),
            Kind::Report => self.report(ready.key),
            Kind::Stdin | Kind::Stdout | Kind::Stderr => {
                let found = self.processes.iter_mut().find(|process| process.key == ready.key);
                found.into_iter().for_each(|process| process.ready(ready.kind));
            }
            Kind::MemoryEvents => {
                let found = self.containers.iter_mut().find(|one| one.key == ready.key);
                found.into_iter().for_each(|one| one.check_memory(&mut self.port.out));
            }
            Kind::CgroupEvents => self.cgroup_changed(ready.key),
            Kind::Synced => self.synced(),
            Kind::Job => self.job_ready(ready.key),
            Kind::DnsDatagram | Kind::DnsListener | Kind::DnsConnection => {
                self.relay.ready(ready.kind, ready.key, &self.poll, &mut self.port.out);
            }
            Kind::ModuleListener => self.loader.accept(&self.poll),
            Kind::ModuleHelper => {
                self.loader.ready(ready.key, self.port.greeted, &mut self.port.out);
            }
        }
    }

    /// Handles every frame that has arrived.
    fn receive(&mut self) {
        while self.port.receive() {
            let mut decoder = core::mem::take(&mut self.port.decoder);
            loop {
                if self.port.broken {
                    // There is no way to find the next frame.
                    decoder.clear();
                    break;
                }
                match decoder.next_frame() {
                    Ok(Some(frame)) => self.frame(&frame),
                    Ok(None) => break,
                    Err(wrong) => {
                        self.port.broken = true;
                        let message = format!("not a frame: {wrong:?}");
                        answers::log(&mut self.port.out, "error", &message);
                    }
                }
            }
            self.port.decoder = decoder;
        }
    }

    fn frame(&mut self, frame: &Frame) {
        match frame.kind {
            FrameKind::Request => self.request(frame.payload),
            FrameKind::Data => self.input(frame.stream, frame.payload),
            FrameKind::Credit => self.credit(frame.stream, frame.payload),
            FrameKind::Eof => self.end_of_stream(frame.stream),
            // Those go the other way.
            FrameKind::Reply | FrameKind::Event => {}
        }
    }

    fn request(&mut self, payload: &[u8]) {
        let (number, request) = messages::request(payload);
        let outcome = match request {
            Ok(request) => self.carry_out(number, &request, payload),
            Err(error) => Err(error.failure()),
        };
        match outcome {
            Ok(Answer::Nil) => self.reply(number, |writer| writer.nil()),
            Ok(Answer::Other) => {}
            Err(failure) => self.refuse(number, &failure),
        }
    }

    fn carry_out(&mut self, number: u64, request: &Request, payload: &[u8]) -> Outcome<Answer> {
        if !self.port.greeted && !matches!(request, Request::Hello(_)) {
            let message = "the first request must be hello".into();
            return Err(Failure::worded("hello", "", errno::EPROTO, message));
        }
        match request {
            Request::Hello(hello) => return self.hello(number, hello),
            // That it is answered is all there is to it.
            Request::Ping(_) => {}
            Request::Renew(fresh) => self.renewer.renew(fresh)?,
            Request::Mount(plan) => match &mut self.share {
                Some(share) if plan.fstype == "fuse" => {
                    share.mount(plan.target).map_err(|error| mounts::failed(plan, error))?;
                }
                _ => {
                    mounts::mount_here(plan)?;
                    self.syncer.mounted(plan);
                }
            },
            Request::Umount(plan) => {
                mounts::unmount_here(plan.target)?;
                self.syncer.unmounted(plan.target);
            }
            Request::Create(plan) => return self.create(number, plan, payload),
            Request::Start(plan) => return self.start(number, plan.id),
            Request::Exec(plan) => return self.exec(number, plan),
            Request::Signal(plan) => self.signal(plan)?,
            Request::Resize(plan) => self.resize(plan)?,
            Request::Freeze(plan) => return self.freeze(number, plan),
            Request::CgroupWrite(plan) => self.cgroup_write(plan)?,
            Request::CgroupRead(plan) => return self.cgroup_read(number, plan),
            Request::Delete(plan) => return self.delete(number, plan.id),
            Request::Sync(_) => {
                if self.syncer.order(Waiting::Request(number)) {
                    return Ok(Answer::Other);
                }
            }
            Request::Spare(_) => self.make_spare()?,
            Request::Shutdown(_) => {
                rustix::fs::sync();
                sys::power_off()
            }
            Request::Network(plan) => self.network(plan)?,
            Request::NetworkChange(plan) => {
                let changed = self.slots()?.change(plan);
                changed.and(self.relay.listen(&plan.dns_relay, &self.poll))?;
            }
            Request::Processes(plan) => return self.list_processes(number, plan.id),
            Request::DnsReply(plan) => self.relay.answer(plan.query, plan.data),
            Request::ModuleData(plan) => self.loader.data(plan)?,
            Request::ModuleEnd(plan) => self.loader.end(plan)?,
        }
        Ok(Answer::Nil)
    }

    fn hello(&mut self, number: u64, hello: &Hello) -> Outcome<Answer> {
        if hello.version != VERSION {
            let message = format!("the host speaks version {}, the agent {VERSION}", hello.version);
            return Err(Failure::worded("hello", "version", errno::EPROTO, message));
        }
        let boot_ns = sys::clock(raw::CLOCK_BOOTTIME).step("hello", "clock")?;
        let name = rustix::system::uname();
        self.port.greeted = true;
        self.reply(number, |writer| {
            writer.map(5);
            writer.str("version");
            writer.uint(VERSION.into());
            writer.str("nonce");
            writer.bin(&hello.nonce);
            writer.str("agent");
            writer.str(env!("CARGO_PKG_VERSION"));
            writer.str("kernel");
            writer.str(&name.release().to_string_lossy());
            writer.str("boot_ns");
            writer.uint(boot_ns);
        });
        for note in core::mem::take(&mut self.notes) {
            answers::log(&mut self.port.out, "warning", &note);
        }
        Ok(Answer::Other)
    }

    /// Makes a spare init where there is none: the first container has taken the one of the boot.
    fn make_spare(&mut self) -> Outcome<()> {
        if self.spare.is_none() {
            let connected = self.slots.as_ref().map(Slots::connected);
            let spare = Spare::make(connected, self.usual_filter.as_ref());
            self.spare = Some(spare.step("spare", "init")?);
        }
        Ok(())
    }

    pub fn network(&mut self, plan: &Network) -> Outcome<()> {
        self.slots()?.set_up(plan)?;
        self.relay.listen(&plan.dns_relay, &self.poll)
    }

    fn slots(&mut self) -> Outcome<&mut Slots> {
        self.slots.as_mut().ok_or_else(|| Failure::new("network", "devices", errno::ENODEV))
    }

    /// Answers a request; what would not fit a frame becomes an error.
    pub fn reply(&mut self, number: u64, value: impl FnOnce(&mut Writer)) {
        let start = self.port.out.len();
        answers::reply(&mut self.port.out, number, value);
        let size = self.port.out.len() - start;
        if size > MAX_DATA {
            self.port.out.truncate(start);
            let message = format!("a reply of {size} bytes does not fit");
            self.refuse(number, &Failure::worded("reply", "", errno::EMSGSIZE, message));
        }
    }

    pub fn refuse(&mut self, number: u64, failure: &Failure) {
        let mut bytes = Vec::new();
        failure.write(&mut bytes);
        answers::refuse(&mut self.port.out, number, &bytes);
    }

    /// Tells the host of something that did not go well but does not matter to any request.
    pub fn warn(&mut self, message: &str) {
        answers::log(&mut self.port.out, "warning", message);
    }

    /// A number that has not been used before.
    pub fn new_key(&mut self) -> u32 {
        self.next_key += 1;
        self.next_key
    }

    pub fn container(&mut self, id: &str) -> Outcome<&mut Container> {
        let found = self.containers.iter_mut().find(|container| container.id == id);
        found.ok_or_else(|| {
            let message = format!("container {id:?} does not exist");
            Failure::worded("find", id, errno::ENOENT, message)
        })
    }

    /// The process of a container, if it has not ended.
    pub fn process(&mut self, id: &str, exec_id: Option<&str>) -> Outcome<&mut Process> {
        let key = self.container(id)?.key;
        let found = self.processes.iter_mut().find(|process| {
            let same = process.container == key && process.exec_id.as_deref() == exec_id;
            same && process.status.is_none()
        });
        let name = exec_id.unwrap_or(id);
        found.ok_or_else(|| Failure::new("process", name, errno::ESRCH))
    }

    /// Drains the signal descriptor: one SIGCHLD may stand for many children.
    fn reap(&mut self) {
        let mut record = [0u8; 128];
        while rustix::io::read(&self.signals, &mut record).is_ok_and(|count| count > 0) {}
        while let Some((pid, status)) = sys::reap() {
            self.ended(pid, status);
        }
    }
}

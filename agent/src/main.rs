//! cloche-agent: PID 1 of a cloche guest. It carries out what the host asks for over one
//! virtio-serial port (docs/protocol.md) and holds no policy of its own.
#![no_std]
#![no_main]

extern crate alloc;

mod agent;
mod boot;
mod bpf;
mod cgroup;
mod child;
mod console;
mod container;
mod copyup;
mod deletion;
mod dns;
mod fail;
mod files;
mod helper;
mod jobs;
mod lifecycle;
mod listing;
mod loader;
mod mounts;
mod network;
mod poll;
mod port;
mod process;
mod reap;
mod relay;
mod renew;
mod report;
mod share;
mod slate;
mod spare;
mod start;
mod streams;
mod syncer;
mod sys;
mod users;

use alloc::vec::Vec;

extern "C" fn main(stack: *const usize) -> ! {
    start::prepare_heap();
    if !rustix::process::getpid().is_init() {
        helper::run(&start::arguments(stack));
    }
    let mut notes = Vec::new();
    boot::leave_rootfs(&mut notes);
    boot::open_console();
    console::milestone("booted");
    boot::mount_all(&mut notes);
    boot::enable_controllers(&mut notes);
    boot::settle_scheduler(&mut notes);
    boot::lift_limits(&mut notes);
    boot::take_precedence(&mut notes);
    console::milestone("mounts done");
    boot::load_modules(&mut notes);
    console::milestone("modules loaded");
    boot::name_helper(&mut notes);
    boot::link_disks(&mut notes);
    let slots = boot::prepare_network(&mut notes);
    let port = boot::open_port();
    console::milestone("port open");
    let usual_filter = boot::load_usual_filter(&mut notes);
    let share = boot::mount_share(&mut notes);
    let spare = boot::make_spare(slots.as_ref(), usual_filter.as_ref(), &mut notes);
    let mut agent = agent::Agent::new(port, slots, usual_filter, spare, share, notes);
    console::milestone("ready");
    agent.serve()
}

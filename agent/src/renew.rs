//! What a clone of a saved VM must not share with the others: clock, random state, names.

use alloc::string::String;

use cloche_agent::messages::Renew;
use linux_raw_sys::ioctl::{RNDADDENTROPY, RNDRESEEDCRNG};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::fail::{Outcome, Step};
use crate::files;
use crate::sys;

/// struct rand_pool_info of random(4): bits of entropy, bytes of data, the data.
#[repr(C)]
struct Entropy {
    bits: i32,
    size: i32,
    data: [u8; Entropy::MOST],
}

impl Entropy {
    const MOST: usize = 512;
}

pub fn renew(fresh: &Renew) -> Outcome<()> {
    sys::set_time(fresh.realtime_ns).step("renew", "clock")?;
    reseed(fresh.seed).step("renew", "/dev/urandom")?;
    rustix::system::sethostname(fresh.hostname.as_bytes()).step("renew", "hostname")?;
    write_machine_id(fresh.machine_id).step("renew", "/run/machine-id")
}

fn reseed(seed: &[u8]) -> sys::Result<()> {
    if seed.len() > Entropy::MOST {
        return Err(Errno::TOOBIG);
    }
    let size = seed.len() as i32;
    let mut entropy = Entropy { bits: size * 8, size, data: [0; Entropy::MOST] };
    entropy.data[..seed.len()].copy_from_slice(seed);
    let device = files::open("/dev/urandom", OFlags::RDWR)?;
    // SAFETY: RNDADDENTROPY takes a rand_pool_info and reads `size` bytes of its data.
    unsafe { sys::ioctl(&device, RNDADDENTROPY, &mut entropy) }?;
    sys::ioctl_number(&device, RNDRESEEDCRNG, 0)?;
    Ok(())
}

fn write_machine_id(id: &str) -> sys::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let file = files::open("/run/machine-id", flags)?;
    let line = String::from(id) + "\n";
    rustix::io::write(&file, line.as_bytes()).map(drop)
}

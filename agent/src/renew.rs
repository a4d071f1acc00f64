//! What a clone of a saved VM must not share with the others: clock, random state, names.

use alloc::string::String;

use cloche_agent::messages::Renew;
use linux_raw_sys::ioctl::{RNDADDENTROPY, RNDRESEEDCRNG};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::{self, Errno};

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

/// What renewal needs, opened at boot: right after a restore every step that is not taken counts.
pub struct Renewer {
    random: OwnedFd,
    machine_id: OwnedFd,
}

impl Renewer {
    pub fn prepare() -> sys::Result<Renewer> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        Ok(Renewer {
            random: files::open("/dev/urandom", OFlags::RDWR)?,
            machine_id: files::open("/run/machine-id", flags)?,
        })
    }

    pub fn renew(&self, fresh: &Renew) -> Outcome<()> {
        sys::set_time(fresh.realtime_ns).step("renew", "clock")?;
        self.reseed(fresh.seed).step("renew", "/dev/urandom")?;
        rustix::system::sethostname(fresh.hostname.as_bytes()).step("renew", "hostname")?;
        let line = String::from(fresh.machine_id) + "\n";
        let written = io::pwrite(&self.machine_id, line.as_bytes(), 0);
        written.map(drop).step("renew", "/run/machine-id")
    }

    /// Mixes `seed` in, lets it count as entropy, and has the generator start anew from it.
    fn reseed(&self, seed: &[u8]) -> sys::Result<()> {
        if seed.len() > Entropy::MOST {
            return Err(Errno::TOOBIG);
        }
        let size = seed.len() as i32;
        let mut entropy = Entropy { bits: size * 8, size, data: [0; Entropy::MOST] };
        entropy.data[..seed.len()].copy_from_slice(seed);
        // SAFETY: RNDADDENTROPY takes a rand_pool_info and reads `size` bytes of its data.
        unsafe { sys::ioctl(&self.random, RNDADDENTROPY, &mut entropy) }?;
        sys::ioctl_number(&self.random, RNDRESEEDCRNG, 0)?;
        Ok(())
    }
}

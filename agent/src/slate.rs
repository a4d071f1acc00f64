//! Where a child that may make no system call any more writes down why it gives up.
//!
//! Once a container's seccomp filter is installed, nothing but execve(2) may depend on what it
//! allows. Memory that is shared with the agent can be written without a system call.

use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, AtomicU8, Ordering};

use rustix::mm::{self, MapFlags, ProtFlags};

use crate::sys::Result;

const SIZE: usize = 4096;

/// A page that processes share which are forked while it is there.
pub struct Slate(NonNull<Page>);

#[repr(C)]
struct Page {
    length: AtomicU32,
    bytes: [AtomicU8; SIZE - 4],
}

impl Slate {
    pub fn make() -> Result<Slate> {
        // SAFETY: a new mapping, where the kernel finds room for it.
        let page = unsafe {
            let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            mm::mmap_anonymous(ptr::null_mut(), SIZE, access, kind)?
        };
        let slate = Slate(NonNull::new(page.cast()).ok_or(rustix::io::Errno::NOMEM)?);
        // What is touched now does not have to be made when it is looked at (before a template is
        // saved, say).
        slate.page().length.store(0, Ordering::Relaxed);
        Ok(slate)
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped as long as the slate is there, and any bytes are a page.
        unsafe { self.0.as_ref() }
    }

    /// Writes `text` on it, as much as there is room for.
    pub fn write(&self, text: &[u8]) {
        let page = self.page();
        let length = text.len().min(page.bytes.len());
        for (cell, byte) in page.bytes.iter().zip(&text[..length]) {
            cell.store(*byte, Ordering::Relaxed);
        }
        page.length.store(length as u32, Ordering::Release);
    }

    /// What is written on it, once its writer is gone.
    pub fn read(&self) -> Option<Vec<u8>> {
        let page = self.page();
        match page.length.load(Ordering::Acquire) as usize {
            0 => None,
            length => Some(
                page.bytes.iter().take(length).map(|cell| cell.load(Ordering::Relaxed)).collect(),
            ),
        }
    }
}

impl Drop for Slate {
    fn drop(&mut self) {
        // SAFETY: nothing that was borrowed from it outlives it.
        let _ = unsafe { mm::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

//! Preloaded into QEMU: changes three things that are QEMU's own only by its libraries.
//!
//! It lets the 9p server make FIFOs, sockets and device nodes.
//!
//! QEMU's fix of CVE-2023-2861 (commit f6b0de53fb8) refuses to open special files on the host,
//! and with security_model=passthrough hits its own `mknod`: the new node is opened with O_PATH,
//! which gives no access to a device, only to set its mode; that open is refused too, and the
//! node is removed again. QEMU 9.2.1 and 10.0 leave O_PATH descriptors alone; Debian 12's 7.2
//! does not. Without this, `bind` of a Unix socket on a shared folder fails with ENXIO.
//!
//! So `fstat` calls a special file behind an O_PATH descriptor a regular one, which is what the
//! corrected QEMU amounts to. Symbolic links are told as they are: the same function looks for
//! those. Descriptors that can be read or written are not touched, so the CVE stays fixed.
//!
//! And it takes random numbers from the kernel. TCG's RDRAND comes from GnuTLS, whose generator
//! lives in QEMU's memory: all VMs thawed from one frozen QEMU would draw the same numbers.
//!
//! And the guest's memory can be a file that QEMU may not open by name: it opens that for writing,
//! even to map it copy-on-write. A name of `/cloche/fd/N` is the descriptor N that it was given.

#![no_std]

use libc::{c_char, c_int, c_long, c_void, mode_t, size_t, stat64};

const GIVEN: &[u8] = b"/cloche/fd/";

/// open(2); as that is variadic, what is passed as `mode` may be anything where it does not count.
///
/// # Safety
/// `path` must be a string, as for open(2).
#[no_mangle]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's string.
    if let Some(number) = given(path) {
        return number;
    }
    let flags = c_long::from(flags | libc::O_LARGEFILE);
    // SAFETY: as open(2) does it; the result is 32 bits wide.
    libc::syscall(
        libc::SYS_openat,
        c_long::from(libc::AT_FDCWD),
        path,
        flags,
        c_long::from(mode),
    ) as c_int
}

/// The same under its other name.
///
/// # Safety
/// As [`open64`].
#[no_mangle]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open64(path, flags, mode)
}

/// The same, as fortified programs call it: with no mode.
///
/// # Safety
/// As [`open64`].
#[no_mangle]
pub unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    open64(path, flags, 0)
}

/// The same under its other name.
///
/// # Safety
/// As [`open64`].
#[no_mangle]
pub unsafe extern "C" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    open64(path, flags, 0)
}

/// The number that a path below [`GIVEN`] ends with.
unsafe fn given(path: *const c_char) -> Option<c_int> {
    for (index, &expected) in GIVEN.iter().enumerate() {
        // SAFETY: all bytes before it were those of GIVEN, so the string has not ended yet.
        if *path.add(index) as u8 != expected {
            return None;
        }
    }
    let mut number: c_int = 0;
    let mut place = GIVEN.len();
    loop {
        // SAFETY: no byte before it was the string's end.
        match *path.add(place) as u8 {
            0 => return Some(number),
            digit @ b'0'..=b'9' if place < GIVEN.len() + 4 => {
                number = number * 10 + c_int::from(digit - b'0');
            }
            _ => return None,
        }
        place += 1;
    }
}

/// fstat(2) as glibc 2.33 and later name it for 64-bit file offsets.
///
/// # Safety
/// `status` must point to writable memory of a `struct stat`, as for fstat(2).
#[no_mangle]
pub unsafe extern "C" fn fstat64(fd: c_int, status: *mut stat64) -> c_int {
    let empty = c"".as_ptr();
    // SAFETY: the caller's pointer is handed on under fstat's own contract; the path is a string.
    let result = libc::syscall(libc::SYS_newfstatat, fd, empty, status, libc::AT_EMPTY_PATH);
    if result == 0 {
        // SAFETY: the kernel has just filled it in.
        let mode = &mut (*status).st_mode;
        let kind = *mode & libc::S_IFMT;
        let special = !matches!(kind, libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK);
        // SAFETY: F_GETFL takes no argument and changes nothing.
        if special && libc::fcntl(fd, libc::F_GETFL) & libc::O_PATH != 0 {
            *mode = *mode & !libc::S_IFMT | libc::S_IFREG;
        }
    }
    result as c_int
}

/// The same under its other name.
///
/// # Safety
/// As [`fstat64`]; on x86-64 both structures are one.
#[no_mangle]
pub unsafe extern "C" fn fstat(fd: c_int, status: *mut stat64) -> c_int {
    fstat64(fd, status)
}

/// gnutls_rnd(3): fills `data` with `length` random bytes; all levels are the kernel's.
///
/// # Safety
/// `data` must point to writable memory of that size.
#[no_mangle]
pub unsafe extern "C" fn gnutls_rnd(_level: c_int, data: *mut c_void, length: size_t) -> c_int {
    let mut done = 0;
    while done < length {
        // SAFETY: the caller's memory, less what is filled already.
        let count = libc::getrandom(data.add(done), length - done, 0);
        // Less than 0: a signal came; the kernel has no other reason here (getrandom(2)).
        done += usize::try_from(count).unwrap_or(0);
    }
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: abort takes nothing and does not return.
    unsafe { libc::abort() }
}

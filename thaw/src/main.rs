//! cloche-thaw becomes a QEMU that was frozen (docs/frozen.md): `cloche-thaw FD`, where FD is the
//! image of that process, made by cloche on the host.
//!
//! The image begins with a script: system calls, to be made one after the other, that map the
//! process's memory at the addresses where it was, open its descriptors, set its signal handlers
//! and its seccomp filter, and start its threads, each of which goes on where it was stopped. All
//! that is to be decided was decided when the script was written; here it is only carried out.
//!
//! Nothing may be allocated, and nothing called that is elsewhere in memory.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use linux_raw_sys::auxvec::{AT_EXECFN, AT_SYSINFO_EHDR};
use linux_raw_sys::general as raw;

global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rdi",
    "and $-16, %rsp",
    "call {main}",
    "ud2",
    main = sym main,
    options(att_syntax)
);

/// Where the script is mapped: below everything that Linux chooses addresses for.
const SCRIPT: u64 = 0x1000_0000;
const MAGIC: u64 = u64::from_le_bytes(*b"cloche-1");

/// What an image begins with.
#[repr(C)]
struct Header {
    magic: u64,
    /// Bytes of the script, this header included.
    size: u64,
    /// Address of the main thread's first step.
    begin: u64,
    /// Address of a struct prctl_mm_map, which gets the place of this program's arguments.
    map: u64,
}

/// Where in that structure they are, in words: their start and end, and the environment's.
const ARGUMENTS: usize = 7;

/// One step of a script.
#[repr(C)]
struct Step {
    /// The system call's number, or one of the `DO_` below.
    call: u64,
    arguments: [u64; 6],
    flags: u64,
}

/// Starts a thread: the arguments are those of clone(2), and the address of its first step.
const DO_SPAWN: u64 = 1 << 32;
/// The thread goes on from the signal frame at the first argument.
const DO_RETURN: u64 = DO_SPAWN + 1;

/// Keep the result: it is a descriptor that steps to come use.
const KEEP: u64 = 1;
/// The first, or the fifth, argument is what was kept.
const KEPT_FIRST: u64 = 2;
const KEPT_FIFTH: u64 = 4;
/// The first argument counts from the start of the vDSO.
const FROM_VDSO: u64 = 8;

unsafe extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel has put arguments, environment and auxiliary vector there.
    let (fd, vdso) = unsafe { (number(argument(stack)), auxiliary(stack, AT_SYSINFO_EHDR)) };
    let mut header = Header { magic: 0, size: 0, begin: 0, map: 0 };
    let size = core::mem::size_of::<Header>() as u64;
    // SAFETY: the buffer is of that size.
    let got = unsafe { call(raw::__NR_pread64, [fd, &raw mut header as u64, size, 0, 0, 0]) };
    if got != size as i64 || header.magic != MAGIC {
        fail(raw::__NR_pread64.into(), got);
    }
    let protection = u64::from(raw::PROT_READ | raw::PROT_WRITE);
    let flags = u64::from(raw::MAP_PRIVATE | raw::MAP_FIXED_NOREPLACE);
    // SAFETY: nothing is there yet, or it fails.
    let at = unsafe { call(raw::__NR_mmap, [SCRIPT, header.size, protection, flags, fd, 0]) };
    if at != SCRIPT as i64 {
        fail(raw::__NR_mmap.into(), at);
    }
    // SAFETY: the image was made by cloche for this address; only root can write to it.
    unsafe {
        // There is no environment: behind the arguments comes the program's path.
        let (start, end) = (*stack.add(1) as u64, auxiliary(stack, AT_EXECFN));
        let places = (header.map as *mut u64).add(ARGUMENTS);
        for (index, place) in [start, end, end, end].into_iter().enumerate() {
            places.add(index).write(place);
        }
        follow(header.begin as *const Step, vdso)
    }
}

/// Carries out the steps from `step` on.
///
/// # Safety
/// They end with `DO_RETURN`, and are such that this program's own memory stays.
unsafe fn follow(mut step: *const Step, vdso: u64) -> ! {
    let mut kept = 0;
    loop {
        // SAFETY: the caller's.
        let Step { call: number, mut arguments, flags } = unsafe { step.read() };
        if flags & KEPT_FIRST != 0 {
            arguments[0] = kept;
        }
        if flags & KEPT_FIFTH != 0 {
            arguments[4] = kept;
        }
        if flags & FROM_VDSO != 0 {
            arguments[0] = arguments[0].wrapping_add(vdso);
        }
        // SAFETY: the caller's.
        let result = unsafe {
            match number {
                DO_SPAWN => spawn(arguments),
                DO_RETURN => go_on(arguments[0]),
                _ => call(number as u32, arguments),
            }
        };
        if (-4095..0).contains(&result) {
            fail(number, result);
        }
        if flags & KEEP != 0 {
            kept = result as u64;
        }
        // SAFETY: another one follows, since this was no DO_RETURN.
        step = unsafe { step.add(1) };
    }
}

/// One system call.
///
/// # Safety
/// Whatever it does to memory must be right.
unsafe fn call(number: u32, [a, b, c, d, e, f]: [u64; 6]) -> i64 {
    let result;
    // SAFETY: the caller's; the kernel clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") i64::from(number) => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// clone(2) of a thread, which carries out the steps at the last argument.
///
/// # Safety
/// As for `call`; the stack is the new thread's alone.
unsafe fn spawn([flags, stack, parent_tid, child_tid, tls, steps]: [u64; 6]) -> i64 {
    let result;
    // SAFETY: the caller's; the new thread begins on its own stack, and never comes back here.
    unsafe {
        asm!(
            "syscall",
            "test %rax, %rax",
            "jnz 2f",
            "xor %ebp, %ebp",
            "mov %r9, %rdi",
            "call {begin}",
            "ud2",
            "2:",
            begin = sym begin,
            inlateout("rax") i64::from(raw::__NR_clone) => result,
            in("rdi") flags, in("rsi") stack, in("rdx") parent_tid, in("r10") child_tid,
            in("r8") tls, in("r9") steps,
            lateout("rcx") _, lateout("r11") _,
            options(att_syntax)
        );
    }
    result
}

unsafe extern "C" fn begin(steps: *const Step) -> ! {
    // SAFETY: the caller's; no step of a further thread counts from the vDSO.
    unsafe { follow(steps, 0) }
}

/// Has the kernel set all registers and the signal mask from a frame such as it puts on the stack
/// of a signal handler (rt_sigreturn(2)).
///
/// # Safety
/// The frame is that of a thread which goes on there.
unsafe fn go_on(frame: u64) -> ! {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "mov {frame}, %rsp",
            "syscall",
            "ud2",
            frame = in(reg) frame,
            in("rax") i64::from(raw::__NR_rt_sigreturn),
            options(att_syntax, noreturn)
        );
    }
}

/// The first argument, or an empty one.
///
/// # Safety
/// `stack` is what a program begins with.
unsafe fn argument(stack: *const usize) -> *const u8 {
    // SAFETY: the number of arguments comes first, then the arguments, the program's name at 0.
    unsafe {
        match *stack {
            0 | 1 => c"".as_ptr().cast(),
            _ => *stack.add(2) as *const u8,
        }
    }
}

/// The entry `wanted` of the auxiliary vector, or 0.
///
/// # Safety
/// `stack` is what a program begins with.
unsafe fn auxiliary(stack: *const usize, wanted: u32) -> u64 {
    // SAFETY: arguments, environment and vector each end with a 0.
    unsafe {
        let mut at = stack.add(1 + *stack + 1);
        while *at != 0 {
            at = at.add(1);
        }
        at = at.add(1);
        while *at != 0 {
            if *at == wanted as usize {
                return *at.add(1) as u64;
            }
            at = at.add(2);
        }
    }
    0
}

/// A decimal number.
///
/// # Safety
/// `text` is a C string.
unsafe fn number(mut text: *const u8) -> u64 {
    let mut value = 0u64;
    // SAFETY: NUL is no digit.
    unsafe {
        while (*text).is_ascii_digit() {
            value = value.wrapping_mul(10).wrapping_add(u64::from(*text - b'0'));
            text = text.add(1);
        }
    }
    value
}

/// Says which system call failed, and how, and ends.
fn fail(number: u64, result: i64) -> ! {
    let mut line = *b"cloche-thaw: call 00000000: error 00000000\n";
    digits(&mut line[18..26], number);
    digits(&mut line[34..42], result.unsigned_abs());
    // SAFETY: the line is that long; exit_group(2) does not come back.
    unsafe {
        call(raw::__NR_write, [2, line.as_ptr() as u64, line.len() as u64, 0, 0, 0]);
        call(raw::__NR_exit_group, [126, 0, 0, 0, 0, 0]);
        asm!("ud2", options(noreturn));
    }
}

fn digits(place: &mut [u8], mut value: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    fail(0, 0)
}

//! What a C library would bring: the entry point, the memory functions that the compiler calls,
//! the allocator and the panic handler.
//!
//! The agent is linked without libc: a tenth of the size, and less code to translate under TCG.

use alloc::vec::Vec;
use core::arch::global_asm;
use core::ffi::{c_char, CStr};
use core::panic::PanicInfo;
use core::ptr::addr_of_mut;

use talc::{locking::AssumeUnlockable, ClaimOnOom, Span, Talc, Talck};

use crate::console;

global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rdi",
    "and $-16, %rsp",
    "call {main}",
    "ud2",
    // Landing pads of the precompiled `alloc` refer to these; with panic=abort none is reached.
    ".globl _Unwind_Resume",
    "_Unwind_Resume:",
    ".globl rust_eh_personality",
    "rust_eh_personality:",
    "ud2",
    main = sym crate::main,
    options(att_syntax)
);

// Eight bytes a step: TCG executes a string instruction step by step.
global_asm!(
    ".globl memcpy",
    "memcpy:",
    "mov %rdi, %rax",
    "mov %rdx, %rcx",
    "shr $3, %rcx",
    "rep movsq",
    "mov %edx, %ecx",
    "and $7, %ecx",
    "rep movsb",
    "ret",
    ".globl memmove",
    "memmove:",
    "mov %rdi, %rcx",
    "sub %rsi, %rcx",
    "cmp %rdx, %rcx",
    "jae memcpy",
    "mov %rdi, %rax",
    "mov %rdx, %rcx",
    "lea -1(%rdi,%rdx), %rdi",
    "lea -1(%rsi,%rdx), %rsi",
    "std",
    "rep movsb",
    "cld",
    "ret",
    ".globl memset",
    "memset:",
    "mov %rdi, %r8",
    "movzbl %sil, %eax",
    "movabs $0x0101010101010101, %rcx",
    "imul %rcx, %rax",
    "mov %rdx, %rcx",
    "shr $3, %rcx",
    "rep stosq",
    "mov %edx, %ecx",
    "and $7, %ecx",
    "rep stosb",
    "mov %r8, %rax",
    "ret",
    ".globl bcmp",
    "bcmp:",
    ".globl memcmp",
    "memcmp:",
    "xor %ecx, %ecx",
    "2:",
    "cmp %rdx, %rcx",
    "je 3f",
    "movzbl (%rdi,%rcx), %eax",
    "movzbl (%rsi,%rcx), %r8d",
    "inc %rcx",
    "sub %r8d, %eax",
    "je 2b",
    "ret",
    "3:",
    "xor %eax, %eax",
    "ret",
    ".globl strlen",
    "strlen:",
    "xor %eax, %eax",
    "4:",
    "cmpb $0, (%rdi,%rax)",
    "je 5f",
    "inc %rax",
    "jmp 4b",
    "5:",
    "ret",
    options(att_syntax)
);

/// The program's arguments; `stack` is what the kernel has left at its start.
pub fn arguments(stack: *const usize) -> Vec<&'static CStr> {
    // SAFETY: execve(2) puts the number of arguments there, and after it as many pointers to
    // strings that nothing moves or changes.
    unsafe {
        let first = stack.add(1).cast::<*const c_char>();
        (0..*stack).map(|index| CStr::from_ptr(*first.add(index))).collect()
    }
}

/// Most memory that the agent may use: requests, and the streams' windows (256 KiB each way).
/// Pages are only taken once they are touched.
const HEAP: usize = 128 << 20;

static mut ARENA: [u8; HEAP] = [0; HEAP];

// SAFETY: the arena is used by nothing but the allocator; the agent has one thread (of the relay's
// process one only allocates) and allocates in no signal handler, so no lock is ever contended.
#[global_allocator]
static ALLOCATOR: Talck<AssumeUnlockable, ClaimOnOom> =
    Talc::new(unsafe { ClaimOnOom::new(Span::from_array(addr_of_mut!(ARENA))) }).lock();

/// Keeps the heap in small pages: a huge one would be zeroed, and split at every fork.
pub fn prepare_heap() {
    // SAFETY: the advice changes how the arena's pages are provided, not what is in them.
    unsafe { crate::sys::no_huge_pages(addr_of_mut!(ARENA).cast(), HEAP) };
}

/// Says where on the console, then takes the whole VM down: without its agent it is of no use.
#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    console::say(format_args!("panic: {info}"));
    crate::sys::power_off()
}

//! The check: is that vCPU running?
//!
//! In February 2017 the question on the kernel's mailing list was how few registers this can touch. The answer that
//! landed (Linux `dd0fd8bca185`): one. The per-vCPU offset goes into `rax`, the record's displacement is folded into
//! the compare, the argument is a `long` already, so nothing is sign-extended and nothing pushed:
//!
//! ```text
//! movq   per_vcpu_offset(,%rdi,8), %rax
//! cmpb   $0, steal_time+PREEMPTED(%rax)
//! setne  %al
//! ret
//! ```
//!
//! It is called from the lock slow paths by an inline-assembly `call` that tells the compiler just that: `rax` and the
//! flags are gone, every other register is as it was. The compiler keeps its loop variables where they are.
//!
//! The whole byte is compared with 0, as Linux' assembly does; any value but 0 means preempted.

#![expect(unsafe_code, reason = "the check is assembly, and so is its call")]

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use protocol::VcpuId;
use protocol::steal_time::StealTime;

use crate::differential::Form;
use crate::steal_time::{PER_VCPU_OFFSET, RECORDS};

/// All forms of the check that there are.
pub const FORMS: [Form; 1] = [Form { name: "landed", code: __vcpu_is_preempted }];

global_asm!(
    ".pushsection .text.vcpu_is_preempted, \"ax\", @progbits",
    ".globl __vcpu_is_preempted",
    ".type __vcpu_is_preempted, @function",
    ".balign 64",
    "__vcpu_is_preempted:",
    "movq   {per_vcpu_offset}(,%rdi,8), %rax",
    "cmpb   $0, {steal_time}+{preempted}(%rax)",
    "setne  %al",
    "ret",
    ".size __vcpu_is_preempted, . - __vcpu_is_preempted",
    ".popsection",
    per_vcpu_offset = sym PER_VCPU_OFFSET,
    steal_time = sym RECORDS,
    preempted = const offset_of!(StealTime, preempted),
    options(att_syntax)
);

unsafe extern "C" {
    /// Not to be called from Rust: it keeps what the C convention lets a function destroy.
    fn __vcpu_is_preempted();
}

/// Whether the host has taken `vcpu`, which wants to run, off its CPU.
///
/// A hint: it may have changed when this returns. `false` for every vCPU that has no record, or whose host does not
/// publish.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the point of the check is what it costs its caller's registers")]
pub fn vcpu_is_preempted(vcpu: VcpuId) -> bool {
    let preempted: u8;
    // SAFETY: `rdi` is a vCPU's index, within both tables that the check reads. It writes `al` (and the rest of
    // `rax`) and the flags, nothing else; the return address goes onto the stack, which is declared by not saying
    // `nostack`.
    unsafe {
        asm!(
            "call {check}",
            check = sym __vcpu_is_preempted,
            in("rdi") vcpu.index(),
            lateout("al") preempted,
            options(readonly)
        );
    }
    preempted != 0
}

#[cfg(test)]
mod tests {
    use protocol::MAX_VCPUS;

    use super::*;
    use crate::steal_time::testing::{exclusively, set_preempted};

    #[test]
    fn check_agrees_with_the_byte_for_every_vcpu_and_every_value() {
        exclusively(|| {
            for vcpu in VcpuId::first(MAX_VCPUS) {
                for value in 0..=u8::MAX {
                    set_preempted(vcpu, value);
                    assert_eq!(vcpu_is_preempted(vcpu), value != 0, "vCPU {vcpu}, byte {value}");
                }
                set_preempted(vcpu, 0);
            }
        });
    }

    #[test]
    fn check_of_one_vcpu_does_not_see_its_neighbours() {
        exclusively(|| {
            let middle = VcpuId::new(100).unwrap();
            set_preempted(middle, 1);
            let seen: Vec<_> = VcpuId::first(MAX_VCPUS).filter(|vcpu| vcpu_is_preempted(*vcpu)).collect();
            set_preempted(middle, 0);
            assert_eq!(seen, [middle]);
        });
    }

    /// The landed form, byte by byte: 8 + 7 + 3 + 1.
    #[test]
    fn check_has_19_bytes_and_saves_no_register() {
        let start = (__vcpu_is_preempted as *const ()).cast::<u8>();
        // SAFETY: the check is code, 19 bytes long, and code is readable.
        let code = unsafe { std::slice::from_raw_parts(start, 19) };
        assert_eq!(code[..4], [0x48, 0x8b, 0x04, 0xfd], "movq table(,%rdi,8), %rax");
        assert_eq!(code[8..10], [0x80, 0xb8], "cmpb $0, displacement(%rax)");
        assert_eq!(code[14..], [0, 0x0f, 0x95, 0xc0, 0xc3], "$0; setne %al; ret");
        assert_eq!(start.align_offset(64), 0);
    }
}

//! The check: is that vCPU running?
//!
//! A spinning waiter calls it in each iteration, so it must cost its caller nothing but time. This
//! is the form that Linux merged (`dd0fd8bca185`, 2017): four instructions, one register. The call
//! site is inline assembly that tells the compiler so: `rax` and the flags change, every other
//! register stays, and the compiler keeps its loop variables where they are.
//!
//! The whole byte is compared with 0, as in Linux: any value but 0 means preempted. The other forms
//! that the thread on the kernel's mailing list argued about lie in [`crate::lab::check_forms`].

#![expect(unsafe_code, reason = "the check is assembly, and so is its call")]

use core::arch::global_asm;
use core::mem::offset_of;

use protocol::VcpuId;
use protocol::kvm::StealTime;
use protocol::payload::params;

use crate::steal_time::{PER_VCPU_OFFSET, RECORDS};

/// A form of the check. Locks are generic over it.
pub trait Check: Copy {
    /// The name of this form on the command line.
    const FORM: params::Check;

    /// Returns whether the host has taken `vcpu` off its CPU although it wants to run.
    ///
    /// The answer is a hint: it may be stale when the function returns. It is `false` for every
    /// vCPU without a record, and on a host that does not publish.
    fn is_preempted(vcpu: VcpuId) -> bool;
}

// The code begins on a cache line, so that placement does not decide measurements.
global_asm!(
    ".pushsection .text.check_save0, \"ax\", @progbits",
    ".globl check_save0",
    ".type check_save0, @function",
    ".balign 64",
    "check_save0:",
    "movq   {per_vcpu_offset}(,%rdi,8), %rax",
    "cmpb   $0, {records}+{preempted}(%rax)",
    "setne  %al",
    "ret",
    ".size check_save0, . - check_save0",
    ".popsection",
    per_vcpu_offset = sym PER_VCPU_OFFSET,
    records = sym RECORDS,
    preempted = const offset_of!(StealTime, preempted),
    options(att_syntax)
);

unsafe extern "C" {
    // Not callable from Rust: it preserves registers that the C convention lets a function destroy.
    pub(crate) fn check_save0();
}

/// Defines a form of the check that destroys no register but `rax`. `$call` is the instruction that
/// calls `$code`.
macro_rules! callee_save {
    ($(#[$doc:meta])* $name:ident, $call:literal, $code:path) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl $crate::check::Check for $name {
            const FORM: protocol::payload::params::Check = protocol::payload::params::Check::$name;

            #[inline(always)]
            fn is_preempted(vcpu: protocol::VcpuId) -> bool {
                let preempted: u8;
                // SAFETY: `rdi` is a vCPU's index, within both tables that the check reads. The
                // check writes `rax` and the flags, and restores whatever else it changes. It uses
                // the stack, which is declared by the absence of `nostack`.
                unsafe {
                    core::arch::asm!(
                        $call,
                        check = sym $code,
                        in("rdi") vcpu.index(),
                        lateout("al") preempted,
                        options(readonly, att_syntax)
                    );
                }
                preempted != 0
            }
        }
    };
}
pub(crate) use callee_save;

callee_save! {
    /// The form that Linux merged: it saves no register. It is the default.
    Save0, "call {check}", check_save0
}

#[cfg(test)]
#[cfg(not(modelled))]
mod tests {
    use super::*;

    /// The merged form, byte by byte: 8 + 7 + 3 + 1.
    #[test]
    fn merged_check_has_19_bytes_and_saves_no_register() {
        let start = (check_save0 as *const ()).cast::<u8>();
        // SAFETY: the check is code, 19 bytes long, and code is readable.
        let code = unsafe { std::slice::from_raw_parts(start, 19) };
        assert_eq!(code[..4], [0x48, 0x8b, 0x04, 0xfd], "movq table(,%rdi,8), %rax");
        assert_eq!(code[8..10], [0x80, 0xb8], "cmpb $0, displacement(%rax)");
        assert_eq!(code[14..], [0, 0x0f, 0x95, 0xc0, 0xc3], "$0; setne %al; ret");
        assert_eq!(start.align_offset(64), 0);
    }
}

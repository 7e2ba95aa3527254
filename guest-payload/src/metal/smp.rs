//! The other vCPUs: started by INIT and SIPI, where no monitor has started them already.

#![expect(unsafe_code, reason = "copies the trampoline below 1 MiB")]

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use protocol::VcpuId;
use protocol::payload::TRAMPOLINE;

use super::entry::START_INFO;
use super::{clock, lapic};

/// vCPUs that have answered, the boot vCPU not counted.
static ANSWERED: AtomicUsize = AtomicUsize::new(0);

/// How many vCPUs there are, once the boot vCPU knows; until then 0.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The clock's rate (kHz), once the boot vCPU knows.
static KHZ: AtomicU32 = AtomicU32::new(0);

/// One more than the index of the vCPU that comes up a second time; 0 while none does.
static REBORN: AtomicUsize = AtomicUsize::new(0);

/// From INIT to SIPI.
const INIT_NS: u64 = 1_000_000;

/// Without a number to expect: nobody has answered for so long, so nobody will.
const SILENCE_NS: u64 = 100_000_000;

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// From the boot vCPU: starts all others, and gives how many there are in all.
pub(crate) fn start_others(start_info: u64, expected: Option<u16>, khz: u32) -> usize {
    if expected != Some(1) {
        lay_trampoline(start_info);
        lapic::send_init();
        let sent = clock::now();
        while clock::now().wrapping_sub(sent) < clock::cycles(INIT_NS, khz) {
            core::hint::spin_loop();
        }
        lapic::send_startup();
    }
    let count = match expected.map(usize::from) {
        Some(count) => {
            while ANSWERED.load(Ordering::Acquire) + 1 < count {
                core::hint::spin_loop();
            }
            count
        }
        None => 1 + wait_for_silence(khz),
    };
    KHZ.store(khz, Ordering::Relaxed);
    COUNT.store(count, Ordering::Release);
    count
}

/// From the boot vCPU: starts `vcpu`, which waits for it after an INIT, into its second life.
pub(crate) fn start_again(start_info: u64, vcpu: VcpuId) {
    lay_trampoline(start_info);
    REBORN.store(vcpu.index() + 1, Ordering::Release);
    lapic::send_startup_to(vcpu);
}

/// Whether `vcpu`, which is coming up, has lived before.
pub(crate) fn is_second_life_of(vcpu: VcpuId) -> bool {
    REBORN.load(Ordering::Acquire) == vcpu.index() + 1
}

/// From any other vCPU: answers, and waits for what the boot vCPU found out: how many vCPUs, and the clock's rate.
pub(crate) fn answer() -> (usize, u32) {
    ANSWERED.fetch_add(1, Ordering::AcqRel);
    loop {
        match COUNT.load(Ordering::Acquire) {
            0 => core::hint::spin_loop(),
            count => return (count, KHZ.load(Ordering::Relaxed)),
        }
    }
}

fn wait_for_silence(khz: u32) -> usize {
    let (mut answered, mut since) = (0, clock::now());
    while clock::now().wrapping_sub(since) < clock::cycles(SILENCE_NS, khz) {
        let now_answered = ANSWERED.load(Ordering::Acquire);
        if now_answered != answered {
            (answered, since) = (now_answered, clock::now());
        }
        core::hint::spin_loop();
    }
    answered
}

fn lay_trampoline(start_info: u64) {
    START_INFO.store(start_info, Ordering::Release);
    let (start, end) = (&raw const trampoline, &raw const trampoline_end);
    let to = core::ptr::with_exposed_provenance_mut::<u8>(TRAMPOLINE as usize);
    // SAFETY: the two symbols are the ends of the same constant; the page at TRAMPOLINE is RAM that nothing else uses.
    unsafe { to.copy_from_nonoverlapping(start, end.addr() - start.addr()) };
}

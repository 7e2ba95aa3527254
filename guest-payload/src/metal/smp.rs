//! Starts the other vCPUs by INIT and SIPI, unless the monitor has started them.

#![expect(unsafe_code, reason = "copies the trampoline below 1 MiB")]

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use protocol::VcpuId;
use protocol::payload::machine::TRAMPOLINE;

use super::entry::START_INFO;
use super::{clock, lapic};

/// Number of vCPUs that have answered, without the boot vCPU.
static ANSWERED: AtomicUsize = AtomicUsize::new(0);

/// Number of vCPUs, once the boot vCPU knows; 0 until then.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Rate of the clock (kHz), once the boot vCPU knows.
static KHZ: AtomicU32 = AtomicU32::new(0);

/// The vCPU that restarts, as one more than its index; 0 for none.
static RESTARTED: AtomicUsize = AtomicUsize::new(0);

/// Time from INIT to SIPI.
const INIT_NS: u64 = 1_000_000;

/// Time without a further answer after which all vCPUs are assumed to have answered.
const SILENCE_NS: u64 = 100_000_000;

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// Starts all other vCPUs from the boot vCPU. Returns the number of all vCPUs.
pub(crate) fn start_others(start_info: u64, expected: Option<u16>, khz: u32) -> usize {
    if expected != Some(1) {
        install_trampoline(start_info);
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
        None => 1 + count_answers(khz),
    };
    KHZ.store(khz, Ordering::Relaxed);
    COUNT.store(count, Ordering::Release);
    count
}

/// Starts `vcpu`, which has received INIT, once more.
pub(crate) fn restart(start_info: u64, vcpu: VcpuId) {
    install_trampoline(start_info);
    RESTARTED.store(vcpu.index() + 1, Ordering::Release);
    lapic::send_startup_to(vcpu);
}

/// Returns whether `vcpu`, which is coming up, is being restarted.
pub(crate) fn is_restart_of(vcpu: VcpuId) -> bool {
    RESTARTED.load(Ordering::Acquire) == vcpu.index() + 1
}

/// Answers the boot vCPU, and waits for what it found: the number of vCPUs, and the rate of the
/// clock (kHz).
pub(crate) fn answer() -> (usize, u32) {
    ANSWERED.fetch_add(1, Ordering::AcqRel);
    loop {
        match COUNT.load(Ordering::Acquire) {
            0 => core::hint::spin_loop(),
            count => return (count, KHZ.load(Ordering::Relaxed)),
        }
    }
}

fn count_answers(khz: u32) -> usize {
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

fn install_trampoline(start_info: u64) {
    START_INFO.store(start_info, Ordering::Release);
    let (start, end) = (&raw const trampoline, &raw const trampoline_end);
    let to = core::ptr::with_exposed_provenance_mut::<u8>(TRAMPOLINE as usize);
    // SAFETY: the two symbols delimit one constant, and the page at TRAMPOLINE is RAM without other
    // use.
    unsafe { to.copy_from_nonoverlapping(start, end.addr() - start.addr()) };
}

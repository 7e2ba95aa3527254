//! Prints the share of a CPU that a stranger gets beside a guest whose waiters ring the doorbell:
//! the monitor has nice 19, the stranger nice 0. The control rings without the option.
//!
//! `cargo run --release --example stranger_share`
#![expect(clippy::print_stdout, reason = "it prints its result")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use host::cpus::Cpus;
use host::stats::ThreadStats;
use host::thread::{Class, own_tid, set_own_class};
use lab::guest::{self, LabConfig};
use steal_time::publisher::PublisherKind;
use vmm::timings::Timings;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Returns the stranger's share, and the guest's rings and directed yields.
fn share(options: &str, cmdline: &str) -> Result<(f64, u64, u64)> {
    let cpu = Cpus::allowed()?.first(1);
    let is_over = Arc::new(AtomicBool::new(false));
    let (ends, pinned) = (Arc::clone(&is_over), cpu.clone());
    // It starts before the monitor's class is lowered
    let stranger = thread::spawn(move || -> io::Result<f64> {
        pinned.pin_this_thread().map_err(io::Error::other)?;
        let began = Instant::now();
        while !ends.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        let run_ns = ThreadStats::read(own_tid())?.run_ns;
        Ok(run_ns as f64 / began.elapsed().as_nanos() as f64)
    });
    let (options, cmdline) = (format!("job=contend lock=tas duration_ms=3000 {options}"), cmdline.to_owned());
    let monitor = thread::spawn(move || {
        let _ = set_own_class(Class::Tuned { nice: 19, slice_ns: 0 });
        let config = LabConfig::embedded(4, cpu, PublisherKind::Bpf, options, Duration::from_secs(30));
        let config = config.with(|guest| guest.cmdline = cmdline);
        guest::run(&config, io::sink(), Timings::since(Instant::now()))
    });
    let ended = monitor.join().map_err(|_| "the monitor's thread panicked")?;
    is_over.store(true, Ordering::Relaxed);
    let share = stranger.join().map_err(|_| "the stranger's thread panicked")??;
    let run = ended?;
    let report = run.report.ok_or("the guest has no report")?;
    let rings = report.vcpus.iter().map(|vcpu| vcpu.yields.load(Ordering::Relaxed)).sum();
    Ok((share, rings, run.vcpus.iter().map(|vcpu| vcpu.directed_yields).sum()))
}

fn main() -> Result<()> {
    set_own_class(Class::Fair)?;
    let [off, on] = [("", "wait=yield"), ("wait=yield", "")].map(|(options, line)| share(options, line));
    let ((without, off_rings, off_yields), (with, rings, yields)) = (off?, on?);
    println!("without the option: share {without:.3}, {off_rings} rings, {off_yields} directed yields");
    println!("with the option:    share {with:.3}, {rings} rings, {yields} directed yields");
    println!("with / without:     {:.3}", with / without);
    Ok(())
}

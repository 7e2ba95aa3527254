//! Criterion's figures for a host context switch, with and without the BPF program.
//!
//! `vmm-lab bench switch` compares the same settings in one run. Settings that the host does not
//! allow are skipped with the reason.

use criterion::Criterion;
use host::cpus::Cpus;
use host::stdio;
use lab::bench::switch::{Setting, last_of};

fn main() {
    let Ok(cpu) = Cpus::allowed().map(last_of) else {
        return stdio::eprintln("SKIPPED: cannot read the CPU affinity of this process");
    };
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let mut group = criterion.benchmark_group("switch");
    for setting in Setting::ALL {
        if let Err(error) = setting.time_of(1, &cpu) {
            stdio::eprintln(format_args!("SKIPPED {}: {error}", setting.name()));
            continue;
        }
        group.bench_function(setting.name(), |bencher| {
            bencher.iter_custom(|switches| setting.time_of(switches, &cpu).unwrap_or_default());
        });
    }
    group.finish();
    criterion.final_summary();
}

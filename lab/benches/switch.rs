//! What a host context switch takes, with and without the BPF program: criterion's figures of what `vmm-lab bench switch`
//! compares in one run. Where BPF is not allowed only the first can be had, and the others say why.

use criterion::Criterion;
use host::cpus::Cpus;
use lab::bench::switch::{Setting, last_of};

fn main() {
    let Ok(cpu) = Cpus::allowed().map(last_of) else {
        return eprintln!("SKIPPED: this process cannot tell which CPUs it may use");
    };
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let mut group = criterion.benchmark_group("switch");
    for setting in Setting::ALL {
        if let Err(error) = setting.time_of(1, &cpu) {
            eprintln!("SKIPPED {}: {error}", setting.name());
            continue;
        }
        group.bench_function(setting.name(), |bencher| {
            bencher.iter_custom(|switches| setting.time_of(switches, &cpu).unwrap_or_default());
        });
    }
    group.finish();
    criterion.final_summary();
}

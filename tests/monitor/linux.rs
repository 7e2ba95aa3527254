//! A Linux guest, whose steal-time code is not ours.
//!
//! The folder `VMM_TEST_LINUX` holds a small kernel (`vmlinux.zst`) and an initramfs
//! (`initramfs.cpio`). Its one program reports what the guest sees of steal time, line by line.
//! Without the folder these tests skip.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host::stats::ThreadStats;
use lab::guest::{self, LabConfig, LabRun};
use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use steal_time::publisher::{PublisherChoice, PublisherKind};
use vmm::guest::PayloadSource;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

use crate::support::{Exclusive, Fixture, cpus, judge_undisturbed, needs, skip};

/// A guest whose CPL 0 code KVM emulates takes some 20 s to boot four vCPUs on one CPU.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// The kernel, uncompressed, and its initramfs.
pub(crate) struct Linux {
    pub(crate) kernel: Vec<u8>,
    initrd: PathBuf,
}

impl Linux {
    pub(crate) fn find() -> Option<Self> {
        let Some(folder) = std::env::var_os("VMM_TEST_LINUX").filter(|folder| !folder.is_empty()) else {
            skip("VMM_TEST_LINUX names no folder with a small Linux kernel");
            return None;
        };
        let folder = Path::new(&folder);
        let packed = fs::File::open(folder.join("vmlinux.zst")).expect("VMM_TEST_LINUX holds vmlinux.zst");
        let mut kernel = Vec::new();
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).expect("it is a zstd file");
        decoder.read_to_end(&mut kernel).expect("it is whole");
        Some(Self { kernel, initrd: folder.join("initramfs.cpio") })
    }

    pub(crate) fn config(
        &self,
        vcpus: usize,
        publisher: PublisherKind,
        payload: &Fixture,
        cmdline: &str,
    ) -> LabConfig {
        let config = crate::support::guest(vcpus, publisher, "");
        config.with(|guest| {
            guest.memory_mib = 128;
            guest.payload = PayloadSource::File { path: payload.path.clone(), flat: false };
            guest.publisher = PublisherChoice::Only(publisher);
            cmdline.clone_into(&mut guest.cmdline);
            guest.initrd = Some(self.initrd.clone());
            guest.timeout = Some(LIMIT);
        })
    }
}

/// The console output of a guest, and the run delays of its vCPU threads at some lines.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Output>>);

#[derive(Default)]
struct Output {
    lines: Vec<String>,
    line: Vec<u8>,
    /// Run delay of each vCPU thread (ns) at the end of the first line with this tag.
    run_delays: BTreeMap<String, Vec<u64>>,
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut output = self.0.lock().unwrap();
        for byte in bytes {
            if *byte != b'\n' {
                output.line.push(*byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut output.line)).trim_end().to_owned();
            if let Some((tag, _)) = line.split_once('|').filter(|(tag, _)| !tag.contains(' ')) {
                output.run_delays.entry(tag.to_owned()).or_insert_with(run_delays);
            }
            output.lines.push(line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Run delays (ns) of the vCPU threads of this process, in the order of the vCPUs.
fn run_delays() -> Vec<u64> {
    let threads = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let by_vcpu = threads.flatten().filter_map(|thread| {
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let vcpu: usize = name.trim().strip_prefix("vcpu")?.parse().ok()?;
        let tid = thread.file_name().to_str()?.parse().ok()?;
        Some((vcpu, ThreadStats::read(tid).ok()?.run_delay_ns))
    });
    by_vcpu.collect::<BTreeMap<_, _>>().into_values().collect()
}

impl Log {
    pub(crate) fn lines_with(&self, part: &str) -> Vec<String> {
        let output = self.0.lock().unwrap();
        output.lines.iter().filter(|line| line.contains(part)).cloned().collect()
    }

    fn run_delays(&self, tag: &str) -> Vec<u64> {
        self.0.lock().unwrap().run_delays.get(tag).cloned().unwrap_or_else(|| panic!("no line {tag}|"))
    }

    /// The sum of the steal column of the guest's `/proc/stat` (ns), printed with this tag.
    fn stat_steal_ns(&self, tag: &str) -> u64 {
        let lines = self.lines_with(&format!("{tag}| cpu "));
        let ticks = lines.first().and_then(|line| line.split_ascii_whitespace().nth(9)?.parse::<u64>().ok());
        ticks.unwrap_or_else(|| panic!("{lines:?}")) * 10_000_000
    }
}

/// The number after `key=` or after the word `key`, in a line.
fn number(line: &str, key: &str) -> u64 {
    let words: Vec<_> = line.split([' ', '=']).collect();
    let place = words.iter().position(|word| *word == key).unwrap_or_else(|| panic!("no {key} in {line:?}"));
    words[place + 1].parse().unwrap_or_else(|_| panic!("{key} in {line:?}"))
}

/// The number in the word at `place` of a line, from 0.
fn number_at(line: &str, place: usize) -> u64 {
    let word = line.split_ascii_whitespace().nth(place);
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("word {place} of {line:?}"))
}

fn boot(config: &LabConfig) -> (LabRun, Log) {
    let log = Log::default();
    let _exclusive = Exclusive::take();
    let run = guest::run(config, log.clone(), Timings::since(Instant::now()));
    let run = run.expect("the guest can be run");
    let tail: Vec<_> = log.0.lock().unwrap().lines.iter().rev().take(8).rev().cloned().collect();
    assert!(matches!(run.monitor.outcome, Outcome::Reset), "{:?} after {tail:#?}", run.monitor.outcome);
    assert_eq!(log.lines_with("GUEST-DONE").len(), 1, "{tail:#?}");
    (run, log)
}

fn assert_within_5_percent(what: &str, guest_ns: u64, host_ns: u64) {
    let difference = guest_ns.abs_diff(host_ns) as f64 / host_ns as f64;
    eprintln!("{what}: guest {guest_ns} ns, host {host_ns} ns, {:.2} % apart", 100.0 * difference);
    assert!(difference <= 0.05, "{what}: guest {guest_ns} ns, host {host_ns} ns");
}

/// Linux e9532e69b8d1: after a CPU went down and up, a stale value made Linux show idle instead of
/// steal. CPU 1 goes down and up here with steal in between, and its steal does not fall and is the
/// host's run delay.
#[test]
fn linux_on_four_vcpus_of_one_cpu_registers_accounts_steal_and_sees_preemption() {
    const VCPUS: usize = 4;
    needs!(bpf);
    let Some(linux) = Linux::find() else { return };
    let payload = Fixture::file("vmlinux", &linux.kernel);
    let params = "load_ms=4000 ksample_ms=1000 hotplug=1";
    let config = linux.config(VCPUS, PublisherKind::Bpf, &payload, params);
    judge_undisturbed(|| {
        let (run, log) = boot(&config.clone().on(cpus().first(1)));

        // Each CPU registers its record. CPU 1 deregisters it when it is unplugged, and registers
        // the same again. At reboot all CPUs deregister
        let addresses: Vec<_> = (0..VCPUS)
            .map(|cpu| {
                let lines = log.lines_with(&format!("kvm-guest: stealtime: cpu {cpu}, msr "));
                let lines: Vec<_> = lines.iter().filter(|line| !line.starts_with("dmesg|")).collect();
                let values: Vec<_> =
                    lines.iter().map(|line| line.split("msr ").nth(1).unwrap().to_owned()).collect();
                let (address, off) = (values[0].clone(), "0 (off)".to_owned());
                let expected = match cpu {
                    1 => vec![address.clone(), off.clone(), address.clone(), off],
                    _ => vec![address.clone(), off],
                };
                assert_eq!(values, expected, "CPU {cpu}");
                address
            })
            .collect();
        assert!((1..VCPUS).all(|cpu| !addresses[..cpu].contains(&addresses[cpu])), "{addresses:?}");
        assert_eq!(run.vcpus.iter().map(|vcpu| vcpu.stats.exits.msr).sum::<u64>(), 2 * VCPUS as u64 + 2);
        assert_eq!(log.lines_with("hotplug down 1 ok").len() + log.lines_with("hotplug up 1 ok").len(), 2);

        let steal_of_1 = |tag| number_at(&log.lines_with(&format!("{tag}| cpu1 "))[0], 9);
        assert!(
            steal_of_1("stat2") >= steal_of_1("stat1") && steal_of_1("stat1") > 0,
            "CPU 1 went off and on"
        );

        // What user space saw of the records while all four spun
        let load = log.lines_with("load|");
        assert_eq!(load.len(), VCPUS);
        for line in &load {
            for never in ["self_preempted", "self_odd", "backward"] {
                assert_eq!(number(line, never), 0, "{line}");
            }
            assert!(number(line, "samples") > 1_000_000, "{line}");
            // While four spin, three are off the CPU whenever one samples
            let others: u64 = (0..VCPUS)
                .map(|cpu| format!("pre{cpu}"))
                .filter(|key| line.contains(&format!(" {key}=")))
                .map(|key| number(line, &key))
                .sum();
            let share = others as f64 / (number(line, "samples") as f64 * 3.0 / 4.0);
            assert!(share > 0.5, "{line}");
        }
        // What the kernel's vcpu_is_preempted() returned while the others spun
        let kernel = log.lines_with("rec1| kernel_samples");
        assert!(
            number(&kernel[0], "kernel_samples") > 100 && number(&kernel[0], "self_true") == 0,
            "{kernel:?}"
        );
        let seen = log.lines_with("rec1| cpu ");
        assert!(seen.iter().skip(1).all(|line| number(line, "sampled_true") > 0), "{seen:?}");
        assert_eq!(number(&seen[0], "sampled_true"), 0, "{seen:?}");

        // /proc/stat and the records, against the run delay on the host
        let grown: u64 =
            log.run_delays("stat1").iter().sum::<u64>() - log.run_delays("stat0").iter().sum::<u64>();
        assert!(grown > 4_000_000_000, "four vCPUs spin on one CPU for 4 s: {grown}");
        let stat = log.stat_steal_ns("stat1") - log.stat_steal_ns("stat0");
        assert_within_5_percent("steal in /proc/stat", stat, grown);
        for (cpu, host_ns) in log.run_delays("rec1").iter().enumerate() {
            let line = seen.iter().find(|line| number(line, "cpu") == cpu as u64).expect("its record");
            assert_within_5_percent(&format!("record of CPU {cpu}"), number(line, "steal"), *host_ns);
        }
    });
}

/// The kernel as a bzImage: a setup header, and a jump from the 64-bit entry to the kernel's entry.
fn bzimage_of(kernel: &[u8]) -> Vec<u8> {
    const KERNEL: u64 = 0x100_0000;
    const BEFORE: u64 = 0x1000;
    // mov $KERNEL, %rax; jmp *%rax
    const JUMP: [u8; 9] = [0x48, 0xc7, 0xc0, 0, 0, 0, 1, 0xff, 0xe0];
    let header = FileHeader64::<Endianness>::parse(kernel).expect("an ELF file");
    let endian = header.endian().unwrap();
    let mut body = vec![0; usize::try_from(BEFORE).unwrap()];
    body[0x200..0x200 + JUMP.len()].copy_from_slice(&JUMP);
    let mut room = 0;
    for segment in header.program_headers(endian, kernel).unwrap() {
        if segment.p_type(endian) == PT_LOAD {
            let start = usize::try_from(segment.p_paddr(endian) - KERNEL + BEFORE).unwrap();
            let content = segment.data(endian, kernel).unwrap();
            body.resize(body.len().max(start + content.len()), 0);
            body[start..start + content.len()].copy_from_slice(content);
            room = room.max(segment.p_paddr(endian) + segment.p_memsz(endian) - KERNEL + BEFORE);
        }
    }
    let mut image = vec![0; 1024];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup sectors
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]); // loaded high
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd below
    put(0x230, &0x1000_u32.to_le_bytes()); // alignment
    put(0x234, &[1, 12]); // relocatable
    put(0x236, &1_u16.to_le_bytes()); // has a 64-bit entry
    put(0x238, &2047_u32.to_le_bytes()); // command line
    put(0x258, &(KERNEL - BEFORE).to_le_bytes());
    put(0x260, &u32::try_from(room).unwrap().to_le_bytes());
    image.extend_from_slice(&body);
    image
}

#[test]
fn linux_as_a_bzimage_boots_by_the_64_bit_protocol() {
    needs!(bpf);
    let Some(linux) = Linux::find() else { return };
    let payload = Fixture::file("bzImage", &bzimage_of(&linux.kernel));
    let (run, log) = boot(&linux.config(2, PublisherKind::Bpf, &payload, "load_ms=500"));
    assert!(matches!(run.monitor.entry, vmm::boot::Entry::Long(0xff_f200)), "{:?}", run.monitor.entry);
    assert_eq!(log.lines_with("cpus=").first().map(String::as_str), Some("cpus=2"));
    assert_eq!(log.lines_with("load|").len(), 2);
    assert!(!log.lines_with("stealtime: cpu 1, msr 7").is_empty());
}

#[test]
fn linux_without_a_publisher_has_no_steal_time() {
    needs!(kvm);
    let Some(linux) = Linux::find() else { return };
    let payload = Fixture::file("vmlinux", &linux.kernel);
    let (_, log) = boot(&linux.config(2, PublisherKind::Off, &payload, "load_ms=300"));
    assert_eq!(log.lines_with("stealtime"), [""; 0]);
    assert_eq!(log.stat_steal_ns("stat1"), 0);
}

//! Tests of the loader: the scan of a BTF, relocation, error messages.

use std::io;
use std::os::fd::AsFd;

use aya_obj::Object;
use aya_obj::btf::{Btf, BtfKind};
use aya_obj::generated::bpf_insn;

use super::btf_writer::BtfWriter;
use super::kernel_btf::{BtfError, KernelLayout, PATH, TRACEPOINTS, WANTED};
use super::loader::{create, load};
use super::object::{BpfObject, HEAL, OBJECT, PAGES, SLOTS, STRANGER, SWITCH, VCPU_OF_TASK};
use super::*;

const KIND_FORWARD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;

/// Returns a small kernel BTF without the structs and typedefs named in `without`.
fn kernel_btf(without: &[&str]) -> Vec<u8> {
    let mut btf = BtfWriter::new();
    // One record of each kind that the scan skips, with the number of bytes that the kind has
    for (kind, count, added) in [
        (1, 0, &[32][..]),
        (2, 0, &[]),
        (3, 0, &[1, 1, 4]),
        (5, 1, &[0, 1, 0]),
        (6, 2, &[0, 0, 0, 1]),
        (KIND_FORWARD, 0, &[]),
        (9, 0, &[]),
        (10, 0, &[]),
        (11, 0, &[]),
        (12, 0, &[]),
        (13, 1, &[0, 1]),
        (14, 0, &[1]),
        (15, 1, &[1, 0, 4]),
        (16, 0, &[]),
        (17, 0, &[0]),
        (18, 0, &[]),
        (19, 1, &[0, 1, 0]),
    ] {
        btf.add("", kind, count, 0, added);
    }
    btf.add("task_struct", KIND_FORWARD, 0, 0, &[]);
    btf.add_struct("task_struct", &[]);
    btf.add_struct("rq", &[("clock_of_another_rq", 1, 8)]);
    for (name, members) in [
        (
            "task_struct",
            &[("thread_info", 1, 0), ("__state", 1, 24), ("se", 2, 128), ("sched_info", 3, 640)][..],
        ),
        ("sched_info", &[("pcount", 1, 0), ("run_delay", 1, 8), ("last_queued", 1, 24)]),
        ("sched_entity", &[("load", 1, 0), ("cfs_rq", 1, 168)]),
        ("cfs_rq", &[("rq", 1, 304)]),
        ("rq", &[("nr_running", 1, 0), ("clock", 1, 2456)]),
    ] {
        if !without.contains(&name) {
            btf.add_struct(name, members);
        }
    }
    for name in ["btf_trace_sched_switch_not"].into_iter().chain(TRACEPOINTS) {
        if !without.contains(&name) {
            btf.add(name, KIND_TYPEDEF, 0, 1, &[]);
        }
    }
    btf.into_bytes()
}

fn offsets(layout: &KernelLayout) -> Vec<Option<&[u32]>> {
    layout.offsets.iter().map(Option::as_deref).collect()
}

#[test]
fn scan_of_small_btf_finds_each_offset_and_the_typedef() {
    let layout = KernelLayout::scan(&kernel_btf(&[])).expect("a well-formed BTF");
    let expected: [Option<&[u32]>; 5] =
        [Some(&[24, 128, 640]), Some(&[8, 24]), Some(&[168]), Some(&[304]), Some(&[2456])];
    assert_eq!(offsets(&layout), expected);
    // 17 kinds, 3 namesakes, 5 structs, 1 namesake
    assert_eq!(layout.tracepoints, [27, 28, 29]);
}

#[test]
fn scan_of_struct_with_bit_fields_takes_the_offset_alone() {
    let mut btf = BtfWriter::new();
    for wanted in &WANTED[1..] {
        btf.add_struct(
            wanted.name,
            &wanted.fields.iter().map(|field| (field.name, 1, 8)).collect::<Vec<_>>(),
        );
    }
    let names = WANTED[0].fields.iter().map(|field| btf.string(field.name)).collect::<Vec<_>>();
    // The kind flag is set; the upper byte of the second offset is a width
    let members = [names[0], 1, 16 * 8, names[1], 1, (3 << 24) | (32 * 8), names[2], 1, 64 * 8];
    btf.add("task_struct", 1 << 7 | 4, 3, 0, &members);
    for name in TRACEPOINTS.iter().rev() {
        btf.add(name, KIND_TYPEDEF, 0, 1, &[]);
    }
    let layout = KernelLayout::scan(&btf.into_bytes()).expect("a well-formed BTF");
    assert_eq!(offsets(&layout)[0], Some(&[16, 32, 64][..]));
}

#[test]
fn scan_of_kernel_without_group_scheduling_leaves_the_clock_out() {
    let layout = KernelLayout::scan(&kernel_btf(&["sched_entity"])).expect("a well-formed BTF");
    assert_eq!(offsets(&layout)[2], None);
}

#[test]
fn scan_of_btf_without_a_necessary_type_names_it() {
    for what in ["task_struct", "sched_info"].into_iter().chain(TRACEPOINTS) {
        assert_eq!(KernelLayout::scan(&kernel_btf(&[what])), Err(BtfError::Missing { what }));
    }
}

#[test]
fn scan_of_truncated_btf_is_an_error_at_any_length() {
    let btf = kernel_btf(&[]);
    for length in 0..btf.len() {
        assert!(KernelLayout::scan(&btf[..length]).is_err(), "{length} of {} bytes", btf.len());
    }
}

/// Only a panic fails this test: any result of the scan is accepted.
#[test]
fn scan_of_corrupt_btf_never_panics() {
    let sound = kernel_btf(&[]);
    for at in 0..sound.len() {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut btf = sound.clone();
            btf[at] = value;
            let _ = KernelLayout::scan(&btf);
        }
    }
    for at in 0..sound.len() - 4 {
        let mut btf = sound.clone();
        btf[at..at + 4].fill(0xff);
        let _ = KernelLayout::scan(&btf);
    }
}

fn instructions(object: &Object, program: &str) -> Vec<bpf_insn> {
    object.functions[&object.programs[program].function_key()].instructions.clone()
}

/// Compares the scan and the small BTF with a general parser and the kernel's whole BTF.
#[test]
fn program_relocated_by_our_scan_equals_program_relocated_by_the_whole_kernel_btf() {
    let Ok(bytes) = std::fs::read(PATH) else {
        eprintln!("SKIPPED relocation against the whole kernel BTF: this kernel has no {PATH}");
        return;
    };
    let mut expected = Object::parse(&OBJECT.0).expect("the committed object");
    let kernel = Btf::parse(&bytes, expected.endianness).expect("the kernel's BTF");
    expected.relocate_btf(&kernel).expect("the committed object fits this kernel");

    let layout = KernelLayout::scan(&bytes).expect("the kernel's BTF");
    let ours = BpfObject::for_kernel(&layout).expect("the committed object fits this kernel").0;

    for program in [SWITCH, HEAL] {
        let bytes = |object| {
            let code = instructions(object, program);
            code.iter().map(|i| (i.code, i.dst_reg(), i.src_reg(), i.off, i.imm)).collect::<Vec<_>>()
        };
        assert_eq!(bytes(&ours), bytes(&expected), "{program}");
    }
    let tracepoints = TRACEPOINTS
        .map(|name| kernel.id_by_type_name_kind(name, BtfKind::Typedef).expect("in the kernel's BTF"));
    assert_eq!(layout.tracepoints, tracepoints);
}

/// Lets the verifier check the switch program for a kernel of this layout. Returns `None`, with a
/// message, without the privileges for BPF.
fn verify(layout: &KernelLayout, shorten_to: Option<usize>) -> Option<Result<(), BpfError>> {
    let mut object = BpfObject::for_kernel(layout).expect("the committed object");
    let btf = match syscall::load_btf(&object.btf().expect("the object's types")) {
        Ok(btf) => btf,
        Err(error) => {
            eprintln!("SKIPPED the verifier's part: cannot use BPF here: {error}");
            return None;
        }
    };
    let map = |name| create(&object, name, usize::from(name != VCPU_OF_TASK), btf.as_fd()).expect("a map");
    let maps = [VCPU_OF_TASK, SLOTS, PAGES, STRANGER].map(|name| (name, map(name)));
    object.relocate_maps(&maps.each_ref().map(|(name, fd)| (*name, fd.as_fd()))).expect("the object's maps");

    let mut program = object
        .program(SWITCH, Hook::Typed(layout.tracepoints[0]), btf.as_fd())
        .expect("the object's program");
    if let Some(length) = shorten_to {
        program.instructions = &program.instructions[..length];
        program.lines.records.clear();
    }
    Some(load(&program).map(drop))
}

#[test]
fn program_for_kernel_without_group_scheduling_passes_the_verifier() {
    let Ok(mut layout) = KernelLayout::of_running_kernel() else {
        eprintln!("SKIPPED relocation against the whole kernel BTF: this kernel has no {PATH}");
        return;
    };
    for (wanted, offsets) in WANTED.iter().zip(&mut layout.offsets) {
        if ["sched_entity", "cfs_rq", "rq"].contains(&wanted.name) {
            *offsets = None;
        }
    }
    if let Some(result) = verify(&layout, None) {
        result.expect("the guard of the clock's fields removes the path to them");
    }
}

#[test]
fn rejection_by_the_verifier_carries_the_end_of_its_log() {
    let Ok(layout) = KernelLayout::of_running_kernel() else {
        eprintln!("SKIPPED relocation against the whole kernel BTF: this kernel has no {PATH}");
        return;
    };
    match verify(&layout, Some(1)) {
        None => {}
        Some(Err(BpfError::Verifier { program, log, .. })) => {
            assert_eq!(program, SWITCH);
            assert!(log.contains("last insn is not an exit or jmp"), "{log}");
        }
        Some(other) => panic!("a program of one instruction: {other:?}"),
    }
}

#[test]
fn errors_that_another_publisher_avoids_name_it_and_no_option() {
    let refused = || io::Error::from_raw_os_error(libc::EPERM);
    let errors = [
        (BpfError::no_kernel_btf(refused()), PublisherKind::BpfClassic),
        (BpfError::kernel_btf("no task_struct".into()), PublisherKind::BpfClassic),
        (BpfError::relocation("no map".into()), PublisherKind::Kernel),
        (BpfError::no_thread_pidfd(io::Error::from_raw_os_error(libc::EINVAL)), PublisherKind::BpfClassic),
        (BpfError::no_tracefs(refused()), PublisherKind::Perf),
        (BpfError::tracepoint_format("prev_pid"), PublisherKind::Perf),
        (BpfError::from_kernel("load the BPF program")(refused()), PublisherKind::Perf),
        (
            BpfError::Verifier { program: "switch".into(), log: String::new(), source: refused() },
            PublisherKind::Kernel,
        ),
    ];
    for (error, instead) in errors {
        assert_eq!(error.alternative(), Some(instead), "{error}");
        assert!(!error.to_string().contains("--"), "a library's caller has no options: {error}");
    }
}

//! The committed BPF objects match their sources.

use std::fs;
use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol};
use sha2::{Digest, Sha256};

const SOURCE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../steal-time/bpf");

const SOURCES: [&str; 4] = ["record.bpf.h", "init.bpf.h", "steal_time.bpf.c", "steal_time_classic.bpf.c"];
const OBJECTS: [&str; 2] = ["steal_time.bpf.o", "steal_time_classic.bpf.o"];

fn sha256(path: &str) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).expect("a file of this repository")))
}

/// The record that `steal-time/bpf/build.sh` writes: the compiler, then the hash of each file.
fn record() -> String {
    fs::read_to_string(format!("{SOURCE_DIR}/steal_time.sha256")).expect("the record of the last build")
}

#[test]
fn committed_objects_were_built_from_the_committed_sources() {
    for file in SOURCES.into_iter().chain(OBJECTS) {
        let hash = sha256(&format!("{SOURCE_DIR}/{file}"));
        assert!(
            record().contains(&format!("{hash}  {file}\n")),
            "{file} changed: run steal-time/bpf/build.sh"
        );
    }
}

#[test]
fn objects_rebuilt_by_the_recorded_compiler_equal_the_committed_ones() {
    let recorded = record().lines().next().and_then(|line| line.strip_prefix("# ")).map(String::from);
    let version = Command::new("clang-14").arg("--version").output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).lines().next().map(String::from));
    if !matches!(&version, Ok(version) if *version == recorded) {
        return super::skip(&format!("the objects were built by {recorded:?}, here is {version:?}"));
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let build =
        Command::new(format!("{SOURCE_DIR}/build.sh")).arg(directory.path()).output().expect("a shell");
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    for object in OBJECTS {
        let rebuilt = fs::read(directory.path().join(object)).expect("the object");
        let committed = fs::read(format!("{SOURCE_DIR}/{object}")).expect("the object");
        assert!(rebuilt == committed, "{object} differs when it is rebuilt");
    }
}

/// A store of a BPF program into memory (`BPF_STX | BPF_MEM`): its size, register and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Store {
    opcode: u8,
    register: u8,
    offset: i16,
}

/// Opcodes of stores of 4, 8 and 1 bytes, and the fields of a record that they write.
const VERSION: (u8, i16) = (0x63, 8);
const STEAL: (u8, i16) = (0x7b, 0);
const PREEMPTED: (u8, i16) = (0x73, 16);

/// Returns the stores of function `name` in the order of its code.
fn stores(file: &object::File<'_>, name: &str) -> Vec<Store> {
    let function = file.symbols().find(|symbol| symbol.name() == Ok(name)).expect("a function");
    let section = file.section_by_index(function.section_index().expect("its section")).expect("a section");
    let begin = usize::try_from(function.address()).expect("a short section");
    let end = begin + usize::try_from(function.size()).expect("a short function");
    let code = &section.data().expect("its code")[begin..end];
    let store = |insn: &[u8]| Store {
        opcode: insn[0],
        register: insn[1] & 0x0f,
        offset: i16::from_le_bytes([insn[2], insn[3]]),
    };
    code.chunks_exact(8).map(store).filter(|store| matches!(store.opcode, 0x63 | 0x7b | 0x73)).collect()
}

/// Zhang, RFC of August 2026: KVM clears `preempted` before it publishes steal. The window between
/// two stores is too short for a reader to find it, so the order is read from the code.
#[test]
fn program_stores_steal_between_two_versions_and_clears_preempted_last() {
    let bytes = fs::read(format!("{SOURCE_DIR}/steal_time.bpf.o")).expect("the object");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let publication = [VERSION, STEAL, VERSION, PREEMPTED];
    // The healing program has another path, which only clears the byte
    for (name, others) in [("steal_switch", &[][..]), ("steal_heal", &[PREEMPTED])] {
        let all = stores(&file, name);
        let version = all.iter().find(|store| (store.opcode, store.offset) == VERSION);
        let record = version.expect("a store of the version").register;
        let of_record = all.iter().filter(|store| store.register == record);
        let fields: Vec<_> = of_record.map(|store| (store.opcode, store.offset)).collect();
        assert_eq!(fields, [others, &publication].concat(), "{name}");
    }
}

//! Commands without the rights for publisher `bpf`: their first line, and its cure.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{Ended, end_of, needs, skip, vmm_lab};

/// User and group without rights.
const UNPRIVILEGED: u32 = 65534;

/// A copy of the lab that an unprivileged user may run, beside a node of KVM that this user may
/// open.
struct UnprivilegedLab(TempDir);

impl UnprivilegedLab {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("its mode is set");
        std::fs::copy(env!("CARGO_BIN_EXE_vmm-lab"), folder.path().join("vmm-lab")).expect("a copy");
        Self(folder)
    }

    fn path(&self) -> String {
        self.0.path().join("vmm-lab").display().to_string()
    }

    /// Runs it as this user, after root has run `as_root` in a shell. `None`, and a message, if the
    /// user of the test cannot do that.
    fn run(&self, as_root: &str, command: &str) -> Option<Ended> {
        self.run_by("", as_root, command)
    }

    /// The same, started by the command `starter`.
    fn run_by(&self, starter: &str, as_root: &str, command: &str) -> Option<Ended> {
        let script = format!(
            r#"
            {{ node=$(dirname "$0")/kvm
            [ -e "$node" ] || mknod "$node" c 10 232
            chgrp {UNPRIVILEGED} "$node" && chmod 660 "$node" && mount --bind "$node" /dev/kvm && {as_root}; }} || exit 77
            exec setpriv --reuid {UNPRIVILEGED} --regid {UNPRIVILEGED} --clear-groups --inh-caps=-all {starter} "$0" "$@"
            "#
        );
        let mut unshare = Command::new("unshare");
        let unshare = unshare.args(["--mount", "sh", "-c", &script, &self.path()]);
        let ended = end_of(unshare.args(command.split(' ')));
        if ended.status == Some(77) || ended.stderr.contains("unshare") || ended.stderr.contains("setpriv") {
            skip(&format!("the test cannot become user {UNPRIVILEGED}: {}", ended.stderr.trim()));
            return None;
        }
        Some(ended)
    }
}

const RUN: &str = "run --vcpus 1 --job reset";
const LOCKS: &str = "bench locks --lock tas --overcommit 1 --rounds 1 --duration-ms 50 --retries 0";
const POLICIES: &str =
    "bench policies --policy rr --lock tas --overcommit 1 --rounds 1 --duration-ms 50 --retries 0";
const STARTUP: &str = "bench startup --rounds 1";
/// Hides QEMU, whose start takes seconds on some hosts.
const WITHOUT_QEMU: &str = "/nowhere";
const ACCURACY: &str = "accuracy --publishers bpf --duration-ms 100";

#[test]
fn first_line_without_rights_names_the_right_its_cost_and_the_setcap_line() {
    needs!(bpf, two_cpus, program("unshare"), program("setpriv"));
    let lab = UnprivilegedLab::new();
    let cure = format!("Cure: sudo setcap cap_bpf,cap_perfmon,cap_sys_nice+ep {}", lab.path());
    let costs =
        ["so figures understate what the byte is worth", "so the byte is worth nothing", "is not measured"];
    for command in [RUN, LOCKS, POLICIES, STARTUP, ACCURACY] {
        let Some(ended) = lab.run_by(&format!("env PATH={WITHOUT_QEMU}"), "true", command) else { return };
        assert_eq!(ended.status, Some(0), "{command}: {ended:?}");
        let first = ended.stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with("Publisher ") && first.ends_with(&cure), "{command}: {ended:?}");
        assert!(first.contains("CAP_BPF and CAP_PERFMON are missing"), "{first}");
        assert!(costs.iter().any(|cost| first.contains(cost)), "{first}");
        assert_eq!(ended.stderr.matches("setcap").count(), 1, "it is printed once: {ended:?}");
        if [LOCKS, POLICIES].contains(&command) {
            let reason = " (auto: CAP_BPF and CAP_PERFMON are missing)";
            assert!(ended.stdout.contains(reason), "the table names the reason: {ended:?}");
        }
    }
    let quiet = lab.run("true", &format!("{RUN} --quiet")).expect("it ran before");
    assert_eq!((quiet.status, quiet.stderr.as_str()), (Some(0), ""));
}

#[test]
fn first_line_with_rights_names_nothing_missing() {
    needs!(bpf, two_cpus);
    for command in [RUN, LOCKS, POLICIES, STARTUP, ACCURACY] {
        let ended = end_of(vmm_lab(command.split(' ')).env("PATH", WITHOUT_QEMU));
        assert_eq!(ended.status, Some(0), "{command}: {ended:?}");
        assert!(!ended.stderr.contains("setcap") && !ended.stderr.contains("Publisher "), "{ended:?}");
        assert!(!ended.stdout.contains("missing"), "{ended:?}");
    }
}

#[test]
fn setcap_line_gives_an_unprivileged_user_the_best_publisher() {
    needs!(bpf, program("unshare"), program("setpriv"), program("setcap"));
    let lab = UnprivilegedLab::new();
    let Some(before) = lab.run("true", RUN) else { return };
    let line = before.stderr.split("sudo ").nth(1).expect("a line to type").trim().to_owned();
    let Some(after) = lab.run(&line, RUN) else { return };
    assert_eq!((after.status, after.stderr.as_str()), (Some(0), ""), "{after:?}");
    assert!(after.stdout.contains("publisher bpf (the most accurate"), "{after:?}");
}

#[test]
fn demonstration_without_rights_says_what_its_figures_understate() {
    needs!(bpf, program("unshare"), program("setpriv"), program("timeout"));
    let lab = UnprivilegedLab::new();
    // All points take 15 s and more; the first are enough.
    let stopped = "timeout --preserve-status --signal INT 6";
    let Some(ended) = lab.run_by(stopped, "true", "--cpus 0") else { return };
    assert_eq!(ended.status, Some(130), "{ended:?}");
    let first = ended.stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with("Publisher ") && first.contains("setcap"), "{ended:?}");
    assert!(ended.stdout.contains("(auto: CAP_BPF and CAP_PERFMON are missing)"), "{ended:?}");
    let caveats = ["these figures understate what it is worth", "these figures do not show what"];
    assert!(caveats.iter().any(|caveat| ended.stdout.contains(caveat)), "{ended:?}");
}

//! The command line of `vmm`. A program built on this monitor takes the same guest options.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use host::cpus::{CpuError, Cpus};
use host::{stdio, termination};
use protocol::payload::params::Start;
use steal_time::publisher::{PublisherChoice, PublisherKind};

use crate::guest::{GuestConfig, PayloadSource};

/// Default size of guest memory (MiB).
const DEFAULT_MEMORY_MIB: u64 = 128;

/// The exit statuses, for the end of the help.
const EXIT_STATUS: &str = "\
Exit status:
  0    the guest reset the machine
  1    the monitor failed
  2    the command line is invalid
  3    a vCPU crashed; its registers are printed
  4    the timeout expired
  130  the user ended the run
  Otherwise it is the value that the guest wrote to the exit port, 0xf4.";

/// Maximum timeout: a year.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A small KVM monitor: boots one guest and gives it correct steal time
#[derive(Debug, Parser)]
#[command(after_help = EXIT_STATUS)]
#[command(version, mut_arg("payload", |arg| arg.required(true)))]
pub struct Cli {
    /// The guest to boot.
    #[command(flatten)]
    pub guest: GuestArgs,
}

/// Options of one guest.
#[derive(Debug, Args)]
pub struct GuestArgs {
    /// Number of vCPUs, 1 to 255 [default: 1]
    #[arg(long, value_name = "N")]
    pub vcpus: Option<usize>,
    /// File to boot: an ELF kernel (PVH or 64-bit), or a bzImage
    #[arg(long, value_name = "FILE")]
    pub payload: Option<PathBuf>,
    /// Load the payload as a flat binary at 1 MiB, and enter it there
    #[arg(long, requires = "payload")]
    pub flat: bool,
    /// Size of guest memory [default: 128]
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// Host CPUs for the vCPU threads, as in 0,2-3 [default: all that this process may use]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Publisher of the steal-time records: auto, bpf, bpf-classic, perf, monitor, kernel or off
    #[arg(long, value_name = "PUBLISHER", default_value = "auto", value_parser = choice)]
    pub publisher: PublisherChoice,
    /// Command line of the guest kernel
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Print only what the guest sends on COM1
    #[arg(long)]
    pub quiet: bool,
    /// End the run after this time, with exit status 4
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Print when the run reached its milestones
    #[arg(long)]
    pub timings: bool,
}

impl GuestArgs {
    /// Returns whether any option describes a guest.
    pub fn is_given(&self) -> bool {
        self.vcpus.is_some()
            || self.payload.is_some()
            || self.memory.is_some()
            || self.cmdline.is_some()
            || self.initrd.is_some()
            || self.timeout.is_some()
            || self.timings
    }

    /// Makes `--timeout` the deadline of the process, which counts from its start.
    pub fn set_deadline(&self) {
        if let Some(timeout) = self.timeout {
            termination::set_deadline(timeout);
        }
    }

    /// Returns the configuration of the guest. It boots `embedded` unless the options name a file.
    ///
    /// # Errors
    /// [`CpuError`] if this process may not use the chosen CPUs.
    pub fn config(&self, embedded: &'static [u8]) -> Result<GuestConfig, CpuError> {
        Ok(GuestConfig {
            vcpus: self.vcpus.unwrap_or(1),
            memory_mib: self.memory.unwrap_or(DEFAULT_MEMORY_MIB),
            cpus: usable_cpus(self.cpus.as_ref())?,
            publisher: self.publisher,
            payload: match &self.payload {
                None => PayloadSource::Embedded(embedded),
                Some(path) => PayloadSource::File { path: path.clone(), flat: self.flat },
            },
            start: Start::Direct,
            cmdline: self.cmdline.clone().unwrap_or_default(),
            initrd: self.initrd.clone(),
            stdin: true,
            port_events: Vec::new(),
            timeout: self.timeout,
        })
    }
}

/// Prints a usage error in one line, or the requested help or version. Returns the exit status.
///
/// `program` is the command whose `--help` the line suggests.
pub fn refuse(error: &clap::Error, program: &str) -> u8 {
    let text = error.render();
    if !error.use_stderr() {
        let has_colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let printed = if has_colours { stdio::print(text.ansi()) } else { stdio::print(text) };
        return match printed {
            // The reader has gone, or does not read while the process is ending.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::WouldBlock) => 0,
            Err(error) => {
                stdio::eprintln(format_args!("Cannot print to standard output: {error}"));
                1
            }
            Ok(()) => 0,
        };
    }
    let text = text.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let is_hint = |line: &&str| !line.starts_with("Usage:") && !line.starts_with("For more information");
    let lines = text.lines().take_while(is_hint).map(str::trim).filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join(" ");
    stdio::eprintln(format_args!("{line} (see `{program} --help`)"));
    2
}

/// Returns `asked` if this process may use those CPUs, or all CPUs that it may use for `None`.
///
/// # Errors
/// [`CpuError::NotAllowed`] for other CPUs.
pub fn usable_cpus(asked: Option<&Cpus>) -> Result<Cpus, CpuError> {
    let allowed = Cpus::allowed()?;
    match asked {
        Some(cpus) => cpus.clone().within(&allowed),
        None => Ok(allowed),
    }
}

/// Parses the name of a publisher, or `auto`.
///
/// # Errors
/// The valid names.
pub fn choice(text: &str) -> Result<PublisherChoice, String> {
    if text == PublisherChoice::Auto.to_string() {
        return Ok(PublisherChoice::Auto);
    }
    publisher(text)
        .map(PublisherChoice::Only)
        .map_err(|what| format!("{what}; auto chooses the best one that works on this host"))
}

/// Parses the name of a publisher.
///
/// # Errors
/// The valid names.
pub fn publisher(text: &str) -> Result<PublisherKind, String> {
    let kind = PublisherKind::ALL.into_iter().find(|kind| kind.to_string() == text);
    kind.ok_or_else(|| "publishers are bpf, bpf-classic, perf, monitor, kernel and off".to_owned())
}

/// Parses a time in seconds, more than 0 and up to a year.
///
/// # Errors
/// The valid range.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "seconds are a number, as in 2.5".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(timeout) if !timeout.is_zero() && timeout <= MAX_TIMEOUT => Ok(timeout),
        _ => Err(format!("seconds are more than 0, and up to {}", MAX_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use steal_time::StealTimeError;
    use steal_time::bpf::BpfError;

    use super::*;
    use crate::error::VmmError;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn publishers_that_errors_suggest_can_be_chosen() {
        let refused = || io::Error::from_raw_os_error(libc::EPERM);
        let what = "load the BPF program";
        let errors: [StealTimeError; 4] = [
            BpfError::NotPermitted { what, needs: "CAP_BPF", source: refused() }.into(),
            BpfError::Verifier { program: "switch".into(), log: String::new(), source: refused() }.into(),
            StealTimeError::KernelLacksStealTime,
            StealTimeError::MsrFilterMissing("KVM_CAP_X86_MSR_FILTER"),
        ];
        for message in errors.map(|error| VmmError::from(error).to_string()) {
            let suggested = message.split("--publisher ").nth(1).expect("an alternative is named");
            let name: String =
                suggested.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            assert!(choice(&name).is_ok(), "{name:?}: {message}");
        }
    }

    #[test]
    fn publishers_and_seconds_that_are_invalid_are_refused() {
        assert_eq!(choice("bpf"), Ok(PublisherChoice::Only(PublisherKind::Bpf)));
        assert!(choice("perfect").is_err());
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "inf", "NaN", "soon", "1e-12", "1e9", "18446744073709551615"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}

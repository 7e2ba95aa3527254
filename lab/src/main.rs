//! The `vmm-lab` binary: reads the command line, does what it says, prints what came of it.

use std::fmt::Display;
use std::io::{self, Write};
use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use host::facts::HostFacts;
use lab::accuracy;
use lab::bench;
use lab::cli::{AccuracyArgs, Cli, Command, ConformanceArgs, DemoArgs, RunArgs, usable_cpus};
use lab::conformance::report::Tap;
use lab::conformance::{self, Plan, Subject};
use lab::demo;
use lab::doctor;
use lab::error::Error;
use lab::guest::LabGuest;
use lab::output::OutputFile;
use lab::payload;
use lab::policy::catalogue::Catalogue;
use lab::render::{self, Summary};
use lab::render_sched::SessionSummary;
use lab::results::RunResult;
use lab::sched::dispatcher;
use lab::session;
use lab::trace::perfetto;
use vmm::supervise::Outcome;
use vmm::timings::Timings;

fn main() -> ExitCode {
    let began = Instant::now();
    abort_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return vmm::cli::refuse(&error, "vmm-lab"),
    };
    match run(cli, began) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("{}", error.line());
            ExitCode::from(error.status())
        }
    }
}

/// A panic is a defect, and what has panicked cannot go on; but a policy may be anybody's, and is asked no more.
fn abort_on_panic() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        tell(info);
        if !dispatcher::is_asking() {
            std::process::abort();
        }
    }));
}

fn run(cli: Cli, began: Instant) -> Result<u8, Error> {
    match cli.command {
        Some(Command::Doctor) => print(&doctor::examine())?,
        Some(Command::Policies) => print(&Catalogue)?,
        Some(Command::WritePayload { file }) => write_payload(&file)?,
        Some(Command::Bench(bench)) => {
            let bench = bench::run(bench)?;
            print(&bench)?;
            return Ok(status(bench.was_interrupted()));
        }
        Some(Command::Conformance(args)) => return conform(&args),
        Some(Command::Accuracy(args)) => return measure_accuracy(&args),
        Some(Command::Run(args)) => return run_guest(&args, began),
        None => return demonstrate(&cli.demo),
    }
    Ok(0)
}

fn demonstrate(args: &DemoArgs) -> Result<u8, Error> {
    let json = args.json.as_deref().map(OutputFile::at).transpose()?;
    let demo = demo::run(HostFacts::probe(), usable_cpus(args.cpus.as_ref())?, args.publisher, args.quiet)?;
    if let Some(json) = json {
        json.write(&demo)?;
    }
    if !args.quiet {
        print(&demo)?;
    }
    Ok(status(demo.interrupted))
}

/// Tries the protocol's assertions; status 1 when one is broken that is ours to keep.
fn conform(args: &ConformanceArgs) -> Result<u8, Error> {
    let json = args.json.as_deref().map(OutputFile::at).transpose()?;
    let publishers = args.publishers.iter().copied().map(Subject::Publisher);
    let qemu = [Subject::QemuKvm, Subject::QemuTcg].into_iter().filter(|_| args.qemu);
    let plan = Plan {
        host: HostFacts::probe(),
        cpus: usable_cpus(args.cpus.as_ref())?,
        subjects: publishers.chain(qemu).collect(),
    };
    let conformance = conformance::run(&plan, |subject| eprintln!("Trying {subject} ..."))?;
    if let Some(json) = json {
        json.write(&conformance)?;
    }
    if args.tap {
        print(&Tap(&conformance))?;
    } else {
        print(&conformance)?;
    }
    Ok(if conformance.is_kept() { status(conformance.interrupted) } else { 1 })
}

/// Measures byte accuracy, publisher by publisher.
fn measure_accuracy(args: &AccuracyArgs) -> Result<u8, Error> {
    let json = args.json.as_deref().map(OutputFile::at).transpose()?;
    let accuracy = accuracy::run(args, |publisher| eprintln!("Measuring {publisher} ..."))?;
    if let Some(json) = json {
        json.write(&accuracy)?;
    }
    print(&accuracy)?;
    Ok(status(accuracy.interrupted))
}

/// The exit status of work that the user may have ended before it was done.
fn status(was_interrupted: bool) -> u8 {
    if was_interrupted { Outcome::Interrupted.status() } else { 0 }
}

/// Runs guests under a policy, or several of them.
fn run_session(args: &RunArgs, began: Instant) -> Result<u8, Error> {
    let json = args.json.as_deref().map(OutputFile::at).transpose()?;
    let trace = args.sched.trace.as_deref().map(OutputFile::at).transpose()?;
    let config = args.sched.session(args.config()?, args.workload.seed());
    let run = session::run(&config, io::stdout, began)?;
    let result = run.result(&HostFacts::probe(), config.cpu_hog);
    if let Some(json) = json {
        json.write(&result)?;
    }
    if let (Some(file), Some(trace)) = (trace, run.trace()) {
        file.write_bytes(&perfetto::encode(&trace))?;
        if trace.lost > 0 {
            eprintln!("The trace is not complete: {} events found no room", trace.lost);
        }
    }
    if !args.guest.quiet {
        print(&SessionSummary(&result))?;
    }
    Ok(result.status())
}

fn run_guest(args: &RunArgs, began: Instant) -> Result<u8, Error> {
    if args.sched.is_given() {
        return run_session(args, began);
    }
    let json = args.json.as_deref().map(OutputFile::at).transpose()?;
    let config = args.config()?;
    let guest = LabGuest::start(&config, io::stdout(), Timings::since(began))?;
    if guest.has_terminal() && !args.guest.quiet {
        eprintln!("The terminal is the guest's: Ctrl-A x ends the run, Ctrl-A Ctrl-A is one Ctrl-A");
    }
    let run = guest.wait()?;
    let result = RunResult::new(HostFacts::probe(), &config, &run);
    if let Some(json) = json {
        json.write(&result)?;
    }
    if let Some(crash) = &result.outcome.crash {
        eprintln!("The guest crashed: {crash}");
    }
    if let Some(registers) = &result.outcome.registers {
        eprintln!("{registers}");
    }
    if !args.guest.quiet {
        print(&Summary(&result))?;
    }
    if args.guest.timings {
        eprint!("{}", render::timings(&result));
    }
    Ok(result.outcome.status)
}

fn write_payload(file: &Path) -> Result<(), Error> {
    std::fs::write(file, payload::BYTES)
        .map_err(|source| Error::WritePayload { path: file.to_owned(), source })
}

/// Prints, and does not panic where the reader has gone away.
fn print(what: &dyn Display) -> Result<(), Error> {
    match write!(io::stdout().lock(), "{what}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Error::Print),
    }
}

//! Builds the payload that the lab embeds.
//!
//! The payload needs code generation flags that a manifest cannot set, and stable cargo cannot use
//! one package's binary as an input of another. So this script runs cargo again, with its own
//! target directory: the outer cargo holds the lock of the usual one.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::{env, fs};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Absolute addresses, which the locks' slow paths need; no red zone; no unwinding.
const FLAGS: [&str; 5] = [
    "-Crelocation-model=static",
    "-Cno-redzone=yes",
    "-Cforce-unwind-tables=no",
    "-Cpanic=abort",
    "-Cstrip=debuginfo",
];

/// Variables that the outer cargo, clippy or a wrapper sets for the host, not for the payload.
const FOREIGN: [&str; 8] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
];
const FOREIGN_PREFIXES: [&str; 3] = ["CARGO_FEATURE_", "CARGO_CFG_", "CARGO_PROFILE_"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error=Cannot build the payload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"));
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let target_dir = PathBuf::from(variable("OUT_DIR")?).join("payload");
    for input in ["guest-payload", "protocol", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }

    let mut cargo = Command::new(variable("CARGO")?);
    cargo.current_dir(&root).args([
        "build",
        "--release",
        "--package",
        "guest-payload",
        "--bin",
        "guest-payload",
        "--features",
        "metal",
    ]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(&target_dir);
    for (name, _) in env::vars_os() {
        let is_foreign = name.to_str().is_some_and(|name| {
            FOREIGN.contains(&name) || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        });
        if is_foreign {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    let status = cargo.status().map_err(|error| format!("cargo does not start: {error}"))?;
    if !status.success() {
        return Err(format!("cargo ended with {status}"));
    }

    let elf = target_dir.join(TARGET).join("release/guest-payload");
    let elf = fs::canonicalize(&elf).map_err(|error| format!("{} is missing: {error}", elf.display()))?;
    println!("cargo::rustc-env=PAYLOAD_ELF={}", elf.display());
    Ok(())
}

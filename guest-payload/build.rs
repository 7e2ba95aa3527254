//! Passes linker arguments for the payload: a static ELF file without an operating system, laid out
//! by `link.ld`.

use std::env;
use std::path::PathBuf;

use protocol::payload::machine::{SUPERVISOR, TABLES};

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-changed=build.rs");
    // Either model checker replaces the processor's atomics.
    println!("cargo::rustc-check-cfg=cfg(modelled)");
    if ["LOOM", "SHUTTLE"].iter().any(|checker| env::var_os(format!("CARGO_FEATURE_{checker}")).is_some()) {
        println!("cargo::rustc-cfg=modelled");
    }
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let script = format!("-Wl,-T,{}", manifest.join("link.ld").display());
    let addresses = [
        ("SUPERVISOR_START", SUPERVISOR.start),
        ("SUPERVISOR_END", SUPERVISOR.end),
        ("TABLES_START", TABLES),
        // `core` refers to this symbol. The payload never unwinds.
        ("rust_eh_personality", 0),
    ];
    let addresses = addresses.map(|(name, address)| format!("-Wl,--defsym={name}={address:#x}"));
    let fixed = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--gc-sections",
        "-Wl,-z,noexecstack",
        "-Wl,-z,max-page-size=4096",
    ];
    for argument in fixed.iter().copied().chain(addresses.iter().map(String::as_str)).chain([script.as_str()])
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    // The check addresses its tables absolutely, as the kernel's does, so its host tests must lie
    // below 2 GiB. This undoes the compiler's own `-static-pie`, and what that implies.
    println!("cargo::rustc-link-arg=-no-pie");
    if env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|features| features.contains("crt-static")) {
        println!("cargo::rustc-link-arg=-static");
    }
}

//! Tells the crate what it is built from, for `skerry --version`: the commit, and the versions of the crates
//! that do TLS.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=SKERRY_COMMIT");
    println!("cargo::rerun-if-changed=Cargo.lock");
    // HEAD keeps its text while its branch gets commits; its log gets a line with each.
    if let Some(log) =
        git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists())
    {
        println!("cargo::rerun-if-changed={log}");
    }
    // The commit of the work tree; a package that is built outside of one sets the variable.
    let commit =
        std::env::var("SKERRY_COMMIT").ok().or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    println!("cargo::rustc-env=SKERRY_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    for (name, variable) in [("rustls", "SKERRY_RUSTLS"), ("aws-lc-rs", "SKERRY_AWS_LC_RS")] {
        println!("cargo::rustc-env={variable}={}", version(&lock, name).unwrap_or("unknown"));
    }
}

/// The line that git prints. `None`: it prints none, or fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}

/// The version of a crate in `Cargo.lock`.
fn version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let after = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?.1;
    after.split('"').next()
}

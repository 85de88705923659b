//! Tells the crate what it is built from, for `skerry --version`: the commit, and the versions of the crates
//! that do TLS.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=SKERRY_COMMIT");
    println!("cargo::rerun-if-changed=Cargo.lock");
    println!("cargo::rerun-if-changed=.git/HEAD");
    let commit = std::env::var("SKERRY_COMMIT").ok().or_else(commit);
    println!("cargo::rustc-env=SKERRY_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    for (name, variable) in [("rustls", "SKERRY_RUSTLS"), ("aws-lc-rs", "SKERRY_AWS_LC_RS")] {
        println!("cargo::rustc-env={variable}={}", version(&lock, name).unwrap_or("unknown"));
    }
}

/// The commit of the work tree; a package that is built outside of one sets `SKERRY_COMMIT`.
fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !commit.trim().is_empty()).then(|| commit.trim().to_owned())
}

/// The version of a crate in `Cargo.lock`.
fn version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let after = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?.1;
    after.split('"').next()
}

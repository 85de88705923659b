//! How a command line is read, the lab's too, which takes this file in by path: help goes to
//! standard output, a mistake is one line.

use std::io::{self, Write};

use clap::Parser;
use clap::error::ErrorKind;

/// The arguments, or an end: help on standard output, or a mistake as one line and exit code 2.
pub fn arguments<A: Parser>() -> A {
    let error = match A::try_parse() {
        Ok(arguments) => return arguments,
        Err(error) => error,
    };
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let program = A::command().get_name().to_owned();
    // Nobody reads it any more: nothing is left to do.
    let _ = writeln!(io::stderr(), "{program}: {}", one_line(&error.to_string()));
    std::process::exit(2);
}

/// What clap says in several paragraphs: the mistake and its tips, without the usage.
fn one_line(told: &str) -> String {
    let told = told.strip_prefix("error: ").unwrap_or(told);
    let told = told.replace("For more information, try", "try");
    let paragraphs = told.split("\n\n").filter(|paragraph| !paragraph.starts_with("Usage:"));
    let lines: Vec<String> = paragraphs
        .map(|paragraph| paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" "))
        .collect();
    lines.join("; ").trim_end_matches(['.', '\n']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clap_says_fits_a_line() {
        let told = "error: the following required arguments were not provided:\n  <URL>\n  <FILE>\n\n\
                    Usage: skerry explain <URL> <FILE>\n\nFor more information, try '--help'.\n";
        let line = "the following required arguments were not provided: <URL> <FILE>; \
                    try '--help'";
        assert_eq!(one_line(told), line);
    }
}

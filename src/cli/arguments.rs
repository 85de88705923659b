//! Reads the command line: help goes to standard output, a mistake is reported on one line. The
//! `simulation` crate includes this file by path.

use std::io::{self, Write};

use clap::Parser;
use clap::error::ErrorKind;

/// The parsed arguments. Exits after printing help to standard output (code 0), or a mistake as
/// one line to standard error (code 2).
pub fn arguments<A: Parser>() -> A {
    let error = match A::try_parse() {
        Ok(arguments) => return arguments,
        Err(error) => error,
    };
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let program = A::command().get_name().to_owned();
    // If standard error is closed, the message cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "{program}: {}", one_line(&error.to_string()));
    std::process::exit(2);
}

/// Joins clap's paragraphs (the mistake and its tips) into one line, without the usage.
fn one_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let message = message.replace("For more information, try", "try");
    let paragraphs = message.split("\n\n").filter(|paragraph| !paragraph.starts_with("Usage:"));
    let lines: Vec<String> = paragraphs
        .map(|paragraph| paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" "))
        .collect();
    lines.join("; ").trim_end_matches(['.', '\n']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_clap_becomes_one_line() {
        let message = "error: the following required arguments were not provided:\n  <URL>\n  <FILE>\n\n\
                    Usage: skerry explain <URL> <FILE>\n\nFor more information, try '--help'.\n";
        let line = "the following required arguments were not provided: <URL> <FILE>; \
                    try '--help'";
        assert_eq!(one_line(message), line);
    }
}

//! Reads the command line: help goes to standard output, a mistake is reported on one line. The
//! `simulation` crate includes this file by path.

use std::ffi::OsString;
use std::io::{self, Write};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command, Parser};

/// The parsed arguments. Exits after printing help to standard output (code 0), or a mistake as
/// one line to standard error (code 2).
pub fn arguments<A: Parser>() -> A {
    parsed().0
}

/// As [`arguments`], with the matches, which know where each value comes from.
pub fn parsed<A: Parser>() -> (A, ArgMatches) {
    let matches = A::command().try_get_matches();
    let parsed = matches.and_then(|matches| Ok((A::from_arg_matches(&matches)?, matches)));
    let error = match parsed {
        Ok(parsed) => return parsed,
        Err(error) => error,
    };
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let command = A::command();
    let line = one_line(&error.to_string());
    let line = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => {
            let given: Vec<OsString> = std::env::args_os().collect();
            let is_set = |variable: &str| std::env::var_os(variable).is_some();
            blame_variable(line, argument, &command, &given, is_set)
        }
        _ => line,
    };
    // If standard error is closed, the message cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "{}: {line}", command.get_name());
    std::process::exit(2);
}

/// Names the environment variable in a message about an argument, such as `--http <ADDR>`, that is not
/// on the command line.
fn blame_variable(
    line: String,
    argument: &str,
    command: &Command,
    given: &[OsString],
    is_set: impl Fn(&str) -> bool,
) -> String {
    let flag = argument.split([' ', '=']).next().unwrap_or_default();
    let is_given = |word: &OsString| {
        let word = word.to_string_lossy();
        word.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    if given.iter().any(is_given) {
        return line;
    }
    let of = |argument: &&clap::Arg| {
        argument.get_long().is_some_and(|long| flag == format!("--{long}"))
            && argument.get_env().is_some()
    };
    let subcommand = given.get(1).and_then(|word| command.find_subcommand(word));
    let variable = subcommand
        .unwrap_or(command)
        .get_arguments()
        .find(of)
        .and_then(|argument| argument.get_env()?.to_str())
        .filter(|variable| is_set(variable));
    match variable {
        Some(variable) => line.replacen(
            &format!("for '{argument}'"),
            &format!("of environment variable {variable}"),
            1,
        ),
        None => line,
    }
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
    fn a_value_from_the_environment_is_not_blamed_on_the_flag() {
        let http = clap::Arg::new("http").long("http").env("SKERRY_HTTP");
        let command = Command::new("skerry").subcommand(Command::new("run").arg(http));
        let line = "invalid value '80' for '--http <ADDR>': expected an address";
        let blamed = |given: &[&str]| {
            let given: Vec<OsString> = given.iter().map(OsString::from).collect();
            blame_variable(line.to_owned(), "--http <ADDR>", &command, &given, |_| true)
        };
        let variable =
            "invalid value '80' of environment variable SKERRY_HTTP: expected an address";
        assert_eq!(blamed(&["skerry", "run"]), variable);
        assert_eq!(blamed(&["skerry", "run", "--http", "80"]), line);
        assert_eq!(blamed(&["skerry", "run", "--http=80"]), line);
    }

    #[test]
    fn a_message_of_clap_becomes_one_line() {
        let message = "error: the following required arguments were not provided:\n  <URL>\n  <FILE>\n\n\
                    Usage: skerry explain <URL> <FILE>\n\nFor more information, try '--help'.\n";
        let line = "the following required arguments were not provided: <URL> <FILE>; \
                    try '--help'";
        assert_eq!(one_line(message), line);
    }
}

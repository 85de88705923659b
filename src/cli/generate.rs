//! `skerry completions` and `skerry man`: shell completions and man pages, generated from the commands.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::error::CommandError;
use super::output::print_bytes;

/// The arguments of `skerry completions`.
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell that will read them.
    shell: Shell,
}

/// The arguments of `skerry man`.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// Write one page for each command to this directory instead of the main page to standard output.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Prints the completions of `command`.
///
/// # Errors
/// Standard output is closed.
pub fn completions(
    arguments: &CompletionsArguments,
    mut command: Command,
) -> Result<(), CommandError> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    Ok(print_bytes(&script)?)
}

/// Prints the man page of `command`, or writes those of all its commands.
///
/// # Errors
/// Standard output is closed, or the directory cannot be written.
pub fn man(arguments: &ManArguments, command: Command) -> Result<(), CommandError> {
    let version = command.get_version().unwrap_or_default();
    let source = format!("{} {version}", command.get_name());
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let Some(directory) = &arguments.directory else {
        let mut out = Vec::new();
        page(&command, &source).render(&mut out).expect("a Vec can be written");
        return Ok(print_bytes(&out)?);
    };
    let written =
        std::fs::create_dir_all(directory).and_then(|()| write_pages(&command, &source, directory));
    written.map_err(|error| {
        let directory = directory.display();
        CommandError::Refused(format!("cannot write man pages to {directory}: {error}"))
    })
}

/// The page of a command. Its foot has `source`: the program with its version.
fn page(command: &Command, source: &str) -> Man {
    // Without a date the source would take its place.
    Man::new(command.clone()).date(" ").source(source).manual("Skerry")
}

/// Writes the pages of the command and of those below it.
fn write_pages(command: &Command, source: &str, directory: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below, source, directory)?;
    }
    page(command, source).generate_to(directory).map(drop)
}

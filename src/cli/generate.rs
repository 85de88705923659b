//! `skerry completions` and `skerry man`: shell completions and man pages, generated from the commands.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

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
    let Some(directory) = &arguments.directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).expect("a Vec can be written");
        return Ok(print_bytes(&page)?);
    };
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command, directory));
    written.map_err(|error| {
        let directory = directory.display();
        CommandError::Refused(format!("cannot write man pages to {directory}: {error}"))
    })
}

//! `skerry token`: generates a token of the admin API.

use clap::Args;

use super::CommandError;
use super::output::print;

/// The arguments of `skerry token`.
#[derive(Debug, Args)]
pub struct TokenArguments {
    /// Name of the token's owner, shown in the audit log.
    #[arg(value_parser = parse_name)]
    name: String,
    /// Permission: `all`, `read` (no changes), or `purge:SITE,SITE` (read, and purge these sites).
    #[arg(long, value_name = "PERMISSION", default_value = "all")]
    may: String,
}

/// Prints a new token and its line for the token file. `token_line`: formats the line from name,
/// permission and token.
///
/// # Errors
/// The forms of a permission.
pub fn run(
    arguments: &TokenArguments,
    token_line: fn(&str, &str, &str) -> Result<String, &'static str>,
) -> Result<(), CommandError> {
    let token = new_token();
    let line = token_line(&arguments.name, &arguments.may, &token)
        .map_err(|expected| format!("invalid value {:?} for --may: {expected}", arguments.may))?;
    Ok(print(&format!(
        "token (shown once, give it to the caller): {token}\nline for the admin.tokens file:           {line}\n"
    ))?)
}

fn parse_name(text: &str) -> Result<String, &'static str> {
    let is_word = !text.is_empty() && !text.starts_with('#') && !text.contains(char::is_whitespace);
    if is_word { Ok(text.to_owned()) } else { Err("expected one word without spaces") }
}

/// 256 random bits in hex.
fn new_token() -> String {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

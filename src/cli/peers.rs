//! `skerry peers`: makes the certificates by which the nodes of a fleet identify each other. Works without a
//! running node.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};

use super::CommandError;
use super::output::print;
use crate::peers::{CertificateOrder, IssuedCertificates, issue_certificates};

/// The commands of `skerry peers`.
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// Make a certificate for each node, and the authority of the fleet if the directory has none.
    #[command(
        after_help = "Examples:\n  skerry peers certificate edge-1 edge-2                  # in ./peers, with a new authority\n  skerry peers certificate edge-3 --directory /root/peers # the authority there signs it\n\nFiles that exist are never overwritten. To renew a certificate, move NAME.pem and NAME.key away first.\nKeep ca.key off the nodes: it signs certificates of further nodes, and nothing else needs it."
    )]
    Certificate(CertificateArguments),
}

/// The arguments of `skerry peers certificate`.
#[derive(Debug, Args)]
pub struct CertificateArguments {
    /// Names of the nodes, as in `node.name`.
    #[arg(required = true, value_name = "NODE")]
    names: Vec<String>,
    /// Directory of the authority (ca.pem, ca.key); the certificates are written there too.
    #[arg(long, value_name = "DIR", default_value = "peers")]
    directory: PathBuf,
    /// Days for which the certificates of the nodes are valid.
    #[arg(long, value_name = "DAYS", default_value_t = 397, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    days: u32,
    /// Days for which a new authority is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    authority_days: u32,
}

/// Runs a command of `skerry peers`.
///
/// # Errors
/// The certificate that cannot be made, or the file that cannot be written.
pub fn run(command: &PeersCommand, now: SystemTime) -> Result<(), CommandError> {
    let PeersCommand::Certificate(arguments) = command;
    let days = |days: u32| Duration::from_secs(u64::from(days) * 86_400);
    let order = CertificateOrder {
        directory: arguments.directory.clone(),
        names: arguments.names.clone(),
        lifetime: days(arguments.days),
        authority_lifetime: days(arguments.authority_days),
    };
    let issued = issue_certificates(&order, now).map_err(CommandError::Refused)?;
    Ok(print(&report(&issued))?)
}

/// Tells which files were written, and which belong on which node.
fn report(issued: &IssuedCertificates) -> String {
    let mut text = String::new();
    if let Some(key) = &issued.new_authority_key {
        let (authority, key) = (issued.authority.display(), key.display());
        text.push_str(&format!("authority  {authority}, key {key} (keep the key off the nodes)\n"));
    }
    for (name, certificate, key) in &issued.nodes {
        text.push_str(&format!("{name}  {}, key {}\n", certificate.display(), key.display()));
    }
    let ca = file_name(&issued.authority);
    text.push_str(&format!(
        "valid until {}\n\ncopy to each node {ca} and its own two files, and set in its configuration:\n",
        httpdate::fmt_http_date(issued.until)
    ));
    if let Some((_, certificate, key)) = issued.nodes.first() {
        let (certificate, key) = (file_name(certificate), file_name(key));
        text.push_str(&format!(
            "\n[peers]\naddresses = \"0.0.0.0:9443\"\nannounced = \"10.0.0.1:9443\"    # at which the other nodes reach this one\ncertificate = \"peers/{certificate}\"\nkey = \"peers/{key}\"\nca = \"peers/{ca}\"\n"
        ));
    }
    text
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A hundred years.
const DAYS_MAX: i64 = 36_525;

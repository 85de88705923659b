//! Flags and environment: what is stronger than the file.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The flags of `skerry run`. Each has an option in the file that it overrides; what the
/// environment sets is between the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SKERRY_CONFIG")]
    pub config: Option<PathBuf>,
    /// An origin to put the node in front of, for every host that no site of the file has; may
    /// be given several times.
    #[arg(long = "origin", value_name = "URL", env = "SKERRY_ORIGIN", value_delimiter = ',')]
    pub origins: Vec<String>,
    /// Listen here for HTTP (in place of the file's listeners without TLS).
    #[arg(long, value_name = "ADDR", env = "SKERRY_HTTP", value_delimiter = ',', value_parser = address)]
    pub http: Vec<SocketAddr>,
    /// Listen here for HTTPS (in place of the file's listeners with TLS).
    #[arg(long, value_name = "ADDR", env = "SKERRY_HTTPS", value_delimiter = ',', value_parser = address)]
    pub https: Vec<SocketAddr>,
    /// Listen here for the admin API.
    #[arg(long, value_name = "ADDR", env = "SKERRY_ADMIN", value_parser = address)]
    pub admin: Option<SocketAddr>,
    /// Keep the cache, the purge log and made certificates here.
    #[arg(long, value_name = "DIR", env = "SKERRY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Threads of the data path; one for each core as shipped.
    #[arg(long, value_name = "N", env = "SKERRY_WORKERS")]
    pub workers: Option<usize>,
    /// What this node is called.
    #[arg(long, env = "SKERRY_NAME")]
    pub name: Option<String>,
    /// The purge bus: redis://, rediss://, redis+sentinel:// or redis+cluster://.
    #[arg(long, value_name = "URL", env = "SKERRY_REDIS", hide_env_values = true)]
    pub redis: Option<String>,
    /// Where this node is.
    #[arg(long, env = "SKERRY_REGION")]
    pub region: Option<String>,
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "expected address and port, such as 127.0.0.1:8080 or [::]:443")
}

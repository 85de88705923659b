//! Command-line flags and environment variables, which override the configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The flags of `skerry run`. A flag overrides its environment variable, which overrides the
/// option in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// Configuration file (TOML); config/edge.toml documents every option.
    #[arg(long, value_name = "FILE", env = "SKERRY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Origin URL for every host that no site in the file matches; repeatable.
    #[arg(long = "origin", value_name = "URL", env = "SKERRY_ORIGIN", value_delimiter = ',')]
    pub origins: Vec<String>,
    /// Listen address for HTTP; replaces the listeners without TLS in the file; repeatable.
    #[arg(long, value_name = "ADDR", env = "SKERRY_HTTP", value_delimiter = ',', value_parser = address)]
    pub http: Vec<SocketAddr>,
    /// Listen address for HTTPS; replaces the listeners with TLS in the file; repeatable.
    #[arg(long, value_name = "ADDR", env = "SKERRY_HTTPS", value_delimiter = ',', value_parser = address)]
    pub https: Vec<SocketAddr>,
    /// Listen address of the admin API.
    #[arg(long, value_name = "ADDR", env = "SKERRY_ADMIN", value_parser = address)]
    pub admin: Option<SocketAddr>,
    /// Directory for the disk cache, the purge log and generated certificates.
    #[arg(long, value_name = "DIR", env = "SKERRY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Number of worker threads [default: one per core].
    #[arg(long, value_name = "N", env = "SKERRY_WORKERS")]
    pub workers: Option<usize>,
    /// Node name in logs, metrics and purge receipts [default: the host name].
    #[arg(long, env = "SKERRY_NAME")]
    pub name: Option<String>,
    /// Redis URL of the purge bus: redis://, rediss://, redis+sentinel:// or redis+cluster://.
    #[arg(long, value_name = "URL", env = "SKERRY_REDIS", hide_env_values = true)]
    pub redis: Option<String>,
    /// Region name of this node, free text for logs and the fleet view.
    #[arg(long, env = "SKERRY_REGION")]
    pub region: Option<String>,
    /// The flags, such as `--http`, whose value is that of their environment variable, with its name.
    #[arg(skip)]
    pub from_environment: Vec<(String, String)>,
}

impl Flags {
    /// For messages: the flag, or the environment variable that was used instead.
    pub(super) fn source<'a>(&'a self, flag: &'a str) -> &'a str {
        let used = self.from_environment.iter().find(|(other, _)| other == flag);
        used.map_or(flag, |(_, variable)| variable)
    }
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "expected IP address and port, such as 127.0.0.1:8080 or [::]:443")
}

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
    #[arg(long, value_name = "ADDR", env = "SKERRY_ADMIN", value_parser = admin_address)]
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
    /// Region of this node; the nodes of a region are one cache.
    #[arg(long, env = "SKERRY_REGION")]
    pub region: Option<String>,
    /// The flags, such as `--http`, whose value is that of their environment variable, with its name.
    #[arg(skip)]
    pub from_environment: Vec<(String, String)>,
}

/// The flags of `skerry check`: a configuration may be valid only with those of the node, such as `SKERRY_REDIS` of its service.
/// The address of the admin API is not among them, because `SKERRY_ADMIN` may name another node.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct CheckFlags {
    /// The node's data directory: checks that the disk cache fits its file system.
    #[arg(long, value_name = "DIR", env = "SKERRY_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// As for skerry run.
    #[arg(long = "origin", value_name = "URL", env = "SKERRY_ORIGIN", value_delimiter = ',')]
    origins: Vec<String>,
    /// As for skerry run.
    #[arg(long, value_name = "ADDR", env = "SKERRY_HTTP", value_delimiter = ',', value_parser = address)]
    http: Vec<SocketAddr>,
    /// As for skerry run.
    #[arg(long, value_name = "ADDR", env = "SKERRY_HTTPS", value_delimiter = ',', value_parser = address)]
    https: Vec<SocketAddr>,
    /// As for skerry run.
    #[arg(long, env = "SKERRY_NAME")]
    name: Option<String>,
    /// As for skerry run.
    #[arg(long, value_name = "URL", env = "SKERRY_REDIS", hide_env_values = true)]
    redis: Option<String>,
    /// As for skerry run.
    #[arg(long, env = "SKERRY_REGION")]
    region: Option<String>,
}

impl CheckFlags {
    /// The flags of a node that reads this file. `from_environment`: see [`Flags::from_environment`].
    pub fn of_node(self, file: PathBuf, from_environment: Vec<(String, String)>) -> Flags {
        let Self { data_dir, origins, http, https, name, redis, region } = self;
        Flags {
            config: Some(file),
            data_dir,
            origins,
            http,
            https,
            name,
            redis,
            region,
            from_environment,
            ..Flags::default()
        }
    }
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

/// An address, also as commands that call the node take it: SKERRY_ADMIN is one variable for both.
fn admin_address(text: &str) -> Result<SocketAddr, &'static str> {
    address(text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_address_may_be_written_as_a_url() {
        let expected = Ok("127.0.0.1:9181".parse().unwrap());
        for text in ["127.0.0.1:9181", "http://127.0.0.1:9181", "http://127.0.0.1:9181/"] {
            assert_eq!(admin_address(text), expected, "{text}");
        }
        assert!(admin_address("https://127.0.0.1:9181").is_err());
        assert!(admin_address("http://localhost:9181").is_err());
    }
}

//! A real `skerry` process: its files, ports and admin API.

use crate::client::{Client, ClientRequest};
use crate::fleet::process::Process;
pub use crate::fleet::process::Termination;
use crate::journal::Scope;
use crate::plan::object::Catalog;
use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

/// The ports of a node on the loopback interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// HTTP without TLS.
    pub http: u16,
    /// HTTPS.
    pub https: u16,
    /// The admin API.
    pub admin: u16,
    /// The name server, UDP.
    pub dns: u16,
    /// The listener for other nodes.
    pub peer: u16,
}

/// The properties of a node that stay the same when it restarts.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Its name: `frankfurt-1`.
    pub name: String,
    /// Its region, as an index of [`crate::plan::place::REGIONS`].
    pub region: usize,
    /// Its ports.
    pub ports: Ports,
    /// The folder of its configuration, certificate, log and cache.
    pub folder: PathBuf,
    /// Whether its data folder is a small file system, which a fault can fill.
    pub has_small_disk: bool,
}

impl NodeSpec {
    /// Path of its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("edge.toml")
    }

    /// Path of its data folder: cache and purge log.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Path of its certificate chain.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    /// Path of its private key.
    pub fn key(&self) -> PathBuf {
        self.folder.join("key.pem")
    }

    /// Path of the certificate by which other nodes know it.
    pub fn peer_certificate(&self) -> PathBuf {
        self.folder.join("peer.pem")
    }

    /// Path of the private key of [`NodeSpec::peer_certificate`].
    pub fn peer_key(&self) -> PathBuf {
        self.folder.join("peer.key")
    }

    /// Path of the list with the port of its link to an origin.
    pub fn origin_list(&self, origin: &str) -> PathBuf {
        self.folder.join(format!("{origin}.toml"))
    }

    /// Path of the file that receives its output.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

/// Finds the `skerry` binary: `SKERRY_BINARY`, or the one in the folder of this program.
///
/// # Errors
/// No binary is there; the message has the command that builds it.
pub fn find_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SKERRY_BINARY") {
        // Nodes run in other folders, so a relative path would not work there.
        let path = PathBuf::from(path);
        return path.canonicalize().with_context(|| format!("SKERRY_BINARY={}", path.display()));
    }
    let own = std::env::current_exe().context("the path of this program is unknown")?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("skerry")).find(|file| file.is_file());
    found.with_context(|| {
        let profile = if cfg!(debug_assertions) { "" } else { " --release" };
        let folder = own.parent().unwrap_or(&own).display();
        format!("no skerry binary in {folder}: build it with `cargo build{profile}`, or set SKERRY_BINARY")
    })
}

/// Starts a node's process. Wait for it with [`Admin::wait_until_ready`].
pub fn start(binary: &Path, spec: &NodeSpec) -> anyhow::Result<Process> {
    let mut command = if spec.has_small_disk {
        let mut command = crate::fleet::disk::with_small_disk();
        command.arg(spec.data());
        command
    } else {
        // SIGXFSZ is ignored so that a write beyond the file size limit (fault `disk-full`) fails
        // and does not end the process.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
        command
    };
    command.arg(binary).arg("run").arg("--config").arg(spec.config()).current_dir(&spec.folder);
    Process::start(&spec.name, command, &spec.log())
}

/// Stops a node (SIGTERM) and waits until it has exited; kills it after 20 s.
pub async fn stop(process: &mut Process) -> anyhow::Result<Termination> {
    process.terminate(STOP_LIMIT).await
}

/// Longer than `drain_timeout` in the built-in configuration.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The admin API of one node.
#[derive(Clone)]
pub struct Admin {
    client: Client,
    port: u16,
}

/// The response to a purge, or to a request for its receipts.
#[derive(Clone, Debug, Deserialize)]
pub struct PurgeResponse {
    /// The purge's id.
    pub id: String,
    /// Whether all nodes have applied it, as far as the responding node knows.
    pub complete: bool,
    /// The receipt of each node, by name.
    pub nodes: BTreeMap<String, Receipt>,
}

/// The state of a purge at one node.
#[derive(Clone, Debug, Deserialize)]
pub struct Receipt {
    /// `applied` or `pending`.
    pub state: String,
    /// Time from issue to applied in milliseconds.
    pub ms: Option<f64>,
}

/// The response to `GET /origins`, as far as it is used.
#[derive(Deserialize)]
struct OriginsResponse {
    pools: Vec<ReportedPool>,
}

#[derive(Deserialize)]
struct ReportedPool {
    pool: String,
    origins: Vec<ReportedOrigin>,
}

#[derive(Deserialize)]
struct ReportedOrigin {
    origin: String,
    state: String,
}

impl Receipt {
    /// Whether the node has applied the purge.
    pub fn is_applied(&self) -> bool {
        self.state == "applied"
    }
}

impl Admin {
    /// The admin API at this port.
    pub fn new(port: u16) -> Self {
        Admin { client: Client::plain(), port }
    }

    async fn call(&self, method: Method, path: &str, body: String) -> anyhow::Result<(u16, Bytes)> {
        let mut request = ClientRequest::path("localhost", path);
        request.method = method;
        request.body = body.into();
        request.headers.push(("content-type".into(), "application/json".into()));
        let response = self.client.send_http(self.port, &request).await?;
        Ok((response.status, response.body))
    }

    /// Whether the node is ready for requests.
    pub async fn is_ready(&self) -> bool {
        let request = ClientRequest::path("localhost", "/readyz");
        let limit = Duration::from_millis(500);
        let sent =
            self.client.send(self.port, crate::client::Protocol::Http1, &request, limit).await;
        sent.is_ok_and(|response| response.status == 200)
    }

    /// Waits until the node is ready for requests and returns how long that took.
    ///
    /// # Errors
    /// The node exits, or is not ready within a minute.
    pub async fn wait_until_ready(&self, process: &mut Process) -> anyhow::Result<Duration> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            process.ensure_running()?;
            if self.is_ready().await {
                return Ok(start.elapsed());
            }
            sleep(Duration::from_millis(25)).await;
        }
        bail!(
            "{} is not ready within 60 s; the end of its log:\n{}",
            process.name,
            process.log_tail()
        )
    }

    /// The state of each origin of each pool: pool, port of the origin, and whether it gets its share of requests.
    pub async fn origins(&self) -> anyhow::Result<Vec<(String, u16, bool)>> {
        let (status, body) = self.call(Method::GET, "/origins", String::new()).await?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        let OriginsResponse { pools } = serde_json::from_slice(&body).context("the origins")?;
        let of_pool = |ReportedPool { pool, origins }: ReportedPool| {
            origins.into_iter().filter_map(move |ReportedOrigin { origin, state }| {
                let port = origin.rsplit_once(':')?.1.parse().ok()?;
                Some((pool.clone(), port, matches!(&*state, "up" | "slow-start")))
            })
        };
        Ok(pools.into_iter().flat_map(of_pool).collect())
    }

    /// The names of the nodes that this node finds ready.
    pub async fn ready_nodes(&self) -> anyhow::Result<Vec<String>> {
        let (status, body) = self.call(Method::GET, "/nodes", String::new()).await?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        let table: serde_json::Value = serde_json::from_slice(&body).context("the node table")?;
        let nodes = table["nodes"].as_object().context("the node table has no nodes")?;
        let ready = nodes.iter().filter(|(_, node)| node["state"] == "ready");
        Ok(ready.map(|(name, _)| name.clone()).collect())
    }

    /// Sends a purge and waits up to two seconds until all nodes have applied it.
    pub async fn purge(
        &self,
        catalog: &Catalog,
        scope: &Scope,
        soft: bool,
    ) -> anyhow::Result<PurgeResponse> {
        let mut purge = match scope {
            Scope::Object(id) => {
                let object = catalog.get(*id);
                json!({"url": format!("https://{}{}", object.class.host(), object.path())})
            }
            Scope::Group(group) => json!({"tag": format!("group-{group}")}),
            Scope::Class(class) => {
                json!({"prefix": format!("https://{}/{}/", class.host(), class.as_str())})
            }
            Scope::Site(host) => json!({"site": site_of(host)}),
            Scope::All => json!({"all": true}),
        };
        purge["soft"] = soft.into();
        let call = self.call(Method::POST, "/purge?wait=all&timeout=2s", purge.to_string());
        let (status, body) = call.await?;
        ensure!((200..300).contains(&status), "{status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).context("the response to a purge is not the expected JSON")
    }

    /// Fetches the receipts of a purge.
    pub async fn receipts(&self, id: &str) -> anyhow::Result<PurgeResponse> {
        let (status, body) =
            self.call(Method::GET, &format!("/purges/{id}"), String::new()).await?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).context("the receipts of a purge are not the expected JSON")
    }

    /// Makes the node reload its configuration and certificates.
    pub async fn reload(&self) -> anyhow::Result<()> {
        self.post("/reload").await
    }

    /// Makes the node drain: it reports that it is not ready and finishes requests in flight.
    pub async fn drain(&self) -> anyhow::Result<()> {
        self.post("/drain").await
    }

    async fn post(&self, path: &str) -> anyhow::Result<()> {
        let (status, body) = self.call(Method::POST, path, String::new()).await?;
        ensure!((200..300).contains(&status), "{status}: {}", String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// The name in the built-in configuration of the site with this host.
pub fn site_of(host: &str) -> &str {
    host.split('.').next().unwrap_or(host)
}

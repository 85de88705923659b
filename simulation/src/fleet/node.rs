//! A real `skerry` process: its files, its ports, its admin API.

use crate::client::{Ask, Client};
pub use crate::fleet::process::Ended;
use crate::fleet::process::Process;
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

/// The ports of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// HTTP in clear.
    pub http: u16,
    /// HTTPS.
    pub https: u16,
    /// The admin API.
    pub admin: u16,
}

/// The identity, ports and directories of a node; they stay over restarts.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// `frankfurt-1`.
    pub name: String,
    /// Position in the list of regions.
    pub region: usize,
    /// Its ports.
    pub ports: Ports,
    /// Its configuration, certificate, log and cache.
    pub folder: PathBuf,
    /// Whether its data lie on a small file system of their own, which can be filled.
    pub has_small_disk: bool,
}

impl NodeSpec {
    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.folder.join("edge.toml")
    }

    /// Its cache and purge log.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its certificate chain.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    /// Its private key.
    pub fn key(&self) -> PathBuf {
        self.folder.join("key.pem")
    }

    /// The file with its output.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

/// The edge's binary: beside the lab's own, or what `SKERRY_BINARY` says.
pub fn find_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SKERRY_BINARY") {
        // Nodes run in folders of their own.
        let path = PathBuf::from(path);
        return path.canonicalize().with_context(|| format!("SKERRY_BINARY={}", path.display()));
    }
    let own = std::env::current_exe().context("where am I")?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("skerry")).find(|file| file.is_file());
    found.with_context(|| {
        let profile = if cfg!(debug_assertions) { "" } else { " --release" };
        format!("no skerry beside {}: `cargo build{profile}` makes it", own.display())
    })
}

/// Starts a node's process. It is ready when [`Admin::wait_until_ready`] says so.
pub fn start(binary: &Path, spec: &NodeSpec) -> anyhow::Result<Process> {
    let mut command = if spec.has_small_disk {
        let mut command = crate::fleet::disk::with_small_disk();
        command.arg(spec.data());
        command
    } else {
        // A write beyond the file size limit must fail, not end the process (see `disk-full`).
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
        command
    };
    command.arg(binary).arg("run").arg("--config").arg(spec.config()).current_dir(&spec.folder);
    Process::start(&spec.name, command, &spec.log())
}

/// Asks a node to leave and waits for it.
pub async fn stop(process: &mut Process) -> anyhow::Result<Ended> {
    process.terminate(STOP_LIMIT).await
}

/// Longer than the edge's own longest drain in the lab's configuration.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The admin API of one node.
#[derive(Clone)]
pub struct Admin {
    client: Client,
    port: u16,
}

/// The answer to a purge.
#[derive(Clone, Debug, Deserialize)]
pub struct PurgeAnswer {
    /// The purge's id.
    pub id: String,
    /// Whether all nodes have it, as far as the one knows that answers.
    pub complete: bool,
    /// The receipt of each node.
    pub nodes: BTreeMap<String, Receipt>,
}

/// The receipt of one node for a purge.
#[derive(Clone, Debug, Deserialize)]
pub struct Receipt {
    /// `applied` or `pending`.
    pub state: String,
    /// From issue to applied, milliseconds.
    pub ms: Option<f64>,
}

impl Receipt {
    /// Whether the purge is in force at that node.
    pub fn is_applied(&self) -> bool {
        self.state == "applied"
    }
}

impl Admin {
    /// The API at this port.
    pub fn new(port: u16) -> Self {
        Admin { client: Client::plain(), port }
    }

    async fn call(&self, method: Method, path: &str, body: String) -> anyhow::Result<(u16, Bytes)> {
        let mut ask = Ask::path("localhost", path);
        ask.method = method;
        ask.body = body.into();
        ask.headers.push(("content-type".into(), "application/json".into()));
        let reply = self.client.get(self.port, &ask).await?;
        Ok((reply.status, reply.body))
    }

    /// Whether the node takes requests.
    pub async fn is_ready(&self) -> bool {
        let ask = Ask::path("localhost", "/readyz");
        let limit = Duration::from_millis(500);
        let sent = self.client.send(self.port, crate::client::Protocol::Plain, &ask, limit).await;
        sent.is_ok_and(|reply| reply.status == 200)
    }

    /// Waits until the node takes requests; fails when it ends or takes longer than a minute.
    pub async fn wait_until_ready(&self, process: &mut Process) -> anyhow::Result<Duration> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            process.must_run()?;
            if self.is_ready().await {
                return Ok(start.elapsed());
            }
            sleep(Duration::from_millis(25)).await;
        }
        bail!("{} is not ready after a minute:\n{}", process.name, process.last_words())
    }

    /// Purges and waits for all nodes up to two seconds.
    pub async fn purge(
        &self,
        catalog: &Catalog,
        scope: &Scope,
        soft: bool,
    ) -> anyhow::Result<PurgeAnswer> {
        let mut order = match scope {
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
        order["soft"] = soft.into();
        let call = self.call(Method::POST, "/purge?wait=all&timeout=2s", order.to_string());
        let (status, body) = call.await?;
        ensure!((200..300).contains(&status), "{status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).context("the answer to a purge")
    }

    /// The receipts of a purge.
    pub async fn receipts(&self, id: &str) -> anyhow::Result<PurgeAnswer> {
        let (status, body) =
            self.call(Method::GET, &format!("/purges/{id}"), String::new()).await?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).context("the receipts of a purge")
    }

    /// Reads the configuration and certificates anew.
    pub async fn reload(&self) -> anyhow::Result<()> {
        self.order("/reload").await
    }

    /// Takes no new work, finishes what it has.
    pub async fn drain(&self) -> anyhow::Result<()> {
        self.order("/drain").await
    }

    async fn order(&self, path: &str) -> anyhow::Result<()> {
        let (status, body) = self.call(Method::POST, path, String::new()).await?;
        ensure!((200..300).contains(&status), "{status}: {}", String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// A site's name in the lab's configuration.
pub fn site_of(host: &str) -> &str {
    host.split('.').next().unwrap_or(host)
}

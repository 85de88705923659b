//! A node of a fleet as another one sees it: certificates, and an HTTP/2 client over mutual TLS that sends any
//! fields.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response, StatusCode};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::Value;
use skerry::{CertificateOrder, issue_certificates};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Edge;

/// The authority of a fleet, and the certificates that it has made.
pub struct FleetAuthority(TempDir);

impl FleetAuthority {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Makes certificates that are valid for 30 days, `age` days ago.
    pub fn issue(&self, names: &[&str], age: u32) {
        self.issue_for(30 * DAY, names, SystemTime::now() - age * DAY);
    }

    /// Makes certificates that are valid for `lifetime` from `now` on.
    pub fn issue_for(&self, lifetime: Duration, names: &[&str], now: SystemTime) {
        let order = CertificateOrder {
            directory: self.0.path().to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            lifetime,
            authority_lifetime: 3650 * DAY,
        };
        issue_certificates(&order, now).expect("certificates");
    }

    /// The `[peers]` of a node with this name, on a free port.
    pub fn section(&self, name: &str) -> String {
        let [certificate, key] =
            [".pem", ".key"].map(|suffix| self.file(&format!("{name}{suffix}")));
        let ca = self.file("ca.pem");
        format!(
            "[peers]\naddresses = \"127.0.0.1:0\"\ncertificate = {certificate:?}\nkey = {key:?}\nca = {ca:?}\n"
        )
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The TLS of a client that identifies itself with the certificate of `name`, if any.
    pub fn identity(&self, name: Option<&str>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots(&self.file("ca.pem")));
        let mut config = match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let certificate = CertificateDer::from_pem_file(self.file(&format!("{name}.pem")));
                let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key")));
                let chain = vec![certificate.expect("a certificate")];
                builder.with_client_auth_cert(chain, key.expect("a key")).expect("a pair")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.into()
    }
}

impl FleetAuthority {
    /// The TLS of the node `name` as a server for peers.
    fn server(&self, name: &str) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = Arc::new(roots(&self.file("ca.pem")));
        let peers = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let chain = CertificateDer::from_pem_file(self.file(&format!("{name}.pem")));
        let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key")));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(peers.build().expect("an authority"))
            .with_single_cert(vec![chain.expect("a certificate")], key.expect("a key"))
            .expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.into()
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// A node that answers each path as a script says, and records what it was asked.
pub struct ScriptedPeer {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _runtime: Runtime,
}

/// The answer of a scripted peer to a request.
pub struct PeerReply {
    status: u16,
    fields: Vec<(&'static str, String)>,
    body: String,
    after: Duration,
}

impl PeerReply {
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, fields: Vec::new(), body: body.into(), after: Duration::ZERO }
    }

    /// A fresh response that the peer has stored.
    pub fn hit(body: impl Into<String>) -> Self {
        Self::new(200, body).field("skerry-hop", "verdict=hit").field("cache-control", "max-age=60")
    }

    pub fn field(mut self, name: &'static str, value: &str) -> Self {
        self.fields.push((name, value.to_owned()));
        self
    }

    /// Sends nothing for this long.
    pub fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }
}

impl ScriptedPeer {
    /// A peer that answers each path with a status and a body.
    pub fn start(
        authority: &FleetAuthority,
        name: &str,
        answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        Self::replying(authority, name, move |request| {
            let (status, body) = answer(request.uri().path());
            PeerReply::new(status, body)
        })
    }

    pub fn replying(
        authority: &FleetAuthority,
        name: &str,
        answer: impl Fn(&Request<RecvStream>) -> PeerReply + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let acceptor = TlsAcceptor::from(authority.server(name));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("bound");
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let script = Arc::new((answer, asked.clone()));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, script) = (acceptor.clone(), script.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let reply = script.0(&request);
                        script.1.lock().unwrap().push(request.uri().path().to_owned());
                        let mut response = Response::builder().status(reply.status);
                        for (name, value) in &reply.fields {
                            response = response.header(*name, value);
                        }
                        if !reply.body.is_empty() {
                            response = response.header("content-length", reply.body.len());
                        }
                        let response = response.body(()).expect("a head");
                        tokio::spawn(async move {
                            tokio::time::sleep(reply.after).await;
                            let is_empty = reply.body.is_empty();
                            let Ok(mut stream) = respond.send_response(response, is_empty) else {
                                return;
                            };
                            if !is_empty {
                                let _ = stream.send_data(reply.body.into(), true);
                            }
                        });
                    }
                });
            }
        });
        Self { address, asked, _runtime: runtime }
    }

    /// The paths that it was asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn roots(file: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file).expect("a certificate")).expect("an authority");
    roots
}

/// A connection to the peer listener of the node `edge`.
pub struct PeerClient {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
}

/// An answer to a peer.
#[derive(Debug)]
pub struct PeerAnswer {
    pub status: StatusCode,
    pub fields: HeaderMap,
    pub body: Bytes,
}

impl PeerAnswer {
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

impl PeerClient {
    /// Fails if the node refuses the connection, which a client may notice at its first request only.
    pub fn connect(address: SocketAddr, identity: Arc<ClientConfig>) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let sender = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            let name = ServerName::try_from("edge").expect("a name");
            let tls = TlsConnector::from(identity).connect(name, stream).await;
            let tls = tls.map_err(|error| error.to_string())?;
            let (sender, connection) =
                h2::client::handshake(tls).await.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            Ok::<_, String>(sender)
        })?;
        Ok(Self { runtime, sender })
    }

    /// Sends a request and does not wait for the answer.
    pub fn send(&self, method: &str, url: &str, fields: &[(&str, &str)]) -> PendingAnswer {
        let mut request = Request::builder().method(method).uri(url).version(http::Version::HTTP_2);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        if !fields.iter().any(|(name, _)| *name == "skerry-purges") {
            request = request.header("skerry-purges", "none");
        }
        let request = request.body(()).expect("a request");
        let sender = self.sender.clone();
        PendingAnswer(self.runtime.spawn(async move {
            let text = |error: h2::Error| error.to_string();
            let mut sender = sender.ready().await.map_err(text)?;
            let (response, _) = sender.send_request(request, true).map_err(text)?;
            let (head, mut stream) = response.await.map_err(text)?.into_parts();
            let mut body = Vec::new();
            while let Some(data) = stream.data().await {
                let data = data.map_err(text)?;
                let _ = stream.flow_control().release_capacity(data.len());
                body.extend_from_slice(&data);
            }
            Ok(PeerAnswer { status: head.status, fields: head.headers, body: body.into() })
        }))
    }

    /// Sends a request and waits for the answer.
    pub fn ask(
        &self,
        method: &str,
        url: &str,
        fields: &[(&str, &str)],
    ) -> Result<PeerAnswer, String> {
        let pending = self.send(method, url, fields);
        self.wait(pending)
    }

    pub fn wait(&self, PendingAnswer(task): PendingAnswer) -> Result<PeerAnswer, String> {
        let limited = async { tokio::time::timeout(Duration::from_secs(30), task).await };
        self.runtime.block_on(limited).expect("an answer within 30 s").expect("no panic")
    }
}

/// An answer that may not be there yet.
pub struct PendingAnswer(tokio::task::JoinHandle<Result<PeerAnswer, String>>);

/// `Skerry-Hop` of a request of the node `from` for the client 203.0.113.9, with digest and key that no node has.
pub fn hop(from: &str) -> String {
    hop_with(from, "0a", 7)
}

/// The same for this URL, with the digest and the key that the node `edge` has.
pub fn hop_to(edge: &Edge, from: &str, url: &str) -> String {
    let nodes: Value = serde_json::from_str(edge.admin("GET", "/nodes", "").text()).expect("nodes");
    let digest = nodes["nodes"]["edge"]["config"].as_str().expect("a digest");
    hop_with(from, digest, xxhash_rust::xxh3::xxh3_128(url.as_bytes()) as u64)
}

fn hop_with(from: &str, digest: &str, key: u64) -> String {
    format!(
        "v=1, from=\"{from}\", digest=\"{digest}\", hops=1, client=\"203.0.113.9\", id=\"00ab34cd56ef7890\", key=\"{key:016x}\""
    )
}

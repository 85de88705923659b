//! TLS and HTTP/2 to origins, over real sockets.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::*;
use super::scripted::*;
use super::{OK, on_core};
use crate::body::Body;
use crate::metrics::Metric;

/// A certificate authority and what it has issued, in files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let folder = TempDir::new().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), &pem).expect("a file");
        Self { issuer: Issuer::new(params, key), pem, folder }
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn server(&self, name: &str, alpn: &[&str], ask_client: bool) -> TlsAcceptor {
        let (certificate, key) = self.issue(name);
        let parse = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = if ask_client {
            let mut roots = RootCertStore::empty();
            roots.add(parse(&self.pem)).expect("a root");
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        let mut config =
            builder.with_single_cert(vec![parse(&certificate)], key).expect("a config");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A pool that trusts this authority alone.
    fn pool(&self, origin: &Scripted) -> PoolDefinition {
        let mut settings = pool(vec![Origin::https("127.0.0.1", origin.address.port())]);
        settings.settings.tls.system_roots = false;
        settings.settings.tls.ca_files = vec![self.folder.path().join("ca.pem")];
        settings
    }
}

async fn accept(
    origin: &Scripted,
    acceptor: &TlsAcceptor,
) -> std::io::Result<Peer<TlsStream<TcpStream>>> {
    Ok(Peer::new(acceptor.accept(origin.accept().await.io).await?))
}

#[tokio::test]
async fn a_certificate_is_checked_by_authority_and_name() {
    on_core(async {
        let authority = Authority::new();
        let origin = Scripted::bind().await;
        let trusting = authority.pool(&origin);
        let mut stranger = trusting.clone();
        stranger.settings.tls.ca_files = vec![];
        stranger.settings.tls.system_roots = true;
        let mut renamed = trusting.clone();
        renamed.settings.tls.server_name = Some("origin.example".into());
        let mut unverified = stranger.clone();
        unverified.settings.tls.verify = false;
        let cases = [
            ("127.0.0.1", &trusting, true),
            ("127.0.0.1", &stranger, false),
            ("origin.example", &trusting, false),
            ("origin.example", &renamed, true),
            ("origin.example", &unverified, true),
        ];
        for (name, settings, good) in cases {
            let acceptor = authority.server(name, &["http/1.1"], false);
            let bed = Bed::new(settings.clone());
            let (outcome, _peer) = tokio::join!(bed.get(), async {
                let mut accepted = accept(&origin, &acceptor).await;
                if let Ok(peer) = &mut accepted {
                    if good {
                        peer.answer(OK).await;
                    }
                    assert_eq!(
                        peer.io.get_ref().1.server_name().is_some(),
                        settings.settings.tls.server_name.is_some() && good
                    );
                }
                accepted
            });
            match outcome {
                Ok(upstream) => {
                    assert!(good, "{name}");
                    assert_eq!(read(upstream).await.expect("a body"), "ok");
                    assert_eq!(bed.total(Metric::UpstreamIdle), 1);
                }
                Err(error) => {
                    assert!(!good, "{name}: {error}");
                    assert_eq!(error.proxy_error(), "tls_certificate_error");
                    assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
                    assert!(!error.origin_may_have_seen());
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_origin_that_does_not_speak_tls_is_a_502_and_one_that_says_nothing_a_504() {
    on_core(async {
        let authority = Authority::new();
        let origin = Scripted::bind().await;
        let mut settings = authority.pool(&origin);
        settings.settings.deadlines.tls = Duration::from_millis(100);
        let bed = Bed::new(settings);
        let (outcome, ()) = tokio::join!(bed.get(), async {
            let mut peer = origin.accept().await;
            peer.say("HTTP/1.1 400 Bad Request\r\n\r\n").await;
            peer.closed().await;
        });
        assert_eq!(outcome.expect_err("no TLS").proxy_error(), "tls_protocol_error");
        let (outcome, ()) = tokio::join!(bed.get(), async { origin.accept().await.closed().await });
        let error = outcome.expect_err("no word");
        assert_eq!(error.proxy_error(), "connection_timeout");
        assert_eq!(error.status(), StatusCode::GATEWAY_TIMEOUT);
    })
    .await;
}

#[tokio::test]
async fn an_origin_that_asks_is_shown_our_certificate() {
    on_core(async {
        let authority = Authority::new();
        let origin = Scripted::bind().await;
        let acceptor = authority.server("127.0.0.1", &["http/1.1"], true);
        let (certificate, key) = authority.issue("edge.example");
        let file = |name: &str, text: &str| {
            let path = authority.folder.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let mut settings = authority.pool(&origin);
        settings.settings.tls.client_certificate = Some(ClientCertificate {
            chain: file("edge.pem", &certificate),
            key: file("edge.key", &key),
        });
        let bed = Bed::new(settings);
        let (body, ()) = tokio::join!(bed.fetch(), async {
            let mut peer = accept(&origin, &acceptor).await.expect("a handshake");
            assert!(peer.io.get_ref().1.peer_certificates().is_some());
            peer.answer(OK).await;
        });
        assert_eq!(body, "ok");
        // Without it the origin sends an alert, after the handshake as we see it.
        let mut settings = authority.pool(&origin);
        settings.settings.retry.attempts_max = Some(1);
        let bed = Bed::new(settings);
        let (outcome, _) = tokio::join!(bed.get(), accept(&origin, &acceptor));
        let error = outcome.expect_err("no certificate to show");
        assert_eq!(error.proxy_error(), "tls_alert_received", "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_second_connection_resumes_the_session() {
    on_core(async {
        let authority = Authority::new();
        let origin = Scripted::bind().await;
        let acceptor = authority.server("127.0.0.1", &["http/1.1"], false);
        let mut settings = authority.pool(&origin);
        settings.settings.keep_alive.idle_max = 0;
        let bed = Bed::new(settings);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let (_, ()) = tokio::join!(bed.fetch(), async {
                let mut peer = accept(&origin, &acceptor).await.expect("a handshake");
                peer.answer(OK).await;
                kinds.push(peer.io.get_ref().1.handshake_kind().expect("it is over"));
                peer.closed().await;
            });
        }
        assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
    })
    .await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let settings = |path: &std::path::Path| {
        let mut settings = pool(vec![Origin::https("origin.example", 443)]);
        settings.settings.tls.ca_files = vec![path.to_owned()];
        settings
    };
    let folder = TempDir::new().expect("a folder");
    let missing = folder.path().join("missing.pem");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing").expect("a file");
    for path in [&missing, &empty] {
        let error = Pool::new(&settings(path), None).expect_err("no certificate").to_string();
        assert!(error.contains(path.to_str().expect("a name")), "{error}");
    }
}

/// An HTTP/2 origin that answers each request with its target, authority and body.
struct Http2Origin {
    listener: Scripted,
    connections: Rc<Cell<usize>>,
    tasks: Rc<RefCell<Vec<tokio::task::AbortHandle>>>,
}

impl Http2Origin {
    async fn start(acceptor: Option<TlsAcceptor>) -> Self {
        let listener = Scripted::bind().await;
        let origin = Scripted::bind().await;
        let connections = Rc::new(Cell::new(0));
        let tasks = Rc::<RefCell<Vec<tokio::task::AbortHandle>>>::default();
        let (count, handles, address) = (connections.clone(), tasks.clone(), origin.address);
        tokio::task::spawn_local(async move {
            loop {
                let peer = origin.accept().await;
                count.set(count.get() + 1);
                let acceptor = acceptor.clone();
                let task = tokio::task::spawn_local(async move {
                    match acceptor {
                        None => serve(TokioIo::new(peer.io)).await,
                        Some(acceptor) => {
                            let stream = acceptor.accept(peer.io).await.expect("a handshake");
                            serve(TokioIo::new(stream)).await;
                        }
                    }
                });
                handles.borrow_mut().push(task.abort_handle());
            }
        });
        Self { listener: Scripted { address, ..listener }, connections, tasks }
    }

    fn cut(&self) {
        self.tasks.borrow_mut().drain(..).for_each(|task| task.abort());
    }
}

/// Runs hyper's HTTP/2 tasks on this core.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

async fn serve(io: impl hyper::rt::Read + hyper::rt::Write + Unpin + 'static) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        assert!(!head.headers.contains_key("host"), "HTTP/2 has :authority");
        let text = match head.method {
            Method::HEAD => String::new(),
            _ => format!("{} {}", head.uri, String::from_utf8_lossy(&body)),
        };
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    let _ =
        hyper::server::conn::http2::Builder::new(LocalExecutor).serve_connection(io, service).await;
}

#[tokio::test]
async fn http2_is_spoken_where_alpn_agrees_and_shared() {
    on_core(async {
        let authority = Authority::new();
        let acceptor = authority.server("127.0.0.1", &["h2", "http/1.1"], false);
        let origin = Http2Origin::start(Some(acceptor)).await;
        let bed = Bed::new(authority.pool(&origin.listener));
        let upstream = bed.get().await.expect("a response");
        assert_eq!(upstream.response.version(), Version::HTTP_2);
        assert_eq!(read(upstream).await.expect("a body"), "https://site.example/path?query ");
        let post = || bed.send(request(Method::POST, Body::from("data")));
        let (one, two) = tokio::join!(post(), post());
        for upstream in [one, two] {
            let upstream = upstream.expect("a response");
            assert_eq!(
                read(upstream).await.expect("a body"),
                "https://site.example/path?query data"
            );
        }
        assert_eq!(bed.total(Metric::UpstreamReuses), 2);
        let head = bed.send(request(Method::HEAD, Body::Empty)).await.expect("a response");
        assert_eq!(read(head).await.expect("a body"), "");
        assert_eq!(origin.connections.get(), 1);
        assert_eq!(bed.total(Metric::UpstreamActive), 0);
    })
    .await;
}

#[tokio::test]
async fn many_first_requests_open_one_connection_and_leave_nothing_behind() {
    on_core(async {
        let authority = Authority::new();
        let acceptor = authority.server("127.0.0.1", &["h2"], false);
        let origin = Http2Origin::start(Some(acceptor)).await;
        let mut settings = authority.pool(&origin.listener);
        settings.settings.streams_max = 8;
        let bed = Rc::new(Bed::new(settings));
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..20 {
            let bed = bed.clone();
            asking.spawn_local(async move {
                let upstream = bed.get().await.expect("a response");
                // Some leave before the body.
                if number % 2 == 0 {
                    read(upstream).await.expect("a body");
                }
            });
        }
        asking.join_all().await;
        let opened = origin.connections.get();
        assert!(opened <= 3, "{opened} connections for 20 requests, 8 to share one");
        assert_eq!(bed.total(Metric::UpstreamActive), 0);
        assert_eq!(bed.upstreams.streams(), 0);
    })
    .await;
}

#[tokio::test]
async fn http2_over_plain_text_needs_no_agreement_when_it_is_set() {
    on_core(async {
        let origin = Http2Origin::start(None).await;
        let mut settings = pool(vec![origin.listener.origin()]);
        settings.settings.protocol = Protocol::Http2;
        let bed = Bed::new(settings);
        assert_eq!(bed.fetch().await, "http://site.example/path?query ");
    })
    .await;
}

#[tokio::test]
async fn an_http2_connection_that_ended_is_replaced_by_one() {
    on_core(async {
        let origin = Http2Origin::start(None).await;
        let mut settings = pool(vec![origin.listener.origin()]);
        settings.settings.protocol = Protocol::Http2;
        let bed = Bed::new(settings);
        bed.fetch().await;
        origin.cut();
        // At once, before anybody has seen the end: sent again over a new connection; and
        // three who need one share it.
        let (one, two, three) = tokio::join!(bed.fetch(), bed.fetch(), bed.fetch());
        assert_eq!(one.len(), two.len());
        assert_eq!(two.len(), three.len());
        assert_eq!(origin.connections.get(), 2);
        assert_eq!(bed.total(Metric::UpstreamConnections), 1);
    })
    .await;
}

#[tokio::test]
async fn an_origin_without_http2_is_refused_when_nothing_else_will_do() {
    on_core(async {
        let authority = Authority::new();
        let origin = Scripted::bind().await;
        let acceptor = authority.server("127.0.0.1", &[], false);
        let mut settings = authority.pool(&origin);
        settings.settings.protocol = Protocol::Http2;
        let bed = Bed::new(settings);
        let (outcome, _) = tokio::join!(bed.get(), accept(&origin, &acceptor));
        assert_eq!(outcome.expect_err("no h2").proxy_error(), "tls_protocol_error");
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_asks_for_http1_even_where_http2_is_spoken() {
    on_core(async {
        let authority = Authority::new();
        let origin = Scripted::bind().await;
        let acceptor = authority.server("127.0.0.1", &["h2", "http/1.1"], false);
        let bed = Bed::new(authority.pool(&origin));
        let upgrade = Some("websocket".parse().expect("a value"));
        let intent = Intent { upgrade, ..Intent::default() };
        let get = request(Method::GET, Body::Empty);
        let (outcome, ()) = tokio::join!(bed.send_with(get, intent), async {
            let mut peer = accept(&origin, &acceptor).await.expect("a handshake");
            peer.answer("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        });
        assert!(outcome.expect("a response").upgraded.is_some());
    })
    .await;
}

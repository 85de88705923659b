//! Origins behind Unix sockets.

use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;

use super::*;
use crate::clock::Clock;
use crate::metrics::Metrics;

/// An application behind a socket in a folder of its own.
struct Application {
    folder: TempDir,
    listener: UnixListener,
}

impl Application {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("app.sock")).expect("a socket");
        Self { folder, listener }
    }

    async fn accept(&self) -> Peer<UnixStream> {
        Peer::new(self.listener.accept().await.expect("a connection").0)
    }

    fn url(&self) -> String {
        format!("unix:{}", self.folder.path().join("app.sock").display())
    }

    fn origin(&self) -> Origin {
        Origin::parse(&self.url()).expect("the URL of a socket")
    }
}

#[tokio::test]
async fn requests_go_over_a_socket_that_is_kept_and_each_host_policy_holds() {
    on_core(async {
        for (policy, host) in [
            (HostHeader::Preserve, "site.example"),
            (HostHeader::Origin, "localhost"),
            (HostHeader::Fixed(HeaderValue::from_static("app.example")), "app.example"),
        ] {
            let application = Application::start();
            let mut definition = pool(vec![application.origin()]);
            definition.settings.host_header = policy;
            let bed = Bed::new(definition);
            let (first, mut peer) = tokio::join!(bed.get(), async {
                let mut peer = application.accept().await;
                let head = peer.answer(OK).await;
                assert_eq!(head, format!("GET /path?query HTTP/1.1\r\nhost: {host}\r\n\r\n"));
                peer
            });
            let first = first.expect("a response");
            assert_eq!((&*first.origin, first.address), (&*application.url(), None));
            assert_eq!(read(first).await.expect("a body"), "ok");
            let (second, _) = tokio::join!(bed.fetch(), peer.answer(OK));
            assert_eq!(second, "ok");
            let connects = bed.total(Metric::UpstreamConnects);
            assert_eq!((connects, bed.total(Metric::UpstreamReuses)), (1, 1));
        }
    })
    .await;
}

#[tokio::test]
async fn http2_with_prior_knowledge_goes_over_a_socket() {
    on_core(async {
        let application = Application::start();
        let mut definition = pool(vec![application.origin()]);
        definition.settings.protocol = Protocol::Http2;
        let bed = Bed::new(definition);
        let listener = application.listener;
        let serve = async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            let (request, mut respond) =
                connection.accept().await.expect("a request").expect("a good one");
            let response = http::Response::new(());
            let mut stream = respond.send_response(response, false).expect("a response");
            stream.send_data("ok".into(), true).expect("content");
            std::future::poll_fn(|cx| connection.poll_closed(cx)).await.ok();
            request.uri().to_string()
        };
        let serving = tokio::task::spawn_local(serve);
        assert_eq!(bed.fetch().await, "ok");
        drop(bed);
        assert_eq!(serving.await.expect("no panic"), "http://site.example/path?query");
    })
    .await;
}

#[tokio::test]
async fn a_socket_that_accepts_nothing_is_an_error_that_says_what_to_do() {
    on_core(async {
        let application = Application::start();
        let origin = application.origin();
        let url = application.url();
        let Application { folder, listener } = application;
        drop(listener);
        let error = async || {
            let bed = Bed::new(pool(vec![origin.clone()]));
            let error = bed.get().await.expect_err("no application");
            assert_eq!((error.status(), error.origin_may_have_seen()), (StatusCode::BAD_GATEWAY, false));
            error.to_string()
        };
        let expected = format!(
            "cannot connect to {url}: Connection refused (os error 111); no application listens on the socket: start it"
        );
        assert_eq!(error().await, expected);
        std::fs::remove_file(folder.path().join("app.sock")).expect("a file");
        let expected = format!(
            "cannot connect to {url}: No such file or directory (os error 2); start the application that makes the socket, or correct the path"
        );
        assert_eq!(error().await, expected);
    })
    .await;
}

#[tokio::test]
async fn a_full_backlog_is_waited_for_until_the_deadline() {
    on_core(async {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("app.sock");
        let socket = tokio::net::UnixSocket::new_stream().expect("a socket");
        socket.bind(&path).expect("a name");
        let listener = socket.listen(1).expect("it listens");
        let mut waiting = Vec::new();
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        let origin = Origin::parse(&format!("unix:{}", path.display())).expect("a URL");
        let bed = Bed::new(pool(vec![origin]));
        let serve = async {
            // The request is not there yet: the backlog was full before it.
            for _ in &waiting {
                listener.accept().await.expect("a connection");
            }
            Peer::new(listener.accept().await.expect("a connection").0).answer(OK).await
        };
        let (body, _) = tokio::join!(bed.fetch(), serve);
        assert_eq!(body, "ok");
    })
    .await;
}

#[tokio::test]
async fn checks_go_over_the_socket() {
    on_core(async {
        let application = Application::start();
        let mut definition = pool(vec![application.origin()]);
        let interval = Duration::from_millis(100);
        definition.settings.check =
            Some(Check { interval, timeout: interval, rise: 1, fall: 1, ..Check::default() });
        definition.settings.check.as_mut().expect("a check").assume_down = true;
        let pools = Pools::new(&[definition]).expect("a good pool");
        let pool = pools.named("test").expect("the pool").clone();
        let metrics = Metrics::new(1);
        let resolver =
            Resolver::new(DnsSettings::default(), Handle::current(), metrics.background());
        let mut checks =
            Checks::new(resolver, metrics.background(), Clock::system(), Handle::current());
        checks.replace(&pools);
        assert_eq!(up(&pool), [false]);
        loop {
            let mut peer = application.accept().await;
            if peer.try_answer(OK).await && up(&pool) == [true] {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(application);
        while up(&pool) == [true] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let report = &pool.origins()[0];
        let failure = report.last_check.as_ref().and_then(|check| check.failure.clone());
        assert!(failure.expect("why").contains("No such file"), "{}", report.origin);
    })
    .await;
}

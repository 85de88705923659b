//! The built-in origin of the demo, which `skerry` without arguments starts.
//!
//! It serves a small page with a stylesheet, script, picture and data, one slow and one private
//! resource, so that a newcomer can see hits, misses and responses that are not stored.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Starts the origin on a free loopback port in the current runtime and returns its address. It
/// runs until the runtime ends.
pub async fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(accept(listener));
    Ok(address)
}

async fn accept(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(respond));
        tokio::spawn(connection);
    }
}

async fn respond(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = match request.uri().path() {
        "/" => INDEX,
        "/style.css" => STYLE,
        "/app.js" => SCRIPT,
        "/logo.svg" => LOGO,
        "/data.json" => DATA,
        "/slow" => {
            tokio::time::sleep(DELAY).await;
            DELAYED
        }
        "/private" => PRIVATE,
        _ => return Ok(not_found()),
    };
    Ok(page.response(request.headers().get(IF_NONE_MATCH).map(|tag| tag.as_bytes())))
}

struct Page {
    content_type: &'static str,
    cache_control: &'static str,
    etag: &'static str,
    body: &'static str,
}

impl Page {
    fn response(&self, if_none_match: Option<&[u8]>) -> Response<Full<Bytes>> {
        let unchanged = if_none_match == Some(self.etag.as_bytes());
        let (status, body) =
            if unchanged { (StatusCode::NOT_MODIFIED, "") } else { (StatusCode::OK, self.body) };
        Response::builder()
            .status(status)
            .header(CONTENT_TYPE, self.content_type)
            .header(CACHE_CONTROL, self.cache_control)
            .header(ETAG, self.etag)
            .body(Full::from(body))
            .expect("all parts are constants")
    }
}

fn not_found() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from("the demo origin has no such page; start at /\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// How long `/slow` waits.
const DELAY: Duration = Duration::from_secs(2);

const INDEX: Page = Page {
    content_type: "text/html; charset=utf-8",
    cache_control: "public, max-age=60, stale-while-revalidate=600",
    etag: "\"index-1\"",
    body: include_str!("demo/index.html"),
};
const STYLE: Page = Page {
    content_type: "text/css",
    cache_control: "public, max-age=3600, immutable",
    etag: "\"style-1\"",
    body: include_str!("demo/style.css"),
};
const SCRIPT: Page = Page {
    content_type: "text/javascript",
    cache_control: "public, max-age=3600",
    etag: "\"script-1\"",
    body: include_str!("demo/app.js"),
};
const LOGO: Page = Page {
    content_type: "image/svg+xml",
    cache_control: "public, max-age=86400",
    etag: "\"logo-1\"",
    body: include_str!("demo/logo.svg"),
};
const DATA: Page = Page {
    content_type: "application/json",
    cache_control: "public, max-age=10, stale-if-error=3600",
    etag: "\"data-1\"",
    body: "{\"kind\":\"demo\",\"fresh_for_seconds\":10}\n",
};
const DELAYED: Page = Page {
    content_type: "text/plain",
    cache_control: "public, max-age=30",
    etag: "\"slow-1\"",
    body: "the origin waited two seconds before this response\n",
};
const PRIVATE: Page = Page {
    content_type: "text/plain",
    cache_control: "private, no-store",
    etag: "\"private-1\"",
    body: "this response is private: it is never stored and comes from the origin each time\n",
};

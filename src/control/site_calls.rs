//! `GET /sites`: the counters of each site.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::admin::Admin;
use super::http::json_response;

impl Admin {
    /// `GET /sites`. One array a site, so that a thousand of them are short.
    pub(super) fn sites(&self) -> Response<Full<Bytes>> {
        let totals = self.metrics.site_totals();
        let rows = totals.iter().map(|site| {
            let [.., client_errors, server_errors] = site.classes;
            let (name, requests) = (&*site.site, site.requests());
            json!([
                name,
                requests,
                site.hits,
                site.bytes,
                site.hit_bytes,
                client_errors,
                server_errors
            ])
        });
        let rows: Vec<_> = rows.collect();
        let answer = json!({ "now_ms": self.now_ms(), "columns": COLUMNS, "sites": rows });
        json_response(StatusCode::OK, &answer)
    }
}

/// The names of the values of a site.
const COLUMNS: [&str; 7] =
    ["site", "requests", "hits", "bytes", "hit_bytes", "client_errors", "server_errors"];

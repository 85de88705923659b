//! `GET /sites`: the counters of each site. `GET /rules`: the requests that each rule matched.

use std::collections::HashSet;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::admin::Admin;
use super::http::{Problem, check_parameters, json_response, parameter};

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

    /// `GET /rules?site=NAME&unmatched=true`. One array a rule, in the order in which the rules are tried.
    pub(super) fn rules(&self, query: &str) -> Result<Response<Full<Bytes>>, Problem> {
        check_parameters(query, &["site", "unmatched"])?;
        let site = parameter(query, "site")?;
        if let Some(site) = &site {
            self.node.check_site(site).map_err(|why| Problem::bad_value("site", site, &why))?;
        }
        let only_unmatched = match parameter(query, "unmatched")?.as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                return Err(Problem::bad_value("unmatched", other, &"expected true or false"));
            }
        };
        let configured = self.node.rules();
        let counted = configured.iter().map(|(site, rule)| {
            let matches = self.metrics.rule_matches(site, rule);
            (&**site, &**rule, matches)
        });
        let counted: Vec<_> =
            counted.filter(|(of, ..)| site.as_ref().is_none_or(|site| site == of)).collect();
        let requested: HashSet<&str> = counted
            .iter()
            .filter(|(.., matches)| *matches > Some(0))
            .map(|(site, ..)| *site)
            .collect();
        // Without a request, a site says nothing of its rules.
        let is_shown = |(site, _, matches): &&(&str, &str, Option<u64>)| {
            !only_unmatched || *matches == Some(0) && requested.contains(site)
        };
        let rows: Vec<_> = counted.iter().filter(is_shown).collect();
        let columns = ["site", "rule", "matches"];
        let answer = json!({ "now_ms": self.now_ms(), "columns": columns, "rules": rows });
        Ok(json_response(StatusCode::OK, &answer))
    }
}

/// The names of the values of a site.
const COLUMNS: [&str; 7] =
    ["site", "requests", "hits", "bytes", "hit_bytes", "client_errors", "server_errors"];

//! `GET /log`: the lines of the access log as they are written, filtered.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame};
use serde_json::Value;
use tokio::sync::mpsc;

use super::admin::Admin;
use super::http::{Problem, check_parameters, parameter, text_response};
use super::tokens::{Caller, Permission};
use crate::cache::Reason;

/// The lines that a caller asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct LineFilter {
    site: Option<String>,
    /// The range of statuses, both ends included.
    statuses: Option<(u64, u64)>,
    reason: Option<String>,
}

/// A body without an end: it is complete when the node stops or the caller disconnects.
#[derive(Debug)]
pub(super) struct LogStream {
    lines: mpsc::Receiver<Bytes>,
    filter: LineFilter,
}

impl Admin {
    /// `GET /log?site=…&status=…&reason=…`
    pub(super) fn log(&self, caller: &Caller, query: &str) -> Result<Response<LogStream>, Problem> {
        // The log has the addresses of clients of all sites.
        if matches!(caller.permission, Permission::Purge(_)) {
            return Err(caller.forbidden("the access log"));
        }
        let filter = LineFilter::parse(query)?;
        if let Some(site) = &filter.site {
            self.node.check_site(site).map_err(|why| Problem::bad_value("site", site, &why))?;
        }
        let lines = self.node.watch_log().ok_or_else(|| {
            let detail = "too many callers watch the access log: end one of them first";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        })?;
        let (mut head, _) = text_response(StatusCode::OK, "").into_parts();
        let kind = http::HeaderValue::from_static("application/x-ndjson");
        head.headers.insert(http::header::CONTENT_TYPE, kind);
        Ok(Response::from_parts(head, LogStream { lines, filter }))
    }
}

impl LineFilter {
    fn parse(query: &str) -> Result<Self, Problem> {
        check_parameters(query, &["site", "status", "reason"])?;
        let statuses = match parameter(query, "status")? {
            None => None,
            Some(text) => Some(statuses(&text).ok_or_else(|| {
                let expected = "expected a status such as 404, or a class such as 5xx";
                Problem::bad_value("status", &text, &expected)
            })?),
        };
        let reason = parameter(query, "reason")?;
        if let Some(reason) = &reason
            && !Reason::WORDS.contains(&&**reason)
        {
            let expected = format!("expected one of {}", Reason::WORDS.join(", "));
            return Err(Problem::bad_value("reason", reason, &expected));
        }
        Ok(Self { site: parameter(query, "site")?, statuses, reason })
    }

    /// The lines of `batch` that are wanted.
    fn apply(&self, batch: Bytes) -> Bytes {
        if *self == Self::default() {
            return batch;
        }
        let lines = batch.split_inclusive(|byte| *byte == b'\n').filter(|line| self.has(line));
        lines.flatten().copied().collect::<Vec<u8>>().into()
    }

    fn has(&self, line: &[u8]) -> bool {
        let Ok(fields) = serde_json::from_slice::<Value>(line) else { return false };
        let is = |name: &str, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| fields[name] == **wanted)
        };
        let has_status = |(low, high): (u64, u64)| {
            fields["status"].as_u64().is_some_and(|status| (low..=high).contains(&status))
        };
        !fields["lost"].is_null()
            || is("site", &self.site)
                && is("reason", &self.reason)
                && self.statuses.is_none_or(has_status)
    }
}

/// `404` or `5xx`.
fn statuses(text: &str) -> Option<(u64, u64)> {
    let is_status = |status: &u64| (100..600).contains(status);
    match text.strip_suffix("xx").or_else(|| text.strip_suffix("XX")) {
        Some(class) => {
            let low = class.parse::<u64>().ok().map(|class| class * 100).filter(is_status)?;
            Some((low, low + 99))
        }
        None => text.parse().ok().filter(is_status).map(|status| (status, status)),
    }
}

impl Body for LogStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            match std::task::ready!(self.lines.poll_recv(cx)) {
                None => return Poll::Ready(None),
                Some(batch) => {
                    let lines = self.filter.apply(batch);
                    if !lines.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(lines))));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_filtered_by_site_status_and_reason() {
        let batch = "{\"site\":\"a\",\"status\":200}\n{\"site\":\"b\",\"status\":502,\"reason\":\"absent\"}\n\
                     {\"lost\":3}\n{\"status\":404}\n";
        let check = |query: &str, expected: &[usize]| {
            let found = LineFilter::parse(query).unwrap().apply(Bytes::from(batch));
            let lines: Vec<&str> = batch.split_inclusive('\n').collect();
            let expected: String = expected.iter().map(|line| lines[*line]).collect();
            assert_eq!(found, expected, "{query}");
        };
        check("", &[0, 1, 2, 3]);
        check("site=a", &[0, 2]);
        check("status=5xx", &[1, 2]);
        check("status=404", &[2, 3]);
        check("reason=absent&site=b", &[1, 2]);
        for wrong in ["status=9xx", "status=x", "reason=never", "host=a"] {
            assert!(LineFilter::parse(wrong).is_err(), "{wrong}");
        }
    }
}

//! Limits on how often one client may send and cancel requests on an HTTP/2 connection (CVE-2023-44487).

use std::time::Duration;

use tokio::time::Instant;

use crate::labels::Http2End;

use super::super::settings::H2Limits;

/// The requests and cancellations of one connection.
pub(super) struct Budget {
    requests_max: Option<u32>,
    requests: Window,
    resets_max: u32,
    resets: Window,
}

/// A count that starts anew after a fixed time.
#[derive(Default)]
struct Window {
    began: Option<Instant>,
    count: u32,
}

impl Budget {
    pub(super) fn new(limits: &H2Limits) -> Self {
        Self {
            requests_max: limits.requests_per_second_max,
            requests: Window::default(),
            resets_max: limits.resets_per_10s_max,
            resets: Window::default(),
        }
    }

    /// Counts requests and cancellations. The clock is read only if there is something to count.
    ///
    /// # Errors
    /// A limit is exceeded; the connection must be closed.
    pub(super) fn spend(&mut self, requests: usize, resets: u32) -> Result<(), Http2End> {
        if resets > 0 && self.resets.add(resets, Duration::from_secs(10)) > self.resets_max {
            return Err(Http2End::Resets);
        }
        match self.requests_max {
            Some(max) if requests > 0 => {
                let requests = requests.try_into().unwrap_or(u32::MAX);
                let is_within = self.requests.add(requests, Duration::from_secs(1)) <= max;
                if is_within { Ok(()) } else { Err(Http2End::Requests) }
            }
            _ => Ok(()),
        }
    }
}

impl Window {
    fn add(&mut self, count: u32, length: Duration) -> u32 {
        let now = Instant::now();
        if self.began.is_none_or(|began| now - began >= length) {
            (self.began, self.count) = (Some(now), 0);
        }
        self.count = self.count.saturating_add(count);
        self.count
    }
}

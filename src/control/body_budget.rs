//! Limits the memory of request bodies of the admin API.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::http::Problem;

/// The total length, in KiB, of the bodies that are read or processed at the same time. A purge with a
/// body of 4 MiB uses about ten times as much memory until it is durable.
#[derive(Debug)]
pub(crate) struct BodyBudget(Arc<Semaphore>);

impl Default for BodyBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_KIB_MAX)))
    }
}

impl BodyBudget {
    /// Waits for a permit for the body's length, and reads the body. The caller keeps the permit while
    /// it needs the body's memory.
    ///
    /// # Errors
    /// 413: longer than 4 MiB. 429: no permit in time. 400 and 408: the body is incomplete or late.
    pub(super) async fn read(
        &self,
        body: Incoming,
    ) -> Result<(Bytes, OwnedSemaphorePermit), Problem> {
        let too_long = || {
            let detail = format!("the body is longer than {BODY_BYTES_MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
        };
        // Check the announced length before reading.
        let length = body.size_hint().exact();
        if length.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
            return Err(too_long());
        }
        let length = length.map_or(BODY_BYTES_MAX, |length| length as usize);
        let kib = length.div_ceil(1024).max(1) as u32;
        let acquiring = self.0.clone().acquire_many_owned(kib);
        let Ok(Ok(permit)) = tokio::time::timeout(BODY_TIMEOUT, acquiring).await else {
            let detail =
                "too many calls with long bodies at the same time: send them one after another";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail));
        };
        let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect());
        match read.await {
            Ok(Ok(body)) => Ok((body.to_bytes(), permit)),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_long()),
            Ok(Err(error)) => Err(Problem::bad_request(format!("the body is incomplete: {error}"))),
            Err(_) => {
                let detail = format!("no complete body within {} s", BODY_TIMEOUT.as_secs());
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
            }
        }
    }
}

/// The longest body: enough for 10,000 URLs of 400 bytes.
const BODY_BYTES_MAX: usize = 4 << 20;
const BODIES_KIB_MAX: usize = 16 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

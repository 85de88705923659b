//! How often failed requests are sent again.

/// How often failed requests are sent again. Only a request is that the origin cannot have processed, or
/// an idempotent one (RFC 9110 §9.2.2) whose body can be sent again and that got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    /// Maximum number of attempts; 1 is no retry. An idle connection that turns out to be closed is
    /// replaced once without counting.
    pub attempts_max: u32,
    /// Maximum share of retries in all requests, in percent, so that retries do not multiply the load
    /// in an outage.
    pub budget_percent: u32,
    /// Number of retries that a core may make before it has earned any by requests.
    pub budget_reserve: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: 3, budget_percent: 20, budget_reserve: 10 }
    }
}

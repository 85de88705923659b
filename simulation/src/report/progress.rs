//! The progress line during a run. It is only drawn if standard error is a terminal.

use crate::check::Observation;
use crate::plan::Plan;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

/// The progress of a run. Clones share one line.
#[derive(Clone, Default)]
pub struct Progress(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    name: String,
    start: Option<Instant>,
    duration_s: f64,
    requests: u64,
    hits: u64,
    errors: u64,
    broken: u64,
    drawn: bool,
}

impl Progress {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints the size of the plan when the fleet is ready and the load starts.
    pub fn begin(&self, name: &str, plan: &Plan, nodes: usize) {
        let mut state = self.state();
        *state = State { name: name.to_owned(), start: Some(Instant::now()), ..State::default() };
        state.duration_s = plan.duration as f64 / 1e6;
        eprintln!(
            "{name}: {nodes} nodes, {} requests in {:.0} s, plan {}",
            plan.requests(),
            state.duration_s,
            plan.fingerprint()
        );
    }

    /// Counts the result of a request. `broken` is the number of broken promises so far.
    pub fn observe(&self, observation: &Observation, broken: u64) {
        let mut state = self.state();
        state.requests += 1;
        state.hits += u64::from(observation.is_hit());
        state.errors +=
            u64::from(observation.outcome.as_ref().map_or(true, |answer| answer.status >= 500));
        state.broken = broken;
    }

    /// Redraws the line.
    pub fn tick(&self, faults: Vec<String>) {
        let mut state = self.state();
        let Some(start) = state.start.filter(|_| std::io::stderr().is_terminal()) else { return };
        state.drawn = true;
        let line = line(&state, start.elapsed().as_secs_f64(), &faults);
        // An error does not matter to the run.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    }

    /// Ends the line at the end of the run.
    pub fn end(&self) {
        if self.state().drawn {
            eprintln!();
        }
    }
}

fn line(state: &State, elapsed_s: f64, faults: &[String]) -> String {
    const WIDTH: usize = 24;
    let share = (elapsed_s / state.duration_s.max(0.001)).clamp(0.0, 1.0);
    let full = (share * WIDTH as f64) as usize;
    let bar = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH - full));
    let hits = 100.0 * state.hits as f64 / state.requests.max(1) as f64;
    let faults = match faults {
        [] => String::new(),
        faults => format!(" · ⚡ {}", faults.join(", ")),
    };
    let broken = match state.broken {
        0 => String::new(),
        broken => format!(" · {broken} VIOLATIONS"),
    };
    format!(
        "{} {bar} {elapsed_s:.0}/{:.0} s · {} requests · {hits:.0} % hits · {} errors{faults}{broken}",
        state.name, state.duration_s, state.requests, state.errors
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_progress_faults_and_violations() {
        let state = State {
            name: "steady".into(),
            duration_s: 60.0,
            requests: 200,
            hits: 150,
            broken: 2,
            ..State::default()
        };
        let line = line(&state, 30.0, &["Redis killed".into()]);
        assert!(line.starts_with("steady ████████████░░░░░░░░░░░░ 30/60 s · 200 requests · 75 %"));
        assert!(line.ends_with("⚡ Redis killed · 2 VIOLATIONS"), "{line}");
    }
}

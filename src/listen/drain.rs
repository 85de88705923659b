//! How the end of serving is said to the workers.

use std::time::Duration;

use tokio::sync::watch;

/// Tells every holder of the [`Drain`] to finish.
#[derive(Debug)]
pub struct DrainSwitch(watch::Sender<Option<Duration>>);

/// Waits for the word to finish. Cloned to every worker.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<Option<Duration>>);

/// A switch and what it switches.
pub fn drain() -> (DrainSwitch, Drain) {
    let (sender, receiver) = watch::channel(None);
    (DrainSwitch(sender), Drain(receiver))
}

impl DrainSwitch {
    /// No new connections from now on; requests under way have `grace` to finish, then
    /// they are cut. Saying it again with less hurries.
    pub fn start(&self, grace: Duration) {
        self.0.send_replace(Some(grace));
    }
}

impl Drain {
    /// Whether the word was given.
    pub fn started(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Resolves when the word is given or changed, to the grace. Never, if the switch is gone.
    pub async fn told(&mut self) -> Duration {
        loop {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(grace) = *self.0.borrow_and_update() {
                return grace;
            }
        }
    }
}

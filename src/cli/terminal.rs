//! The terminal of `skerry top`: its size, and single keys without Return.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Standard input without line editing and echo, until it is dropped.
pub(super) struct KeyInput {
    before: Option<Termios>,
}

impl KeyInput {
    /// Takes single keys from standard input. If that is no terminal, or not `is_live`, no key is ever read.
    pub(super) fn open(is_live: bool) -> Self {
        let before = tcgetattr(io::stdin()).ok().filter(|_| is_live);
        if let Some(before) = &before {
            let mut raw = before.clone();
            // Ctrl-C comes as a key, too: a signal would leave the terminal without echo.
            raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
            // Without it, keys only need Return.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &raw);
        }
        Self { before }
    }

    /// Waits for a key, at most for `time`.
    pub(super) fn key_within(&self, time: Duration) -> Option<u8> {
        if self.before.is_none() {
            sleep(time);
            return None;
        }
        let stdin = io::stdin();
        let timeout = Timespec::try_from(time).ok();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        let is_ready = poll(&mut ready, timeout.as_ref()).is_ok_and(|count| count > 0);
        let mut key = [0];
        let is_read = is_ready && rustix::io::read(&stdin, &mut key).is_ok_and(|count| count == 1);
        is_read.then_some(key[0])
    }
}

impl Drop for KeyInput {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Columns and rows of the terminal at standard output; 80 and 24 if there is none.
pub(super) fn size() -> (usize, usize) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

fn sleep(time: Duration) {
    std::thread::sleep(time);
}

//! Codes the forms of often requested responses again at a high level, on a thread of its own.
//!
//! ```text
//! hit ─ 1 of 16 ─▶ enough hits of this object? ─ offer ─▶ queue ─▶ thread: read ─ code ─ shorter? ─▶ store
//!                                                                  ╰──────── rest for its share of CPU time
//! ```
//!
//! The thread has the lowest priority, and rests after each form for as long as its share of a core requires. A hot
//! form is a form like any other: its source's purge, validation or eviction needs nothing more here. It has an
//! entity tag of its own, because its bytes are others.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::runtime::Handle;

use super::form_response;
use crate::body::{Body, BodyFault};
use crate::cache::{Form, KeyHash};
use crate::clock::thread_cpu_time;
use crate::fields::FieldLines;
use crate::labels::HotFormOutcome;
use crate::metrics::{Metric, Recorder};
use crate::store::{Record, Store, StoredForm, StoredHead};
use crate::thread_priority::{self, Niceness};
use crate::transform::{self, ContentFields, DecodeLimit, Level, RecodePlan, Recoding};

/// How much the thread may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HotFormSettings {
    /// Its share of one core, in percent. 0: no form is coded again.
    pub cpu_percent: u8,
    /// Longer content is not coded again: it is in memory meanwhile.
    pub content_bytes_max: usize,
    /// Forms that may wait. Beyond, they are offered again with a later hit.
    pub queue_max: usize,
}

impl Default for HotFormSettings {
    fn default() -> Self {
        Self { cpu_percent: 10, content_bytes_max: 1 << 20, queue_max: 64 }
    }
}

/// A form that is to be coded again.
#[derive(Clone, Copy, Debug)]
pub(in crate::serve) struct HotForm {
    /// The hash of its source.
    pub hash: KeyHash,
    /// The object of its source.
    pub object: u128,
    /// The coding, and the new level.
    pub level: Level,
}

/// The thread and its queue.
pub(crate) struct HotForms {
    queue: Mutex<Queue>,
    changed: Condvar,
    store: Store,
    recorder: Recorder,
}

struct Queue {
    settings: HotFormSettings,
    forms: VecDeque<HotForm>,
    is_closed: bool,
}

impl HotForms {
    /// Starts the thread, which ends with [`HotForms::close`] or the process. `background` reads from disk.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub(crate) fn start(
        settings: HotFormSettings,
        store: Store,
        recorder: Recorder,
        background: Handle,
    ) -> io::Result<Arc<Self>> {
        let queue = Queue { settings, forms: VecDeque::new(), is_closed: false };
        let this =
            Arc::new(Self { queue: Mutex::new(queue), changed: Condvar::new(), store, recorder });
        let running = this.clone();
        thread::Builder::new()
            .name("hot-forms".to_owned())
            .spawn(move || running.run(&background))?;
        Ok(this)
    }

    /// Replaces the settings. They apply from the next form on.
    pub(crate) fn set(&self, settings: HotFormSettings) {
        self.queue().settings = settings;
        self.changed.notify_all();
    }

    /// Ends the thread after the form that it codes.
    pub(crate) fn close(&self) {
        self.queue().is_closed = true;
        self.changed.notify_all();
    }

    /// Queues a form. Returns whether there was room for it.
    pub(in crate::serve) fn offer(&self, form: HotForm) -> bool {
        let mut queue = self.queue();
        if queue.settings.cpu_percent == 0 {
            return false;
        }
        let has_room = queue.forms.len() < queue.settings.queue_max;
        if has_room {
            queue.forms.push_back(form);
            self.changed.notify_all();
        } else {
            self.count(HotFormOutcome::QueueFull);
        }
        has_room
    }

    fn run(&self, background: &Handle) {
        thread_priority::lower(Niceness::Lowest, "codes hot forms");
        while let Some((form, settings)) = self.next() {
            let before = thread_cpu_time();
            let outcome = background.block_on(self.code(form, settings.content_bytes_max));
            let spent = thread_cpu_time().saturating_sub(before);
            self.count(outcome);
            self.recorder.observe(Metric::HotFormSeconds, spent);
            self.rest(spent);
        }
    }

    /// Waits for the next form. `None` once it is closed.
    fn next(&self) -> Option<(HotForm, HotFormSettings)> {
        let mut queue = self.queue();
        while !queue.is_closed {
            match queue.forms.pop_front().filter(|_| queue.settings.cpu_percent > 0) {
                Some(form) => return Some((form, queue.settings.clone())),
                None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
        None
    }

    /// Waits until the CPU time that was spent is the thread's share of the time.
    fn rest(&self, spent: Duration) {
        let percent = u32::from(self.queue().settings.cpu_percent.clamp(1, 100));
        let pause = spent * (100 - percent) / percent;
        let queue = self.queue();
        let closed = self.changed.wait_timeout_while(queue, pause, |queue| !queue.is_closed);
        drop(closed);
    }

    async fn code(&self, form: HotForm, content_bytes_max: usize) -> HotFormOutcome {
        let Some((source, old)) = self.find(form).await else { return HotFormOutcome::Outdated };
        let content = match self.content(&source, content_bytes_max).await {
            Ok(content) => content,
            Err(outcome) => return outcome,
        };
        let coded = match transform::encode_hot(&content, form.level) {
            Ok(coded) => coded,
            Err(error) => {
                let key = &source.response.key;
                tracing::warn!(%error, %key, "cannot code a form again at a high level; the stored form stays in use");
                return HotFormOutcome::Failed;
            }
        };
        drop(content);
        // Coding has taken long.
        let Some((source, old)) = self.find(form).await.filter(|(_, now)| now.object == old.object)
        else {
            return HotFormOutcome::Outdated;
        };
        let saved = old.complete_length().saturating_sub(coded.len() as u64);
        let Some(marks) = old.response.form.as_deref() else { return HotFormOutcome::Outdated };
        if saved == 0 {
            let mut response = old.response.clone();
            response.form = Some(Box::new(Form { is_hot: true, ..marks.clone() }));
            self.store.renew_form(&old, response);
            return HotFormOutcome::Kept;
        }
        let number = marks.number.wrapping_add(NUMBER_STEP);
        let new = Form { number, is_hot: true, ..marks.clone() };
        let mut writer = self.store.writer(form_response(&source.response, new));
        let stored = match writer.push(Bytes::from(coded)).await {
            Ok(()) => writer.finish().await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(_) => {
                self.recorder.add(Metric::HotFormBytesSaved, saved);
                HotFormOutcome::Smaller
            }
            Err(_) => HotFormOutcome::Failed,
        }
    }

    /// The source and its form, if both are stored, no purge covers them, and the form is not yet hot.
    async fn find(&self, form: HotForm) -> Option<(Arc<StoredHead>, Arc<StoredHead>)> {
        let Record::Response(source) = self.store.find(form.hash).await? else { return None };
        let is_same = source.object.get() == form.object && source.response.parts.is_none();
        if !is_same || self.store.purge_verdict(&source).is_some() {
            return None;
        }
        let coding = Some(form.level.coding());
        // After a validation of the source the form's fields are outdated, and its bytes are right.
        let (StoredForm::Current(old) | StoredForm::Outdated(old)) =
            self.store.form_now(form.hash, &source, coding)?;
        let is_hot = old.response.form.as_ref().is_none_or(|form| form.is_hot);
        (!is_hot).then_some((source, old))
    }

    /// The content of a stored response without a coding.
    async fn content(
        &self,
        source: &Arc<StoredHead>,
        bytes_max: usize,
    ) -> Result<Bytes, HotFormOutcome> {
        let fields = FieldLines::of(&source.response.headers);
        let from = ContentFields::of(&fields).known_coding().ok_or(HotFormOutcome::Failed)?;
        let length = source.complete_length();
        if length > bytes_max as u64 {
            return Err(HotFormOutcome::TooLong);
        }
        let stored = match &source.inline {
            Some(content) => Body::from(content.clone()),
            None => Body::stream(self.store.body(source, 0..length)),
        };
        let body = match from {
            None => stored,
            Some(_) => {
                let limit = DecodeLimit { bytes_max: bytes_max as u64, ratio_max: u32::MAX };
                let recoding = Recoding { from, to: None };
                let plan = RecodePlan { recoding, length: Some(length), limit };
                transform::recode(stored, plan, &self.recorder)
            }
        };
        match body.collect().await {
            Ok(content) => Ok(content.to_bytes()),
            Err(error) if error.fault() == BodyFault::TooLong => Err(HotFormOutcome::TooLong),
            Err(_) => Err(HotFormOutcome::Failed),
        }
    }

    fn count(&self, outcome: HotFormOutcome) {
        self.recorder.count_labelled(Metric::HotForms, outcome.index());
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for HotForms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HotForms({} waiting)", self.queue().forms.len())
    }
}

/// Odd, so that all numbers of the forms of a response differ.
const NUMBER_STEP: u32 = 0x9e37_79b9;

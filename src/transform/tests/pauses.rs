//! Bodies whose source pauses: the reader has all that came before the pause, and is woken after it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use super::tests::{CODINGS, NO_LIMIT, level, piped, recorder, text};
use super::*;

#[derive(Clone, PartialEq)]
enum Step {
    Data(Bytes),
    /// Lasts until the reader waits for the source.
    Pause,
}

/// A source whose pauses the reader ends.
#[derive(Clone, Default)]
struct Held(Rc<RefCell<HeldState>>);

#[derive(Default)]
struct HeldState {
    steps: VecDeque<Step>,
    /// The waker of the last poll in the pause.
    waiting: Option<Waker>,
    /// The bytes that the source has given.
    given: usize,
}

impl BodySource for Held {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let mut state = self.0.borrow_mut();
        if state.steps.front() == Some(&Step::Pause) {
            state.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(state.steps.pop_front().map(|step| {
            let Step::Data(data) = step else { unreachable!("a pause is not passed") };
            state.given += data.len();
            Ok(Frame::data(data))
        }))
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The bytes that a reader has when its source pauses.
struct Pause {
    /// The bytes that the source has given.
    given: usize,
    /// The bytes that the reader has.
    read: usize,
}

/// Reads to the end, each time with another waker, as a body that moves between tasks is read. Each `Pending`
/// must be followed by a wake-up: the last poll's waker was woken, or the source has it.
fn read(steps: &[Step], recode: impl FnOnce(Body) -> Body) -> (Vec<u8>, Vec<Pause>) {
    let held = Held::default();
    held.0.borrow_mut().steps = steps.iter().cloned().collect();
    let mut body = recode(Body::stream(held.clone()));
    let (mut bytes, mut pauses) = (Vec::new(), Vec::new());
    loop {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        match body.poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Ready(None) => return (bytes, pauses),
            Poll::Ready(Some(frame)) => {
                let data = frame.expect("a valid body").into_data().expect("data");
                assert!(!data.is_empty(), "an empty frame");
                bytes.extend_from_slice(&data);
            }
            Poll::Pending if woken.0.load(Ordering::Relaxed) => {}
            Poll::Pending => {
                let mut state = held.0.borrow_mut();
                let waiting = state.waiting.take();
                let is_ours = waiting.is_some_and(|waiting| waiting.will_wake(&waker));
                assert!(is_ours, "nothing wakes the reader after {} bytes", bytes.len());
                pauses.push(Pause { given: state.given, read: bytes.len() });
                assert!(state.steps.pop_front() == Some(Step::Pause));
            }
        }
    }
}

fn encoded(steps: &[Step], coding: Coding) -> (Vec<u8>, Vec<Pause>) {
    read(steps, |body| encode(body, level(coding), None, &recorder()))
}

fn decoded(steps: &[Step], coding: Coding) -> (Vec<u8>, Vec<Pause>) {
    read(steps, |body| decode(body, coding, NO_LIMIT, &recorder()))
}

/// Content that is hard and easy to code, in pieces around the bounds of a turn and of a frame.
fn pieces(turn: usize) -> Vec<Bytes> {
    let mut seed = 1_u64;
    let mut noise = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    });
    let lengths = [1, 0, 1, turn - 1, 1, turn, 0, turn + 1, SCRATCH_BYTES, 3 * turn];
    let coarse = lengths.map(text);
    coarse.into_iter().chain(lengths.map(|length| noise.by_ref().take(length).collect())).collect()
}

/// The pieces, with a pause before each for which `pauses` holds, and before the end.
fn steps(pieces: &[Bytes], pauses: impl Fn(usize) -> bool) -> Vec<Step> {
    let mut steps = Vec::new();
    for number in 0..=pieces.len() {
        steps.extend(pauses(number).then_some(Step::Pause));
        steps.extend(pieces.get(number).cloned().map(Step::Data));
    }
    steps
}

/// Codes the source, and checks what is to be had at its pauses and at its end, also after it is decoded again.
fn check(steps: &[Step], coding: Coding) {
    let content: Vec<u8> = steps.iter().flat_map(Step::bytes).copied().collect();
    let (coded, pauses) = encoded(steps, coding);
    assert_eq!(pauses.len(), steps.iter().filter(|step| **step == Step::Pause).count());
    // The decoder's source pauses where the encoder's did.
    let (mut recoded, mut from) = (Vec::new(), 0);
    for pause in &pauses {
        recoded.extend([Step::Data(Bytes::copy_from_slice(&coded[from..pause.read])), Step::Pause]);
        from = pause.read;
    }
    recoded.push(Step::Data(Bytes::copy_from_slice(&coded[from..])));
    let (back, seen) = decoded(&recoded, coding);
    assert!(back == content, "{coding}");
    for (pause, seen) in pauses.iter().zip(&seen) {
        assert_eq!((seen.given, seen.read), (pause.read, pause.given), "{coding}");
    }
}

impl Step {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Data(data) => data,
            Self::Pause => &[],
        }
    }
}

#[test]
fn a_reader_has_all_that_came_before_a_pause_and_is_woken_after_it() {
    for coding in CODINGS {
        let pieces = pieces(Encoder::new(level(coding), None).turn().bytes);
        check(&steps(&pieces, |_| false), coding);
        for position in 0..=pieces.len() {
            check(&steps(&pieces, |number| number == position), coding);
            // The source ends here, with a pause before each piece.
            check(&steps(&pieces[..position], |_| true), coding);
            check(&steps(&pieces[position..], |number| number > 0), coding);
        }
    }
}

#[test]
fn a_source_of_single_bytes_is_coded_and_decoded_as_it_comes() {
    for coding in CODINGS {
        let bytes: Vec<_> = text(400).chunks(1).map(Bytes::copy_from_slice).collect();
        check(&steps(&bytes, |_| true), coding);
        check(&steps(&bytes, |number| number % 7 == 0), coding);
        let coded = piped(super::tests::encoder_of(coding), &text(70_000));
        let bytes: Vec<_> = coded.chunks(1).map(Bytes::copy_from_slice).collect();
        let (back, _) = decoded(&steps(&bytes, |_| true), coding);
        assert!(back == text(70_000), "{coding}");
    }
}

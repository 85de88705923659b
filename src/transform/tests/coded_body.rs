//! Bodies that are coded and decoded: by the codings' own programs, in any pieces, malformed, as bombs.

use std::collections::VecDeque;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use proptest::prelude::*;

use super::*;
use crate::metrics::Metrics;

/// A worker polls its sockets when no task is left that is ready to run. A task that codes is always ready.
#[test]
fn sockets_are_polled_after_each_turn() {
    use tokio::io::AsyncReadExt;
    use tokio::task::spawn_local;

    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime =
        runtime.enable_all().build_local(tokio::runtime::LocalOptions::default()).unwrap();
    for coding in CODINGS {
        let turns = Arc::new(AtomicUsize::new(0));
        let (counted, seen) = (turns.clone(), turns.clone());
        let at = runtime.block_on(async move {
            let (mut here, there) = tokio::net::UnixStream::pair().unwrap();
            let reader = spawn_local(async move {
                here.read_exact(&mut [0; 1]).await.unwrap();
                seen.load(Ordering::Relaxed)
            });
            let content = Body::from(text(4 << 20));
            let mut body = encode(content, level(coding), None, &recorder());
            let coder = spawn_local(std::future::poll_fn(move |cx| {
                loop {
                    match body.poll_frame(cx) {
                        Poll::Ready(Some(frame)) => drop(frame.unwrap()),
                        Poll::Ready(None) => return Poll::Ready(()),
                        Poll::Pending => break,
                    }
                }
                if counted.fetch_add(1, Ordering::Relaxed) == 0 {
                    there.try_write(b"x").unwrap();
                }
                Poll::Pending
            }));
            coder.await.unwrap();
            reader.await.unwrap()
        });
        let all = turns.load(Ordering::Relaxed);
        assert!(at <= 3 && all > 100, "{coding}: read after {at} of {all} turns");
    }
}

/// However many bodies are coded at the same time.
#[test]
fn sockets_are_polled_after_each_turn_of_any_body() {
    use std::cell::Cell;
    use std::rc::Rc;
    use tokio::io::AsyncReadExt;
    use tokio::task::spawn_local;

    const LENGTH: usize = 100_000;

    async fn check(coding: Coding) {
        let recorder = recorder();
        let (mut here, there) = tokio::net::UnixStream::pair().unwrap();
        let there = Rc::new((there, Cell::new(false)));
        let counted = recorder.clone();
        let reader = spawn_local(async move {
            here.read_exact(&mut [0; 1]).await.unwrap();
            counted.metrics().total(Metric::CoderBytesIn, 0)
        });
        let coders = [(); 8].map(|()| {
            let content =
                crate::body::pieces(text(LENGTH).chunks(1 << 15).map(Bytes::copy_from_slice));
            let mut body = encode(content, level(coding), None, &recorder);
            let (there, mut coded) = (there.clone(), Vec::new());
            spawn_local(std::future::poll_fn(move |cx| {
                loop {
                    match body.poll_frame(cx) {
                        Poll::Ready(Some(frame)) => {
                            coded.extend_from_slice(&frame.unwrap().into_data().unwrap());
                        }
                        Poll::Ready(None) => return Poll::Ready(std::mem::take(&mut coded)),
                        Poll::Pending => break,
                    }
                }
                if !there.1.replace(true) {
                    there.0.try_write(b"x").unwrap();
                }
                Poll::Pending
            }))
        });
        let bytes = reader.await.unwrap();
        let turn = Encoder::new(level(coding), None).turn().bytes as u64;
        assert!(
            (1..=2 * turn).contains(&bytes),
            "{coding}: {bytes} bytes before the sockets were polled"
        );
        for coder in coders {
            let coded = coder.await.unwrap();
            assert!(piped(decoder_of(coding), &coded) == text(LENGTH), "{coding}");
        }
    }

    let worker = std::thread::spawn(|| {
        super::super::encoder::prepare_thread();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let options = tokio::runtime::LocalOptions::default();
        let runtime = runtime.enable_all().build_local(options).unwrap();
        runtime.block_on(async {
            for coding in CODINGS {
                check(coding).await;
            }
        });
    });
    worker.join().unwrap();
}

pub(super) const CODINGS: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];
pub(super) const NO_LIMIT: DecodeLimit = DecodeLimit { bytes_max: u64::MAX, ratio_max: u32::MAX };

/// A source that a test scripts.
enum Step {
    Data(Bytes),
    Pause,
    Trailers(HeaderMap),
    Break,
}

struct Script(VecDeque<Step>);

impl BodySource for Script {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> PollFrame {
        match self.0.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Pause) => Poll::Pending,
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Step::Trailers(fields)) => Poll::Ready(Some(Ok(Frame::trailers(fields)))),
            Some(Step::Break) => Poll::Ready(Some(Err(BodyError::new("cut off")))),
        }
    }
}

fn script(steps: impl IntoIterator<Item = Step>) -> Body {
    Body::stream(Script(steps.into_iter().collect()))
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pieces that a reader gets.
#[derive(Default)]
struct Read {
    bytes: Vec<u8>,
    trailers: Option<HeaderMap>,
    error: Option<String>,
    ended: bool,
    frame_bytes_max: usize,
    /// Times that it had to wait, and the bytes that it had by then.
    waits: Vec<usize>,
    wakes: usize,
}

/// Reads until the end, or until it has waited `waits_max` times.
fn read_until(body: &mut Body, waits_max: usize) -> Read {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    let mut read = Read::default();
    while read.waits.len() < waits_max {
        match body.poll_frame(&mut cx) {
            Poll::Pending => read.waits.push(read.bytes.len()),
            Poll::Ready(None) => {
                read.ended = true;
                break;
            }
            Poll::Ready(Some(Err(error))) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                read.error = Some(source.unwrap_or_else(|| error.to_string()));
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    assert!(!data.is_empty(), "an empty frame ends an HTTP/1.1 body");
                    read.frame_bytes_max = read.frame_bytes_max.max(data.len());
                    read.bytes.extend_from_slice(&data);
                }
                Err(other) => read.trailers = other.into_trailers().ok(),
            },
        }
    }
    read.wakes = woken.0.load(Ordering::Relaxed);
    read
}

fn read(mut body: Body) -> Read {
    read_until(&mut body, usize::MAX)
}

pub(super) fn recorder() -> Recorder {
    Metrics::new(1).worker(0)
}

pub(super) fn level(coding: Coding) -> Level {
    Level::new(coding, if coding == Coding::Zstd { 3 } else { 4 }).unwrap()
}

fn encoded(steps: impl IntoIterator<Item = Step>, coding: Coding) -> Read {
    read(encode(script(steps), level(coding), None, &recorder()))
}

fn decoded(bytes: Bytes, coding: Coding, limit: DecodeLimit) -> Read {
    read(decode(bytes.into(), coding, limit, &recorder()))
}

/// Text with some structure, the same every time.
pub(super) fn text(bytes: usize) -> Bytes {
    let mut seed = 0x2545_F491_4F6C_DD1D_u64;
    let words = std::iter::from_fn(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        Some(format!("<p class=\"w{}\">{:x}</p>\n", seed % 61, seed >> 40))
    });
    let mut text = String::with_capacity(bytes + 64);
    words
        .take_while(|word| {
            text.push_str(word);
            text.len() < bytes
        })
        .for_each(drop);
    text.truncate(bytes);
    text.into()
}

/// The output of the coding's own program.
pub(super) fn piped(program: &str, input: &[u8]) -> Vec<u8> {
    let (name, arguments) = program.split_once(' ').unwrap();
    let mut child = Command::new(name)
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name} is needed for this test: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{program}: {}", output.status);
    output.stdout
}

fn decoder_of(coding: Coding) -> &'static str {
    match coding {
        Coding::Zstd => "zstd -dcq",
        Coding::Brotli => "brotli -dc",
        Coding::Gzip => "gzip -dc",
    }
}

pub(super) fn encoder_of(coding: Coding) -> &'static str {
    match coding {
        Coding::Zstd => "zstd -9cq",
        Coding::Brotli => "brotli -q 9 -c",
        Coding::Gzip => "gzip -9c",
    }
}

#[test]
fn the_codings_own_programs_read_what_we_write() {
    for coding in CODINGS {
        for length in [1, 1000, WHOLE_BODY_BYTES_MAX, WHOLE_BODY_BYTES_MAX + 1, 700_000] {
            let text = text(length);
            let once =
                read(encode(text.clone().into(), level(coding), Some(length as u64), &recorder()));
            assert!(piped(decoder_of(coding), &once.bytes) == text, "{coding} {length}");
            let pieces = text.chunks(10_007).map(Bytes::copy_from_slice);
            let steps = pieces.flat_map(|piece| [Step::Data(piece), Step::Pause]);
            let streamed = encoded(steps, coding);
            assert!(streamed.ended && streamed.frame_bytes_max <= SCRATCH_BYTES);
            assert!(piped(decoder_of(coding), &streamed.bytes) == text, "{coding} {length}");
            assert!(length < 1000 || once.bytes.len() < length / 2);
        }
        let nothing = encoded([], coding);
        assert_eq!(piped(decoder_of(coding), &nothing.bytes), b"");
    }
}

#[test]
fn we_read_what_the_codings_own_programs_write() {
    for coding in CODINGS {
        for length in [0, 1, 1000, 700_000] {
            let text = text(length);
            let coded: Bytes = piped(encoder_of(coding), &text).into();
            let whole = decoded(coded.clone(), coding, NO_LIMIT);
            assert!(whole.bytes == text && whole.error.is_none(), "{coding} {length}");
            // The pieces end anywhere, and the sender pauses after each.
            let pieces = coded.chunks(1 + length / 1000).map(Bytes::copy_from_slice);
            let steps = pieces.flat_map(|piece| [Step::Data(piece), Step::Pause]);
            let streamed = read(decode(script(steps), coding, NO_LIMIT, &recorder()));
            assert!(streamed.bytes == text && streamed.error.is_none(), "{coding} {length}");
        }
    }
}

#[test]
fn a_pause_after_a_pause_writes_nothing() {
    for coding in CODINGS {
        let steps = [Step::Data("hello".into()), Step::Pause, Step::Pause, Step::Pause];
        let read = encoded(steps, coding);
        assert!(read.waits.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", read.waits);
    }
}

#[test]
fn others_get_their_turn_after_a_few_kib() {
    let zeros = Bytes::from(vec![0; 4 << 20]);
    for coding in CODINGS {
        let turn = Encoder::new(level(coding), None).turn().bytes;
        let coded = encoded([Step::Data(zeros.clone())], coding);
        assert_eq!(coded.wakes, coded.waits.len());
        // Reading the piece is a turn, too.
        let (most, waits) = ((4 << 20) / turn + 1, coded.waits.len());
        assert!((most * 9 / 10..=most + 1).contains(&waits), "{coding} {waits} of {most}");
        let back = decoded(coded.bytes.into(), coding, NO_LIMIT);
        assert!(back.bytes == zeros);
        assert!((50..=256).contains(&back.waits.len()), "{coding} {}", back.waits.len());
    }
}

/// A body that is coded at once is one turn.
#[test]
fn short_content_is_coded_at_once_only_as_far_as_its_level_is_fast() {
    let check = |coding, level, bytes_max: usize| {
        let level = Level::new(coding, level).unwrap();
        let is_at_once = |length| {
            let body = encode(text(length).into(), level, Some(length as u64), &recorder());
            let is_at_once = body.exact_length().is_some();
            assert!(piped(decoder_of(coding), &read(body).bytes) == text(length), "{level:?}");
            is_at_once
        };
        assert_eq!((is_at_once(bytes_max), is_at_once(bytes_max + 1)), (true, false), "{level:?}");
    };
    check(Coding::Zstd, 3, 12 << 10);
    check(Coding::Zstd, 9, 4 << 10);
    check(Coding::Brotli, 4, 8 << 10);
    check(Coding::Brotli, 11, 4 << 10);
    check(Coding::Gzip, 9, 12 << 10);
}

/// A slice that the worker has read from disk is coded in the next turn.
#[test]
fn a_long_piece_is_read_in_a_turn_of_its_own() {
    for coding in CODINGS {
        let coded_by_the_first_wait = |length| {
            let recorder = recorder();
            let piece = [Step::Data(text(length))];
            read_until(&mut encode(script(piece), level(coding), None, &recorder), 1);
            recorder.metrics().total(Metric::CoderBytesIn, 0)
        };
        assert_eq!(coded_by_the_first_wait(LONG_PIECE_BYTES), 0, "{coding}");
        assert!(coded_by_the_first_wait(LONG_PIECE_BYTES - 1) > 0, "{coding}");
    }
}

#[test]
fn trailers_follow_and_a_break_is_passed_on() {
    for coding in CODINGS {
        let mut fields = HeaderMap::new();
        fields.insert("x-checksum", "1".parse().unwrap());
        let whole = encoded([Step::Data("hello".into()), Step::Trailers(fields.clone())], coding);
        assert_eq!(whole.trailers, Some(fields));
        assert_eq!(piped(decoder_of(coding), &whole.bytes), b"hello");
        let broken = encoded([Step::Data("hello".into()), Step::Break], coding);
        assert_eq!(broken.error.as_deref(), Some("cut off"));
        assert!(broken.ended);
    }
}

/// A digest of the content before would make a client that checks it discard what it has decoded.
#[test]
fn trailers_that_describe_the_bytes_before_are_left_out() {
    for coding in CODINGS {
        let mut fields = HeaderMap::new();
        fields.insert("content-digest", "sha-256=:AAAA:".parse().unwrap());
        fields.insert("etag", "\"v1\"".parse().unwrap());
        let digest = Step::Trailers(fields.clone());
        assert_eq!(encoded([Step::Data("hello".into()), digest], coding).trailers, None);
        fields.insert("x-checksum", "1".parse().unwrap());
        let coded = encoded([Step::Data("hello".into())], coding).bytes;
        let steps = [Step::Data(coded.into()), Step::Trailers(fields)];
        let decoded = read(decode(script(steps), coding, NO_LIMIT, &recorder()));
        let left = decoded.trailers.expect("one is left");
        assert_eq!((left.len(), left.contains_key("x-checksum")), (1, true));
    }
}

#[test]
fn coded_data_that_end_early_or_go_on_are_an_error() {
    for coding in CODINGS {
        let coded = encoded([Step::Data(text(100_000))], coding).bytes;
        for length in [1, 2, 20, coded.len() / 2, coded.len() - 1] {
            let cut = decoded(Bytes::copy_from_slice(&coded[..length]), coding, NO_LIMIT);
            let error = cut.error.unwrap_or_else(|| panic!("{coding} cut at {length} passed"));
            assert_eq!(error, "the coded data are malformed or incomplete");
        }
        let longer = [&coded[..], b"and more"].concat();
        assert!(decoded(longer.into(), coding, NO_LIMIT).error.is_some(), "{coding}");
    }
}

#[test]
fn gzip_members_and_zstd_frames_may_follow_each_other() {
    for coding in [Coding::Gzip, Coding::Zstd] {
        let one = encoded([Step::Data("one ".into())], coding).bytes;
        let two = encoded([Step::Data("two".into())], coding).bytes;
        let both = decoded([one, two].concat().into(), coding, NO_LIMIT);
        assert_eq!((both.bytes, both.error), (b"one two".to_vec(), None));
    }
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let zeros = Bytes::from(vec![0; 12 << 20]);
    for coding in CODINGS {
        let bomb: Bytes = encoded([Step::Data(zeros.clone())], coding).bytes.into();
        let check = |limit, bytes_max: usize| {
            let read = decoded(bomb.clone(), coding, limit);
            assert!(read.error.unwrap().contains("the decoded body is larger than"));
            assert!(read.bytes.len() <= bytes_max, "{coding}: {}", read.bytes.len());
        };
        check(DecodeLimit { bytes_max: 5 << 20, ..NO_LIMIT }, 5 << 20);
        check(DecodeLimit { ratio_max: 100, ..NO_LIMIT }, (bomb.len() * 100).max(1 << 20));
        assert_eq!(decoded(bomb.clone(), coding, NO_LIMIT).bytes.len(), 12 << 20);
    }
}

#[test]
fn coded_bodies_are_counted() {
    let recorder = recorder();
    let coded = read(encode(text(100_000), level(Coding::Gzip), &recorder));
    let broken = read(decode("no gzip".into(), Coding::Gzip, NO_LIMIT, &recorder));
    assert!(broken.error.is_some());
    let total = |metric, label| recorder.metrics().total(metric, label);
    assert_eq!(total(Metric::BodiesEncoded, Coding::Gzip.index()), 1);
    assert_eq!(total(Metric::BodiesDecoded, Coding::Gzip.index()), 1);
    assert_eq!(total(Metric::CoderFailures, 0), 1);
    assert_eq!(total(Metric::CoderBytesOut, 0), coded.bytes.len() as u64);

    fn encode(text: Bytes, level: Level, recorder: &Recorder) -> Body {
        super::encode(text.into(), level, None, recorder)
    }
}

fn pieces() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        (any::<u8>(), 0..100_000_usize).prop_map(|(byte, length)| vec![byte; length]),
    ];
    prop::collection::vec((piece, any::<bool>()), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_body_in_any_pieces_comes_back(pieces in pieces(), number in 0..3_usize) {
        let coding = CODINGS[number];
        let whole: Vec<u8> = pieces.iter().flat_map(|(piece, _)| piece.clone()).collect();
        let steps = pieces.into_iter().flat_map(|(piece, pause)| {
            let pause = pause.then_some(Step::Pause);
            [Some(Step::Data(piece.into())), pause].into_iter().flatten()
        });
        let coded = encoded(steps, coding);
        prop_assert!(coded.error.is_none());
        let back = decoded(coded.bytes.into(), coding, NO_LIMIT);
        prop_assert!(back.error.is_none() && back.bytes == whole);
    }

    #[test]
    fn any_garbage_ends_without_a_panic(
        garbage in prop::collection::vec(any::<u8>(), 0..400), number in 0..3_usize,
    ) {
        let coding = CODINGS[number];
        let limit = DecodeLimit { bytes_max: 1 << 20, ratio_max: 1000 };
        prop_assert!(decoded(garbage.clone().into(), coding, limit).ended);
        // Behind a true beginning, too.
        let mut coded = encoded([Step::Data(text(500))], coding).bytes;
        let at = garbage.len() % coded.len();
        coded.splice(at.., garbage);
        prop_assert!(decoded(coded.into(), coding, limit).ended);
    }
}

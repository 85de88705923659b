//! Parses the head of a request (RFC 9112 §2 to §6), strictly: a head that two parsers could read
//! differently is refused.
//!
//! httparse does the parsing. It accepts lines that end in a bare LF, more than one field that frames the
//! body, and transfer codings other than `chunked`; they are refused here.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use crate::fields::{members, number};

use super::super::settings::Limits;
use super::super::{HeadError, uri_bytes};

/// A parsed head.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) request: Request<()>,
    pub(super) framing: RequestFraming,
    /// Whether the client may use the connection again.
    pub(super) keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1).
    pub(super) expects_continue: bool,
    /// Whether the client accepts trailers (RFC 9110 §6.5.1).
    pub(super) takes_trailers: bool,
    /// Whether the request has `Upgrade` (RFC 9110 §7.8).
    pub(super) upgrades: bool,
}

/// How a request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestFraming {
    /// This many bytes; zero for no body.
    Length(u64),
    /// Chunks (RFC 9112 §7.1).
    Chunked,
    /// An unknown transfer coding. The request is refused later, and its body is not read.
    Unknown,
}

/// Finds the end of a head that arrives in pieces. Each byte is looked at once.
#[derive(Debug, Default)]
pub(super) struct HeadScanner {
    /// Where the head starts: empty lines before it are skipped (RFC 9112 §2.2).
    start: usize,
    /// Where the current line starts.
    line: usize,
    /// How many bytes were looked at.
    scanned: usize,
}

impl HeadScanner {
    /// `bytes` are all bytes after the previous head, including those of earlier calls. Returns the range
    /// of the head once it is complete.
    ///
    /// # Errors
    /// A line ends in a bare LF, or no request can start with the first byte.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Result<Option<Range<usize>>, HeadError> {
        for lf in memchr::memchr_iter(b'\n', &bytes[self.scanned..]) {
            let lf = self.scanned + lf;
            if lf == self.line || bytes[lf - 1] != b'\r' {
                return Err(HeadError::Framing);
            }
            let is_empty = lf - 1 == self.line;
            self.line = lf + 1;
            match (is_empty, self.start + 2 == self.line) {
                (true, true) => self.start = self.line,
                (true, false) => {
                    return self.check_first_byte(bytes).map(|()| Some(self.start..self.line));
                }
                (false, _) => {}
            }
        }
        self.scanned = bytes.len();
        // Bytes that are not HTTP are refused before a timeout.
        self.check_first_byte(bytes).map(|()| None)
    }

    fn check_first_byte(&self, bytes: &[u8]) -> Result<(), HeadError> {
        match bytes.get(self.start) {
            Some(first) if !first.is_ascii_graphic() && *first != b'\r' => {
                Err(HeadError::Malformed)
            }
            _ => Ok(()),
        }
    }

    /// Whether a part of a head has arrived.
    pub(super) fn has_partial_head(&self) -> bool {
        self.scanned > self.start
    }
}

/// Parses a complete head, as [`HeadScanner::find`] found it.
///
/// # Errors
/// The head is refused; the connection must then be closed.
pub(super) fn parse(head: Bytes, limits: &Limits) -> Result<RequestHead, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
    let mut more = Vec::new();
    let room = if limits.headers_max <= FIELDS_ON_STACK {
        &mut fields[..limits.headers_max]
    } else {
        more.resize_with(limits.headers_max, MaybeUninit::uninit);
        &mut more[..]
    };
    let mut parsed = httparse::Request::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_request_with_uninit_headers(&mut parsed, &head, room) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(HeadError::Malformed),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::HeadTooLarge),
        Err(httparse::Error::Version) => {
            let known = as_http_1_1(&head).ok_or(HeadError::Malformed)?;
            return parse(known, limits);
        }
        Err(_) => return Err(HeadError::Malformed),
    }
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let method = parsed.method.unwrap_or_default().as_bytes();
    let target = parsed.path.unwrap_or_default().as_bytes();
    if target.len() > URI_BYTES_MAX {
        return Err(HeadError::TargetTooLong);
    }
    let mut request = Request::new(());
    *request.version_mut() = version;
    *request.method_mut() = Method::from_bytes(method).map_err(|_| HeadError::Malformed)?;
    *request.uri_mut() =
        Uri::from_maybe_shared(head.slice_ref(target)).map_err(|_| HeadError::Malformed)?;
    if *request.method() == Method::OPTIONS
        && request.uri().scheme().is_some()
        && has_no_path(target)
    {
        set_asterisk_target(&mut request);
    }
    if uri_bytes(&request) > limits.uri_bytes_max {
        return Err(HeadError::TargetTooLong);
    }
    let mut options =
        HopOptions { keep_alive: version == Version::HTTP_11, ..HopOptions::default() };
    let headers = request.headers_mut();
    headers.try_reserve(parsed.headers.len()).map_err(|_| HeadError::HeadTooLarge)?;
    for field in &*parsed.headers {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| HeadError::Malformed)?;
        let value = field_value(head.slice_ref(field.value));
        options.read(&name, &value, version);
        headers.try_append(name, value).map_err(|_| HeadError::HeadTooLarge)?;
    }
    let framing = framing(headers, &options, version)?;
    Ok(RequestHead {
        request,
        framing,
        keep_alive: options.keep_alive && !options.close,
        expects_continue: options.expects_continue && framing != RequestFraming::Length(0),
        takes_trailers: options.takes_trailers,
        upgrades: options.upgrades,
    })
}

/// The same head with version 1.1 in place of a higher minor version: a message of an unknown minor version
/// is processed as one of the highest known (RFC 9110 §2.5). `None` for any other version.
fn as_http_1_1(head: &[u8]) -> Option<Bytes> {
    let line = head.iter().position(|byte| *byte == b'\r')?;
    let minor = line.checked_sub(1)?;
    let is_higher = matches!(head[minor], b'2'..=b'9') && head[..minor].ends_with(b" HTTP/1.");
    is_higher.then(|| {
        let mut known = head.to_vec();
        known[minor] = b'1';
        known.into()
    })
}

/// Whether a URL ends after its authority.
fn has_no_path(url: &[u8]) -> bool {
    let authority = url.windows(3).position(|bytes| bytes == b"://").map(|at| at + 3);
    authority.is_some_and(|at| !url[at..].iter().any(|byte| b"/?#".contains(byte)))
}

/// `OPTIONS http://host` is about the whole server, as is `OPTIONS *` (RFC 9112 §3.2.4).
fn set_asterisk_target(request: &mut Request<()>) {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("*"));
    *request.uri_mut() = Uri::from_parts(parts).expect("a URL has all three parts");
}

#[expect(unsafe_code, reason = "httparse has checked each byte")]
fn field_value(parsed: Bytes) -> HeaderValue {
    debug_assert!(HeaderValue::from_bytes(&parsed).is_ok(), "{parsed:?}");
    // SAFETY: httparse accepts the same bytes in a value as `HeaderValue`: tab, and from space on all but
    // DEL. A test compares them for each byte.
    unsafe { HeaderValue::from_maybe_shared_unchecked(parsed) }
}

/// The parts of the request's fields that are for this hop.
#[derive(Default)]
struct HopOptions {
    keep_alive: bool,
    /// `Connection: close`, which wins over `keep-alive` in another line (RFC 9112 §9.3).
    close: bool,
    expects_continue: bool,
    takes_trailers: bool,
    /// The request has `Upgrade`.
    upgrades: bool,
    /// How many fields frame the body.
    framing_fields: u32,
}

impl HopOptions {
    fn read(&mut self, name: &HeaderName, value: &HeaderValue, version: Version) {
        let is = |option: &str| {
            members(value.as_bytes()).any(|member| member.eq_ignore_ascii_case(option.as_bytes()))
        };
        match *name {
            CONTENT_LENGTH | TRANSFER_ENCODING => self.framing_fields += 1,
            CONNECTION if is("close") => self.close = true,
            CONNECTION if version == Version::HTTP_10 && is("keep-alive") => self.keep_alive = true,
            EXPECT if version == Version::HTTP_11 && is("100-continue") => {
                self.expects_continue = true;
            }
            TE if is("trailers") => self.takes_trailers = true,
            UPGRADE => self.upgrades = true,
            _ => {}
        }
    }
}

/// RFC 9112 §6.3, read strictly.
fn framing(
    headers: &HeaderMap,
    options: &HopOptions,
    version: Version,
) -> Result<RequestFraming, HeadError> {
    match options.framing_fields {
        0 => return Ok(RequestFraming::Length(0)),
        1 => {}
        _ => return Err(HeadError::Framing),
    }
    if let Some(length) = headers.get(CONTENT_LENGTH) {
        return number(length.as_bytes()).map(RequestFraming::Length).ok_or(HeadError::Framing);
    }
    let Some(coding) = headers.get(TRANSFER_ENCODING) else { return Err(HeadError::Framing) };
    // The part after the last comma, even if it is empty.
    let last = coding.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
    if version != Version::HTTP_11 || !last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Err(HeadError::Framing);
    }
    let is_alone = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    Ok(if is_alone { RequestFraming::Chunked } else { RequestFraming::Unknown })
}

/// Room for this many fields is on the stack; room for more is allocated.
const FIELDS_ON_STACK: usize = 128;
/// `Uri` has no room for more.
const URI_BYTES_MAX: usize = u16::MAX as usize - 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    fn found(bytes: &[u8]) -> Result<Option<Range<usize>>, HeadError> {
        HeadScanner::default().find(bytes)
    }

    fn read(text: &str) -> Result<RequestHead, HeadError> {
        parse(Bytes::copy_from_slice(text.as_bytes()), &Limits::default())
    }

    #[test]
    fn a_head_ends_at_its_empty_line() {
        assert_eq!(found(GET), Ok(Some(0..GET.len())));
        assert_eq!(found(&[GET, GET].concat()), Ok(Some(0..GET.len())));
        assert_eq!(found(&GET[..GET.len() - 1]), Ok(None));
        assert_eq!(found(&[b"\r\n\r\n", GET].concat()), Ok(Some(4..4 + GET.len())));
        assert_eq!(found(b"\r\n\r\n"), Ok(None));
    }

    #[test]
    fn how_the_bytes_are_cut_changes_nothing() {
        for whole in [GET.to_vec(), [b"\r\n", GET].concat()] {
            let expected = found(&whole);
            for cut in 0..whole.len() {
                let mut scanner = HeadScanner::default();
                assert_eq!(scanner.find(&whole[..cut]), Ok(None), "cut at {cut}");
                assert_eq!(scanner.find(&whole), expected, "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_bare_lf_is_refused_wherever_it_stands() {
        for head in [
            b"GET / HTTP/1.1\nHost: a\r\n\r\n".as_slice(),
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"\nGET / HTTP/1.1\r\n",
            b"\r\n\nGET / HTTP/1.1\r\n",
        ] {
            assert_eq!(found(head), Err(HeadError::Framing), "{head:?}");
        }
    }

    #[test]
    fn bytes_that_cannot_begin_a_request_are_refused_at_once() {
        assert_eq!(found(b"\x16\x03\x01"), Err(HeadError::Malformed));
        assert_eq!(found(b" GET"), Err(HeadError::Malformed));
        assert_eq!(found(b"\r"), Ok(None));
    }

    #[track_caller]
    fn check_framing(fields: &str, expected: Result<RequestFraming, HeadError>) {
        let head = read(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
        assert_eq!(head.map(|head| head.framing), expected, "{fields:?}");
    }

    #[test]
    fn one_field_alone_says_how_the_body_is_framed() {
        check_framing("X: y", Ok(RequestFraming::Length(0)));
        check_framing("Content-Length: 5", Ok(RequestFraming::Length(5)));
        check_framing("transfer-encoding: Chunked", Ok(RequestFraming::Chunked));
        check_framing("Content-Length: 5\r\nContent-Length-Hint: 5", Ok(RequestFraming::Length(5)));
        check_framing("Transfer-Encoding: gzip, chunked", Ok(RequestFraming::Unknown));
        for doubtful in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "TRANSFER-ENCODING:chunked\r\nX: y\r\ncontent-length:5",
            "Content-Length: 5\r\nContent-Length: 5",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: chunked,",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding:",
            "Content-Length: +5",
            "Content-Length: 5, 5",
            "Content-Length: 99999999999999999999",
            "Content-Length:",
        ] {
            check_framing(doubtful, Err(HeadError::Framing));
        }
    }

    #[test]
    fn options_of_the_client_for_the_connection_are_read() {
        let head = |line: &str, fields: &str| {
            read(&format!("GET / {line}\r\n{fields}\r\n\r\n")).expect("a head")
        };
        assert!(head("HTTP/1.1", "Host: a").keep_alive);
        assert!(!head("HTTP/1.1", "Connection: x, Close").keep_alive);
        assert!(!head("HTTP/1.0", "Host: a").keep_alive);
        assert!(!head("HTTP/1.0", "Connection: close\r\nConnection: keep-alive").keep_alive);
        assert!(head("HTTP/1.0", "Connection: Keep-Alive").keep_alive);
        assert!(!head("HTTP/1.1", "Expect: 100-continue").expects_continue);
        let post = "Content-Length: 1\r\nExpect: 100-Continue";
        assert!(head("HTTP/1.1", post).expects_continue);
        assert!(!head("HTTP/1.0", post).expects_continue);
        assert!(head("HTTP/1.1", "TE: trailers").takes_trailers);
    }

    #[test]
    fn a_higher_minor_version_is_read_as_the_highest_known_one() {
        let version = |version: &str| {
            read(&format!("GET / {version}\r\nHost: a\r\n\r\n")).map(|head| head.request.version())
        };
        assert_eq!(version("HTTP/1.2"), Ok(Version::HTTP_11));
        assert_eq!(version("HTTP/1.9"), Ok(Version::HTTP_11));
        let head = read("GET / HTTP/1.2\r\nHost: a\r\nConnection: close\r\n\r\n").expect("a head");
        assert!(!head.keep_alive);
        for other in
            ["HTTP/2.0", "HTTP/0.9", "HTTP/1.10", "HTTP/1.", "http/1.2", "HTTP/1.2 ", "HTTP/1.a"]
        {
            assert_eq!(version(other), Err(HeadError::Malformed), "{other}");
        }
    }

    #[test]
    fn options_of_a_url_without_a_path_asks_for_the_server() {
        let target = |line: &str| {
            let head = read(&format!("{line} HTTP/1.1\r\nHost: a.test\r\n\r\n")).expect("a head");
            let uri = head.request.uri().clone();
            (uri.authority().is_some(), uri.path_and_query().expect("a path").to_string())
        };
        assert_eq!(target("OPTIONS http://a.test"), (true, "*".to_owned()));
        assert_eq!(target("OPTIONS http://a.test:80"), (true, "*".to_owned()));
        assert_eq!(target("OPTIONS http://a.test/"), (true, "/".to_owned()));
        assert_eq!(target("OPTIONS http://a.test?b"), (true, "/?b".to_owned()));
        assert_eq!(target("OPTIONS *"), (false, "*".to_owned()));
        assert_eq!(target("OPTIONS /b://c"), (false, "/b://c".to_owned()));
        assert_eq!(target("GET http://a.test"), (true, "/".to_owned()));
    }

    #[test]
    fn fields_keep_their_order_and_their_bytes() {
        let head = read("GET /a?b HTTP/1.1\r\nHost: a\r\nX-B:\t1 \r\nx-b: \u{e9}\r\n\r\n");
        let request = head.expect("a head").request;
        assert_eq!(request.uri(), "/a?b");
        let values: Vec<_> = request.headers().get_all("x-b").iter().collect();
        assert_eq!(values[0], "1");
        assert_eq!(values[1].as_bytes(), "\u{e9}".as_bytes());
    }

    #[test]
    fn a_value_is_made_of_the_bytes_that_a_field_may_have() {
        for byte in 0..=u8::MAX {
            let text = [b"GET / HTTP/1.1\r\nX: a", &[byte][..], b"b\r\n\r\n"].concat();
            let head = parse(text.into(), &Limits::default());
            let value = HeaderValue::from_bytes(&[b'a', byte, b'b']);
            assert_eq!(head.is_ok(), value.is_ok(), "{byte}");
        }
    }

    #[test]
    fn as_many_fields_as_are_allowed_and_no_more() {
        let head = |fields: usize| {
            let lines = "X: y\r\n".repeat(fields);
            let text = format!("GET / HTTP/1.1\r\n{lines}\r\n");
            let limits = Limits { headers_max: 200, ..Limits::default() };
            parse(Bytes::from(text), &limits).map(|head| head.request.headers().len())
        };
        assert_eq!(head(200), Ok(200));
        assert_eq!(head(201), Err(HeadError::HeadTooLarge));
    }

    /// Random sequences of the parts of smuggling attacks.
    fn nasty() -> impl Strategy<Value = Vec<u8>> {
        let words = [
            "\r\n",
            "\r\n",
            "\r\n",
            "\n",
            "\r",
            "\r\n\r\n",
            " ",
            "\t",
            ":",
            ": ",
            ",",
            "\0",
            "\x0b",
            "\u{e9}",
            "GET / HTTP/1.1\r\n",
            "POST /a HTTP/1.0\r\n",
            "GET",
            "/",
            "HTTP/1.1",
            "Host: a\r\n",
            "Content-Length",
            "content-length: 5\r\n",
            "Transfer-Encoding",
            "transfer-encoding: chunked\r\n",
            "chunked",
            "5",
            "x",
            "Connection: close\r\n",
        ];
        let word = proptest::sample::select(words.to_vec());
        proptest::collection::vec(word, 0..24).prop_map(|words| words.concat().into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn no_bytes_have_two_readings(bytes in nasty(), cut in any::<prop::sample::Index>()) {
            let whole = found(&bytes);
            let cut = cut.index(bytes.len() + 1);
            let mut scanner = HeadScanner::default();
            let in_pieces = match scanner.find(&bytes[..cut]) {
                Ok(None) => scanner.find(&bytes),
                ended => ended,
            };
            // Why it is refused may depend on what has come.
            prop_assert_eq!(in_pieces.ok(), whole.clone().ok(), "cut at {}", cut);
            let Ok(Some(range)) = whole else { return Ok(()) };
            let text = &bytes[range];
            prop_assert!(text.ends_with(b"\r\n\r\n"));
            let Ok(head) = parse(Bytes::copy_from_slice(text), &Limits::default()) else { return Ok(()) };
            // As another parser reads the fields: line by line, up to the first colon.
            let text = String::from_utf8_lossy(text);
            let lines: Vec<&str> = text.trim_end().split('\n').collect();
            let named = |name: &str| {
                let names = lines[1..].iter().map(|line| line.split(':').next().unwrap_or_default());
                names.filter(|theirs| theirs.trim().eq_ignore_ascii_case(name)).count()
            };
            let (lengths, codings) = (named("content-length"), named("transfer-encoding"));
            prop_assert!(lengths + codings <= 1, "{}", text);
            prop_assert_eq!(head.framing == RequestFraming::Chunked, codings == 1 && head.framing != RequestFraming::Unknown);
            prop_assert_eq!(head.request.headers().len(), lines.len() - 1, "{}", text);
        }
    }
}

//! The on-disk encoding of heads, variant lists and slices.
//!
//! ```text
//! value    version (1) = 2   kind (1)   length (4)   payload[length]
//!
//! kind 1   head:     lineage (8) stored_at_sequence (8) object (16) hash (16) slice_bytes (4)
//!                    status (2) flags (2) response_time initial_age lifetime
//!                    stale_while_revalidate stale_if_error (each: seconds (8) nanoseconds (4))
//!                    complete_length (8)  key site variant (texts)
//!                    tags: count (4) hash (8)*     parts: count (4) [start (8) end (8)]*
//!                    fields: count (4) [name value]* (texts)    body (text)
//! kind 2   variants: sets: count (4)
//!                    [fields: count (4) name*   variants: count (4)
//!                      [hash (16) others (8) language (text)]*]*
//! kind 3   slice:    bytes
//! kind 6   form:     coding (1: 0 none  1 zstd  2 br  3 gzip) source (16) number (4) source_entry (8; 0: unknown)
//!                    as a head
//! kind 7   hot form: as kind 6                       kinds 4, 5: as 6, 7 without source_entry, from older builds
//! text     length (4)  bytes
//! flags    1 heuristic  2 must_revalidate  4 no_cache  8 immutable
//!          16 complete_length  32 parts  64 body inline       (language: empty is none)
//!          128 received over HTTP/2  256 over HTTP/1.0        (neither: over HTTP/1.1)
//! ```
//!
//! All numbers are little-endian. [`super::blocks`] verifies the checksum of key and value before. A
//! value of another version or kind, or with bytes left over or missing, decodes to [`Piece::Unknown`]: a
//! miss. A value holds nothing of the requesting client but the selecting fields' values for `Vary`.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, Version};

use super::form_marks::FormMarks;
use super::next_form::NextForm;
use super::piece::Piece;
use super::record::{ObjectId, Record, StoredHead, disk_state};
use crate::cache::vary::{Variant, VarySet};
use crate::cache::{
    Coding, Form, Freshness, KeyHash, PurgeSequence, SiteName, SourceEntry, StoredResponse,
    VaryList,
};
use crate::fields::FieldSection;
use crate::purge::Checkpoint;

impl Piece {
    /// Appends the encoded value to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, payload) = match self {
            Self::Record(Record::Response(head)) => {
                (kind_of_head(&head.response), &*encode_head(head))
            }
            Self::Record(Record::Variants(list)) => (VARIANTS, &*encode_variants(list)),
            Self::Slice(slice) => (SLICE, &*slice.bytes),
            Self::Unknown => (SLICE, &[][..]),
        };
        out.extend_from_slice(&[VERSION, kind]);
        put_count(out, payload.len());
        out.extend_from_slice(payload);
    }

    /// Decodes a value. A slice shares the bytes of `value`, without a copy.
    pub(super) fn decode(mut value: Bytes) -> Self {
        let Some(&[version, kind, ref length @ ..]) = value.first_chunk::<START_BYTES>() else {
            return Self::Unknown;
        };
        let length = u32::from_le_bytes(*length);
        let whole = value.len() == START_BYTES + length as usize;
        if version != VERSION || length > PAYLOAD_MAX || !whole {
            return Self::Unknown;
        }
        let payload = value.split_off(START_BYTES);
        decode_payload(kind, payload).unwrap_or(Self::Unknown)
    }

    /// About as many bytes as [`Piece::encode`] appends; not many less.
    pub(super) fn encoded_bytes(&self) -> usize {
        let payload = match self {
            Self::Record(Record::Response(head)) => {
                let headers = &head.response.headers;
                let fields: usize =
                    headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
                let response = &head.response;
                let texts = response.key.len() + response.site.len() + response.variant.len();
                let parts = response.parts.as_ref().map_or(0, |parts| parts.len() * 16);
                216 + fields + texts + response.tags.len() * 8 + parts + self.body_bytes()
            }
            Self::Record(Record::Variants(list)) => {
                let sets = list.sets.iter();
                sets.map(|set| 64 * (1 + set.fields.len() + set.variants.len())).sum::<usize>()
            }
            Self::Slice(_) | Self::Unknown => self.body_bytes(),
        };
        START_BYTES + payload
    }
}

fn decode_payload(kind: u8, payload: Bytes) -> Option<Piece> {
    match kind {
        HEAD | FORM | HOT_FORM | OLD_FORM | OLD_HOT_FORM => {
            let mut from = Decoder(payload);
            let form = match kind {
                HEAD => None,
                _ => Some(Box::new(decode_form(&mut from, kind)?)),
            };
            let head = decode_head(&mut from, form)?;
            Some(Piece::Record(Record::Response(Arc::new(head))))
        }
        VARIANTS => {
            let list = decode_variants(&mut Decoder(payload))?;
            Some(Piece::Record(Record::Variants(Arc::new(list))))
        }
        SLICE => Some(Piece::slice(payload, true, None)),
        _ => None,
    }
}

fn kind_of_head(response: &StoredResponse) -> u8 {
    match &response.form {
        None => HEAD,
        Some(form) if form.is_hot => HOT_FORM,
        Some(_) => FORM,
    }
}

fn encode_head(head: &StoredHead) -> Vec<u8> {
    let response = &head.response;
    let freshness = &response.freshness;
    let flags = [
        freshness.heuristic,
        freshness.must_revalidate,
        freshness.no_cache,
        freshness.immutable,
        response.complete_length.is_some(),
        response.parts.is_some(),
        head.inline.is_some(),
        response.version == Version::HTTP_2,
        response.version == Version::HTTP_10,
    ];
    let flags = flags.iter().enumerate().fold(0, |all, (bit, set)| all | (u16::from(*set) << bit));
    let inline = head.inline.as_deref().unwrap_or_default();
    let mut out = Vec::with_capacity(1024 + inline.len());
    if let Some(form) = &response.form {
        encode_form(form, &mut out);
    }
    out.extend_from_slice(&head.checkpoint.lineage().to_le_bytes());
    out.extend_from_slice(&response.stored_at_sequence.0.to_le_bytes());
    out.extend_from_slice(&head.object.0.to_le_bytes());
    out.extend_from_slice(&head.hash().0.to_le_bytes());
    out.extend_from_slice(&head.slice_bytes.to_le_bytes());
    out.extend_from_slice(&response.status.as_u16().to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    put_duration(&mut out, freshness.response_time.span());
    put_duration(&mut out, freshness.initial_age.span());
    put_duration(&mut out, freshness.lifetime.span());
    put_duration(&mut out, freshness.stale_while_revalidate.span());
    put_duration(&mut out, freshness.stale_if_error.span());
    out.extend_from_slice(&response.complete_length.unwrap_or_default().to_le_bytes());
    put_text(&mut out, response.key.as_bytes());
    put_text(&mut out, response.site.as_bytes());
    put_text(&mut out, response.variant.as_bytes());
    put_count(&mut out, response.tags.len());
    response.tags.iter().for_each(|tag| out.extend_from_slice(&tag.to_le_bytes()));
    let parts = response.parts.as_ref().map_or(&[][..], |parts| &***parts);
    put_count(&mut out, parts.len());
    for part in parts {
        out.extend_from_slice(&part.start.to_le_bytes());
        out.extend_from_slice(&part.end.to_le_bytes());
    }
    put_count(&mut out, response.headers.len());
    for (name, value) in response.headers.iter() {
        put_text(&mut out, name.as_bytes());
        put_text(&mut out, value);
    }
    put_text(&mut out, inline);
    out
}

fn decode_head(from: &mut Decoder, form: Option<Box<Form>>) -> Option<StoredHead> {
    let lineage = from.u64()?;
    let stored_at_sequence = PurgeSequence(from.u64()?);
    let object = ObjectId(from.u128()?);
    let hash = KeyHash(from.u128()?);
    let slice_bytes = from.u32()?;
    let status = StatusCode::from_u16(from.u16()?).ok()?;
    let flags = from.u16()?;
    let flag = |bit: u16| flags & (1 << bit) != 0;
    let freshness = Freshness {
        response_time: from.duration()?.into(),
        initial_age: from.duration()?.into(),
        lifetime: from.duration()?.into(),
        stale_while_revalidate: from.duration()?.into(),
        stale_if_error: from.duration()?.into(),
        heuristic: flag(0),
        must_revalidate: flag(1),
        no_cache: flag(2),
        immutable: flag(3),
    };
    let whole = from.0.len();
    let complete_length = from.u64()?;
    let (key, site, variant) = (from.string()?, from.string()?, from.string()?);
    let site = SiteName::from(&*site);
    let tags = from.list(8, Decoder::u64)?.into();
    let parts = from.list(16, |from| Some(from.u64()?..from.u64()?))?;
    let headers = decode_headers(from)?;
    let inline = from.text()?;
    let response = StoredResponse {
        key,
        variant: variant.into(),
        site,
        status,
        headers,
        freshness,
        tags,
        stored_at_sequence,
        complete_length: flag(4).then_some(complete_length),
        parts: flag(5).then(|| parts.into()),
        version: match (flag(7), flag(8)) {
            (true, _) => Version::HTTP_2,
            (false, true) => Version::HTTP_10,
            (false, false) => Version::HTTP_11,
        },
        form,
    };
    let sane = from.0.is_empty()
        && response.hash() == hash
        && slice_bytes > 0
        && (flag(6) || inline.is_empty())
        && (!flag(6) || inline.len() as u64 == inline_length(&response));
    let form_marks = FormMarks::of(&response);
    sane.then(|| StoredHead {
        response,
        object,
        inline: flag(6).then(|| own_buffer(inline, whole)),
        slice_bytes,
        checkpoint: Checkpoint::of(lineage),
        disk_state: AtomicU8::new(disk_state::WRITTEN),
        form_marks,
        next_form: NextForm::default(),
        coding_note: AtomicU8::new(0),
    })
}

fn encode_form(form: &Form, out: &mut Vec<u8>) {
    out.push(
        CODINGS.iter().position(|coding| *coding == form.coding).expect("all are listed") as u8
    );
    out.extend_from_slice(&form.source.to_le_bytes());
    out.extend_from_slice(&form.number.to_le_bytes());
    out.extend_from_slice(&form.source_entry.get().to_le_bytes());
}

fn decode_form(from: &mut Decoder, kind: u8) -> Option<Form> {
    let [coding] = from.array()?;
    let coding = *CODINGS.get(usize::from(coding))?;
    let (source, number) = (from.u128()?, from.u32()?);
    let is_hot = matches!(kind, HOT_FORM | OLD_HOT_FORM);
    let source_entry = SourceEntry::default();
    if matches!(kind, FORM | HOT_FORM) {
        source_entry.set(from.u64()?);
    }
    Some(Form { coding, source, number, is_hot, source_entry })
}

/// The length that an inline body must have: that of the complete body, or of its one part.
fn inline_length(response: &StoredResponse) -> u64 {
    match response.parts.as_deref().map(|parts| &parts[..]) {
        None => response.complete_length.unwrap_or_default(),
        Some([part]) => part.end.saturating_sub(part.start),
        Some(_) => u64::MAX,
    }
}

/// Copies a short body out of the record, so that it does not keep the whole buffer alive.
fn own_buffer(body: Bytes, whole: usize) -> Bytes {
    if whole > body.len() + body.len() / 8 { Bytes::copy_from_slice(&body) } else { body }
}

fn decode_headers(from: &mut Decoder) -> Option<FieldSection> {
    let count = from.count(8)?;
    let line = |_| {
        let name = HeaderName::from_bytes(&from.text()?).ok()?;
        Some((name, HeaderValue::from_maybe_shared(from.text()?).ok()?))
    };
    (0..count).map(line).collect()
}

fn encode_variants(list: &VaryList) -> Vec<u8> {
    let mut out = Vec::new();
    put_count(&mut out, list.sets.len());
    for set in &list.sets {
        put_count(&mut out, set.fields.len());
        set.fields.iter().for_each(|name| put_text(&mut out, name.as_str().as_bytes()));
        put_count(&mut out, set.variants.len());
        for variant in &set.variants {
            out.extend_from_slice(&variant.hash.0.to_le_bytes());
            out.extend_from_slice(&variant.others.to_le_bytes());
            put_text(&mut out, variant.language.as_deref().unwrap_or_default().as_bytes());
        }
    }
    out
}

fn decode_variants(from: &mut Decoder) -> Option<VaryList> {
    let sets = from.list(8, |from| {
        let fields = from.list(4, |from| HeaderName::from_bytes(&from.text()?).ok())?;
        let variants = from.list(28, |from| {
            let (hash, others) = (KeyHash(from.u128()?), from.u64()?);
            let language = from.string()?;
            Some(Variant { hash, others, language: (!language.is_empty()).then_some(language) })
        })?;
        Some(VarySet { fields: fields.into(), variants })
    })?;
    from.0.is_empty().then_some(VaryList { sets })
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("a piece is shorter than 4 GiB");
    out.extend_from_slice(&count.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_count(out, text.len());
    out.extend_from_slice(text);
}

fn put_duration(out: &mut Vec<u8>, duration: Duration) {
    out.extend_from_slice(&duration.as_secs().to_le_bytes());
    out.extend_from_slice(&duration.subsec_nanos().to_le_bytes());
}

/// The part of a payload that is not decoded yet. Each method returns `None` at its end.
struct Decoder(Bytes);

impl Decoder {
    fn take(&mut self, count: usize) -> Option<Bytes> {
        (count <= self.0.len()).then(|| self.0.split_to(count))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = *self.0.first_chunk()?;
        bytes::Buf::advance(&mut self.0, N);
        Some(array)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    fn duration(&mut self) -> Option<Duration> {
        let (seconds, nanoseconds) = (self.u64()?, self.u32()?);
        (nanoseconds < 1_000_000_000).then(|| Duration::new(seconds, nanoseconds))
    }

    fn text(&mut self) -> Option<Bytes> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn string(&mut self) -> Option<Box<str>> {
        std::str::from_utf8(&self.text()?).ok().map(Into::into)
    }

    /// A count of elements of at least `bytes` bytes each. `None` if so many do not fit the rest.
    fn count(&mut self, bytes: usize) -> Option<usize> {
        let count = self.u32()? as usize;
        (count <= self.0.len() / bytes).then_some(count)
    }

    fn list<T>(
        &mut self,
        bytes: usize,
        mut each: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let count = self.count(bytes)?;
        (0..count).map(|_| each(self)).collect()
    }
}

const VERSION: u8 = 2;
const HEAD: u8 = 1;
const VARIANTS: u8 = 2;
const SLICE: u8 = 3;
/// Forms that were written by builds that did not link them.
const OLD_FORM: u8 = 4;
const OLD_HOT_FORM: u8 = 5;
const FORM: u8 = 6;
const HOT_FORM: u8 = 7;
/// The codings of forms, by their number on disk.
const CODINGS: [Option<Coding>; Form::CODINGS] =
    [None, Some(Coding::Zstd), Some(Coding::Brotli), Some(Coding::Gzip)];
pub(super) const START_BYTES: usize = 6;
/// Enough for a head with an inline body, its fields and tags. Bounds the allocation for a damaged
/// length.
const PAYLOAD_MAX: u32 = 8 << 20;

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fields::Fields;
    use crate::store::tests;

    fn encode(piece: &Piece) -> Vec<u8> {
        let mut out = Vec::new();
        piece.encode(&mut out);
        out
    }

    fn decode(bytes: &[u8]) -> Piece {
        Piece::decode(Bytes::copy_from_slice(bytes))
    }

    fn head_of(piece: &Piece) -> &StoredHead {
        match piece {
            Piece::Record(Record::Response(head)) => head,
            other => panic!("{other:?}"),
        }
    }

    fn piece(head: StoredHead) -> Piece {
        Piece::Record(Record::Response(Arc::new(head)))
    }

    #[test]
    fn a_form_comes_back_with_its_coding_and_source() {
        for (coding, is_hot) in CODINGS.into_iter().zip([false, true, false, true]) {
            let source_entry = SourceEntry::default();
            source_entry.set(0x5e6f << 48);
            let form = Form { coding, source: 1 << 100, number: 0x1a2b_3c4d, is_hot, source_entry };
            let mut head = tests::head("https://a/", PurgeSequence(7), 9);
            head.response.complete_length = Some(4);
            head.response.form = Some(Box::new(form));
            let original = piece(head);
            let encoded = encode(&original);
            assert_eq!(encoded[..2], [VERSION, if is_hot { HOT_FORM } else { FORM }]);
            let back = decode(&encoded);
            assert_eq!(head_of(&back).response.form, head_of(&original).response.form);
            // As builds that did not link forms wrote it.
            let mut older = encoded.clone();
            let entry_at = START_BYTES + 1 + 16 + 4;
            older.drain(entry_at..entry_at + 8);
            older[1] = if is_hot { OLD_HOT_FORM } else { OLD_FORM };
            let length = (older.len() - START_BYTES) as u32;
            older[2..6].copy_from_slice(&length.to_le_bytes());
            let older = decode(&older);
            let older = head_of(&older).response.form.as_deref().expect("a form");
            assert_eq!((older.coding, older.is_hot), (coding, is_hot));
            assert_eq!((older.number, older.source_entry.get()), (0x1a2b_3c4d, 0));
            let mut unknown = encoded.clone();
            unknown[START_BYTES] = CODINGS.len() as u8;
            assert!(matches!(decode(&unknown), Piece::Unknown));
        }
    }

    #[test]
    fn a_head_comes_back_with_repeated_fields_and_odd_bytes() {
        let mut head = tests::head("https://a/ü", PurgeSequence(7), 9);
        let odd = HeaderName::from_static("x-odd");
        let mut fields = head.response.headers.to_map(1);
        fields.append(odd.clone(), HeaderValue::from_bytes(b"\xff\xfe \t").unwrap());
        head.response.headers = fields.into();
        // The bytes in one piece may be one part of it, and no more.
        head.response.complete_length = Some(20);
        head.response.parts = Some([1..2, 5..9].into());
        let Piece::Record(Record::Response(two)) = piece(head) else { panic!("a response") };
        assert!(matches!(
            decode(&encode(&Piece::Record(Record::Response(two.clone())))),
            Piece::Unknown
        ));
        let mut head = Arc::into_inner(two).expect("nobody else has it");
        head.response.parts = Some([5..9].into());
        let encoded = encode(&piece(head));
        let back = decode(&encoded);
        let back = head_of(&back);
        let again = tests::head("https://a/ü", PurgeSequence(7), 9);
        assert_eq!(back.response.key, again.response.key);
        assert_eq!(back.response.freshness, again.response.freshness);
        let repeated: Vec<_> =
            back.response.headers.lines(&HeaderName::from_static("x-repeated")).collect();
        assert_eq!(repeated, [b"one", b"two"]);
        assert_eq!(back.response.headers.get(&odd), Some(&b"\xff\xfe \t"[..]));
        assert_eq!(back.response.parts, Some([5..9].into()));
        assert_eq!((back.complete_length(), back.is_standalone_part()), (20, true));
        assert_eq!(
            (back.checkpoint.lineage(), back.object, back.hash()),
            (9, again.object, again.hash())
        );
        assert_eq!(back.inline, again.inline);
        assert_eq!(encode(&decode(&encoded)), encoded);
    }

    #[test]
    fn the_version_that_a_response_was_received_over_comes_back() {
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            let mut head = tests::head("https://a/", PurgeSequence(7), 9);
            head.response.version = version;
            head.response.complete_length = Some(4);
            assert_eq!(head_of(&decode(&encode(&piece(head)))).response.version, version);
        }
    }

    #[test]
    fn a_variant_list_comes_back() {
        let variant = |language: Option<&str>| Variant {
            hash: KeyHash(1 << 100),
            language: language.map(Into::into),
            others: 3,
        };
        let set = VarySet {
            fields: [http::header::ACCEPT_LANGUAGE].into(),
            variants: vec![variant(Some("de")), variant(None)],
        };
        let list = VaryList { sets: vec![set] };
        let encoded = encode(&Piece::Record(Record::Variants(Arc::new(list.clone()))));
        match decode(&encoded) {
            Piece::Record(Record::Variants(back)) => assert_eq!(*back, list),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_version_or_kind_is_unknown() {
        let mut encoded = encode(&Piece::slice(Bytes::from_static(b"bytes"), true, None));
        assert!(matches!(decode(&encoded), Piece::Slice(_)));
        encoded[1] = 77;
        assert!(matches!(decode(&encoded), Piece::Unknown));
        encoded[1] = SLICE;
        encoded[0] = VERSION + 1;
        assert!(matches!(decode(&encoded), Piece::Unknown));
    }

    #[test]
    fn a_head_cut_short_or_with_more_behind_it_is_unknown() {
        let mut head = tests::head("https://a/", PurgeSequence(7), 9);
        head.response.complete_length = Some(4);
        let encoded = encode(&piece(head));
        for length in 0..encoded.len() {
            assert!(matches!(decode(&encoded[..length]), Piece::Unknown), "{length}");
        }
        let mut longer = encoded.clone();
        longer.push(0);
        let length = (longer.len() - START_BYTES) as u32;
        longer[2..6].copy_from_slice(&length.to_le_bytes());
        assert!(matches!(decode(&longer), Piece::Unknown));
    }

    proptest! {
        #[test]
        fn any_head_comes_back_the_same(
            key in "[ -~é]{0,40}",
            fields in proptest::collection::vec(("[a-z-]{1,12}", "[ -~]{0,30}"), 0..12),
            tags in proptest::collection::vec(any::<u64>(), 0..9),
            body in proptest::collection::vec(any::<u8>(), 0..300),
            lifetime in any::<u32>(),
        ) {
            let mut head = tests::head(&key, PurgeSequence(7), 9);
            head.response.tags = tags.clone().into();
            head.response.freshness.lifetime = Duration::from_millis(u64::from(lifetime)).into();
            head.response.complete_length = Some(body.len() as u64);
            head.inline = Some(body.clone().into());
            let line = |(name, value): &(String, String)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap())
            };
            head.response.headers = fields.iter().map(line).collect();
            let headers = head.response.headers.clone();
            prop_assert!(Piece::Unknown.encoded_bytes() > 0);
            let original = piece(head);
            let encoded = encode(&original);
            prop_assert!(original.encoded_bytes() >= encoded.len() - 64);
            let back = decode(&encoded);
            let back = head_of(&back);
            prop_assert_eq!(&*back.response.key, &*key);
            prop_assert_eq!(&back.response.headers, &headers);
            prop_assert_eq!(&*back.response.tags, &*tags);
            prop_assert_eq!(back.inline.as_deref(), Some(&*body));
            prop_assert_eq!(back.response.freshness.lifetime.span().as_millis(), u128::from(lifetime));
        }

        #[test]
        fn damaged_bytes_never_panic(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut encoded = encode(&piece(tests::head("https://a/", PurgeSequence(7), 9)));
            for (at, byte) in flips {
                let at = at.index(encoded.len());
                encoded[at] = byte;
            }
            decode(&encoded);
        }
    }
}

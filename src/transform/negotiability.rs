//! Facts about the coding of a stored response that are the same for all requests, so that its hits need not read
//! its fields again.

use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, StatusCode};

use super::plan::{CodingAction, ContentFields, RequestFields, plan};
use super::{Accepted, Settings};

/// How the coding of a stored response depends on requests that accept identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Negotiability {
    /// Not: every client gets it as it is stored.
    Fixed,
    /// The response is compressed for clients that prefer a coding. `Vary` must be added.
    Varies,
    /// As `Varies`, and its `Vary` has `Accept-Encoding`.
    VariesAsStated,
    /// In another way: [`plan`] decides for each request.
    Depends,
}

/// Identifies settings among all different ones that rules of this process have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SettingsId(u8);

impl SettingsId {
    /// The id of these settings, the same for equal ones. `None` if there have been [`IDS_MAX`] others: responses
    /// under such rules have no note.
    pub(crate) fn of(settings: &Settings) -> Option<Self> {
        static KNOWN: Mutex<Vec<Settings>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.iter().position(|one| one == settings);
        let place = place.or_else(|| {
            (known.len() < IDS_MAX).then(|| {
                known.push(settings.clone());
                known.len() - 1
            })
        });
        place.map(|place| Self(place as u8 + 1))
    }
}

impl Negotiability {
    /// That of a response with this content of `length` bytes.
    pub(crate) fn of(
        status: StatusCode,
        content: &ContentFields<'_>,
        length: u64,
        settings: &Settings,
    ) -> Self {
        // Whether a response is for one client depends on the request, too.
        if !settings.private {
            return Self::Depends;
        }
        let request = RequestFields { fields: &HeaderMap::new(), accepted: Accepted::default() };
        let plan = plan(&request, status, content, Some(length), settings);
        match (plan.action, plan.needs_vary, content.varies) {
            (CodingAction::Recode(_) | CodingAction::AskAgain, ..) => Self::Depends,
            (CodingAction::Leave(_), false, _) => Self::Fixed,
            (CodingAction::Leave(_), true, false) => Self::Varies,
            (CodingAction::Leave(_), true, true) => Self::VariesAsStated,
        }
    }

    /// A number to be kept beside the response; never 0.
    pub(crate) fn to_note(self, id: SettingsId) -> u8 {
        id.0 << KIND_BITS | self as u8
    }

    /// Reads such a number. `None` if it is of other settings.
    #[inline]
    pub(crate) fn from_note(note: u8, id: SettingsId) -> Option<Self> {
        (note >> KIND_BITS == id.0).then(|| KINDS[usize::from(note) % KINDS.len()])
    }
}

/// In the order of their numbers.
const KINDS: [Negotiability; 1 << KIND_BITS] = [
    Negotiability::Fixed,
    Negotiability::Varies,
    Negotiability::VariesAsStated,
    Negotiability::Depends,
];
const KIND_BITS: u32 = 2;
/// A number has room for so many ids.
const IDS_MAX: usize = (u8::MAX >> KIND_BITS) as usize;

#[cfg(test)]
mod tests {
    use http::header::{ACCEPT_ENCODING, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::fields::FieldLines;

    fn lines(fields: &[(&'static str, String)]) -> FieldLines {
        let map: HeaderMap = fields
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        FieldLines::from(&map)
    }

    #[test]
    fn a_note_is_read_under_the_same_settings_only() {
        let id = |number| SettingsId(number);
        for kind in KINDS {
            for one in [1, 2, IDS_MAX as u8] {
                assert_eq!(Negotiability::from_note(kind.to_note(id(one)), id(one)), Some(kind));
                assert_eq!(Negotiability::from_note(kind.to_note(id(one)), id(3)), None);
                assert_eq!(Negotiability::from_note(0, id(one)), None);
            }
        }
    }

    #[test]
    fn equal_settings_have_the_same_id_and_different_ones_another() {
        let of = |bytes_min| SettingsId::of(&Settings { bytes_min, ..Settings::default() });
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(of(2).is_some());
    }

    proptest! {
        #[test]
        fn it_says_what_the_plan_says_for_every_request(
            content_type in "text/html|image/png|text/event-stream|application/grpc|",
            coding in "|gzip|br|deflate|identity",
            cache_control in "|no-transform|private|max-age=5",
            vary in "|accept-encoding|\\*|origin",
            accept in "|gzip|br;q=0\\.5, identity|identity|gzip, identity;q=0|\\*|zstd, gzip, br",
            length in prop_oneof![Just(0_u64), Just(255), Just(256), Just(9999)],
            is_private in any::<bool>(),
            decode in any::<bool>(),
        ) {
            let settings = Settings { private: is_private, decode, ..Settings::default() };
            let fields = [
                ("content-type", content_type),
                ("content-encoding", coding),
                ("cache-control", cache_control),
                ("vary", vary),
            ];
            let fields: Vec<_> = fields.into_iter().filter(|(_, value)| !value.is_empty()).collect();
            let fields = lines(&fields);
            let content = ContentFields::of(&fields);
            let mut request = HeaderMap::new();
            if !accept.is_empty() {
                request.insert(ACCEPT_ENCODING, HeaderValue::try_from(accept).unwrap());
            }
            let request = RequestFields::of(&request);
            prop_assume!(!request.accepted.refuses_identity());
            let plan = plan(&request, StatusCode::OK, &content, Some(length), &settings);
            let is_left = matches!(plan.action, CodingAction::Leave(_));
            match Negotiability::of(StatusCode::OK, &content, length, &settings) {
                Negotiability::Fixed => prop_assert!(is_left && !plan.needs_vary),
                kind @ (Negotiability::Varies | Negotiability::VariesAsStated) => {
                    prop_assert!(plan.needs_vary);
                    prop_assert_eq!(kind == Negotiability::VariesAsStated, content.varies);
                }
                Negotiability::Depends => {}
            }
        }
    }
}

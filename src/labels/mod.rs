//! The closed lists of labels in logs, metrics and header fields: why a request was refused, how the cache
//! handled it, why an origin gave no response, the content codings.
//!
//! Each list is one enum, so that a label, its index in a metric and its meaning cannot differ. This module
//! is below [`crate::metrics`], because the labels of metrics come from it. The rooms that produce a label
//! decide what follows from it.

/// Declares an enum with a label (a word) for each variant.
macro_rules! labels {
    ($(#[$meta:meta])* $seen:vis $name:ident;
     $($(#[$about:meta])* $variant:ident $({ $($field:tt)* })? $word:literal;)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $seen enum $name {
            $($(#[$about])* $variant $({ $($field)* })?,)*
        }

        impl $name {
            /// The labels, in the order of the variants.
            $seen const WORDS: &'static [&'static str] = &[$($word,)*];

            /// The index in [`Self::WORDS`], which is the index of the series in a metric.
            #[inline]
            $seen const fn index(self) -> usize {
                enum Index {
                    $($variant,)*
                }
                match self {
                    $(Self::$variant { .. } => Index::$variant as usize,)*
                }
            }

            /// The label in logs, metrics and header fields.
            #[allow(dead_code, reason = "some lists are labels of metrics only")]
            $seen const fn as_str(self) -> &'static str {
                Self::WORDS[self.index()]
            }
        }
    };
}

mod cache;
mod coding;
mod connections;
mod nodes;
mod origins;
mod refusals;
mod visitors;

pub use cache::Reason;
pub use origins::ProxyError;
pub use refusals::{HeadError, Refusal};

pub(crate) use cache::{CACHE_RESULTS, FillEnd, Fwd, GENERATED_RESULTS, HIT_RESULTS, Uncollapsed};
pub(crate) use coding::{CoderFailure, Coding, HotFormOutcome};
pub(crate) use connections::{
    ConnectionRefusal, ConnectionTimeout, HandshakeOutcome, Http2End, RequestProtocol,
};
pub(crate) use nodes::{
    CopyOutcome, HopFailure, HopRefusal, PeerRefusal, RequirementOutcome, UpstreamKind, WhyOrigin,
};
pub(crate) use origins::{
    DiscoveryOutcome, LeftOut, MemberChange, QueueRefusal, RetryReason, Unretried, Unsent,
};
pub(crate) use visitors::{GeoRedirectOutcome, MirrorOutcome, SplitChoice, StickyOutcome};

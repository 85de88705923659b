//! What this room counts, and under which label: the one place that knows the positions.

use http::Version;
use rustls::HandshakeKind;

use crate::metrics::{Metric, Recorder};

use super::Unread;
use super::session::{Overdue, Traffic};

/// Why a connection was closed as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Refused {
    /// `connections_max`.
    Total,
    /// `connections_per_address_max`.
    Address,
    /// `handshakes_max`.
    Handshakes,
    /// No PROXY header, or a broken one, from where there must be one.
    ProxyHeader,
}

pub(super) fn refused(recorder: &Recorder, why: Refused) {
    recorder.count_labelled(Metric::ConnectionsRefused, why as usize);
}

pub(super) fn overdue(recorder: &Recorder, overdue: Overdue) {
    if overdue != Overdue::Linger {
        recorder.count_labelled(Metric::ConnectionsTimedOut, overdue as usize);
    }
}

pub(super) fn traffic(recorder: &Recorder, traffic: Traffic) {
    recorder.add(Metric::BytesReceived, traffic.bytes_in);
    recorder.add(Metric::BytesSent, traffic.bytes_out);
}

pub(super) fn request(recorder: &Recorder, version: Version) {
    let label = match version {
        Version::HTTP_10 => 0,
        Version::HTTP_11 => 1,
        _ => 2,
    };
    recorder.count_labelled(Metric::RequestsByProtocol, label);
}

/// `kind` as rustls knows it once the handshake is done.
pub(super) fn handshake(recorder: &Recorder, kind: Option<HandshakeKind>) {
    let resumed = kind == Some(HandshakeKind::Resumed);
    recorder.count_labelled(Metric::Handshakes, usize::from(resumed));
}

pub(super) fn handshake_failed(recorder: &Recorder, error: &std::io::Error) {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let label = match inner {
        Some(rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol) => 2,
        Some(rustls::Error::AlertReceived(_)) => 3,
        Some(rustls::Error::InvalidMessage(_)) => 4,
        Some(_) => 5,
        None => 6,
    };
    recorder.count_labelled(Metric::Handshakes, label);
}

pub(super) fn unread(recorder: &Recorder, why: Unread) {
    recorder.count_labelled(Metric::RequestsUnread, why.index());
}

/// Why an HTTP/2 connection was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum H2End {
    /// The client broke the protocol.
    Protocol,
    /// One of h2's own guards: resets before their request was taken, empty frames, …
    Flood,
    /// `resets_per_10s_max`.
    Resets,
    /// `requests_per_second_max`.
    Requests,
}

pub(super) fn http2_ended(recorder: &Recorder, why: H2End) {
    recorder.count_labelled(Metric::Http2Ended, why as usize);
}

//! Reads `[admin]` and `[bus]`.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Reader, Section};
use super::super::remedy;
use super::super::values::{Value, text_or};
use super::log::check_log_path;
use crate::bus::{RedisUrl, SilenceAction};
use crate::{bus, control};

pub(crate) fn read_admin(section: &Section<'_>, admin: &mut control::admin::Settings) {
    section.read("address", &mut admin.address);
    section.read("tokens", &mut admin.tokens);
    if let Some(Err(why)) = admin.tokens.as_deref().map(control::tokens::Tokens::load) {
        section.mistake("tokens", why);
    }
    let certificates = section.section("tls");
    let mut tls = control::tls::Settings {
        certificate: PathBuf::new(),
        key: PathBuf::new(),
        client_ca: None,
    };
    let has_certificate = certificates.read_file("certificate", &mut tls.certificate);
    let has_key = certificates.read_file("key", &mut tls.key);
    let mut client_ca = PathBuf::new();
    if certificates.read_file("client_ca", &mut client_ca) {
        tls.client_ca = Some(client_ca);
    }
    match (has_certificate, has_key) {
        (true, true) => {
            let mistakes = tls.file_mistakes();
            mistakes.into_iter().for_each(|(name, why)| certificates.mistake_in_file(name, why));
            admin.tls = Some(tls);
        }
        (false, false) if tls.client_ca.is_none() => {}
        _ => certificates.mistake("", "set both \"certificate\" and \"key\", or neither"),
    }
    section.read("hosts", &mut admin.hosts);
    for host in &admin.hosts {
        let is_host = host.parse::<http::uri::Authority>().is_ok_and(|it| it.host() == host);
        if !is_host {
            section.mistake("hosts", format!("expected host names without port, found {host:?}"));
        }
    }
    section.read("audit_log", &mut admin.audit_log);
    if let Some(path) = &admin.audit_log {
        check_log_path(section, "audit_log", path);
    }
    section.read_within("prefetch_per_second", &mut admin.prefetch.per_second, 1..=10_000);
    section.read_within("prefetch_queue_max", &mut admin.prefetch.queue_max, 1..=10_000_000);
    section.read_within("purges_per_second_max", &mut admin.purges_per_second_max, 1..);
}

/// The values of `silence`: what a node does while the purge bus is silent.
pub(crate) const SILENCES: [(&str, SilenceAction); 3] = [
    ("serve", SilenceAction::Serve),
    ("validate", SilenceAction::Validate),
    ("drain", SilenceAction::Drain),
];

pub(crate) fn read_bus(section: &Section<'_>, bus: &mut bus::Settings) {
    section.read("redis", &mut bus.redis);
    for (name, file) in [("password_file", &mut bus.password_file), ("ca_file", &mut bus.ca_file)] {
        let mut path = PathBuf::new();
        if section.read_file(name, &mut path) {
            *file = Some(path);
        }
    }
    if bus.password_file.is_some() && bus.redis.as_ref().is_some_and(RedisUrl::has_password) {
        let message = "\"redis\" has a password, too: remove it from the URL";
        section.mistake("password_file", message);
    }
    for (name, why) in bus.file_mistakes() {
        section.mistake_in_file(name, why);
    }
    section.read("prefix", &mut bus.prefix);
    let is_prefix = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if !(1..=64).contains(&bus.prefix.len()) || !bus.prefix.bytes().all(is_prefix) {
        section
            .mistake("prefix", "expected 1 to 64 letters, digits, \"-\", \".\", \"_\" and \":\"");
    }
    section.read_above_zero("retention", &mut bus.retention, "");
    section.read_above_zero("receipts_kept", &mut bus.receipts_kept, "");
    section.read_above_zero("heartbeat", &mut bus.heartbeat, "");
    section.read_above_zero("member_kept", &mut bus.member_kept, "");
    section.read_above_zero("silence_max", &mut bus.silence_max, "");
    section.choice("silence", &mut bus.silence, &SILENCES);
    section.read("start_wait", &mut bus.start_wait);
    section.read_above_zero("command_timeout", &mut bus.command_timeout, "");
    section.read_above_zero("connect_timeout", &mut bus.connect_timeout, "");
    section.read_above_zero("reconnect_pause_max", &mut bus.reconnect_pause_max, "");
    section.read_size_within("record_bytes_max", &mut bus.record_bytes_max, 64 << 10..=64 << 20);
    section.read_within("remembered_max", &mut bus.remembered_max, 1000..=10_000_000);
    if bus.retention < bus.silence_max {
        let (retention, silence_max) = (bus.retention.shown(), bus.silence_max.shown());
        section.warn("retention", format!("retention: a node that does not read the stream for {retention}, as during a restart, validates everything that it has stored: choose more than the longest outage, and at least \"silence_max\" ({silence_max})"));
    }
    for (name, limit) in [("silence_max", bus.silence_max), ("member_kept", bus.member_kept)] {
        let found = limit.shown();
        if limit < 3 * bus.heartbeat {
            // The option that is written is the one to change.
            let (at, message) = match section.has(name) {
                true => {
                    let least = (3 * bus.heartbeat).shown();
                    (
                        name,
                        format!(
                            "expected at least three times \"heartbeat\" ({least}), found {found}"
                        ),
                    )
                }
                false => {
                    let heartbeat = bus.heartbeat.shown();
                    (
                        "heartbeat",
                        format!(
                            "expected at most a third of {name:?} ({found}), found {heartbeat}"
                        ),
                    )
                }
            };
            section.mistake(at, message);
        }
    }
}

impl Value for RedisUrl {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a URL such as redis://host:6379, rediss://user@host:6380/0, \
                        redis+sentinel://host:26379/service or redis+cluster://host:6379";
        let why = |value: &DeValue<'_>| match value {
            DeValue::String(text) => {
                text.parse::<Self>().err().filter(|why| !why.contains(expected))
            }
            _ => None,
        };
        let remedy =
            |value: &DeValue<'_>| remedy::redis(value).or_else(|| why(value).map(str::to_owned));
        text_or(value, reader, expected, |text| text.parse().ok(), remedy)
    }
}

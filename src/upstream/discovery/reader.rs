//! The one interface of all kinds of sources.

use std::sync::Arc;

use super::super::pool::Pool;
use super::super::resolve::Resolver;
use super::super::settings::{MemberSource, Origin, SourceKind};
use super::addresses::AddressReader;
use super::file::FileReader;
use super::http::{Endpoint, HttpReader};
use super::reply::SourceReply;
use super::srv::SrvReader;

/// Reads a source of members.
pub(super) enum SourceReader {
    Addresses(AddressReader),
    Srv(SrvReader),
    File(FileReader),
    Http(Box<HttpReader>),
}

impl SourceReader {
    /// A reader of a source whose last answer was `known`; empty: there was none.
    pub(super) fn new(
        source: &MemberSource,
        known: &[Origin],
        pool: &Arc<Pool>,
        resolver: &Arc<Resolver>,
    ) -> Self {
        let (resolver, defaults) = (resolver.clone(), source.defaults);
        match &source.kind {
            SourceKind::Addresses { scheme, host, port } => {
                let template = defaults.origin(*scheme, host.clone(), *port);
                Self::Addresses(AddressReader::new(template, known, resolver))
            }
            SourceKind::Srv { scheme, name } => {
                Self::Srv(SrvReader::new(*scheme, name.clone(), defaults, resolver))
            }
            SourceKind::File { path } => Self::File(FileReader::new(path.clone(), defaults)),
            SourceKind::Http { server, path, interval, token_file } => {
                let endpoint = Endpoint {
                    server: server.clone(),
                    path: path.clone(),
                    interval: *interval,
                    token_file: token_file.clone(),
                };
                Self::Http(Box::new(HttpReader::new(endpoint, defaults, pool, resolver)))
            }
        }
    }

    /// Waits for news of the source, or for the time at which it was read without any.
    pub(super) async fn next(&mut self) -> SourceReply {
        match self {
            Self::Addresses(reader) => reader.next().await,
            Self::Srv(reader) => reader.next().await,
            Self::File(reader) => reader.next().await,
            Self::Http(reader) => reader.next().await,
        }
    }
}

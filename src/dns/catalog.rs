//! All zones as one immutable map of names, and the search of a name in it (RFC 1034 §4.3.2, RFC 4592).
//!
//! Each name that exists is an entry, also one that merely has names below it (an empty non-terminal). A
//! name without an entry does not exist; the nearest entry above it decides: its wildcard, a delegation, or
//! "no such name". So a search costs one lookup for a name that exists, and one for each label of another.

use std::collections::HashMap;
use std::sync::Arc;

use super::labels::{A, AAAA, CNAME, DS, HTTPS, NS, SOA};
use super::name::{self, LowerName};
use super::record::{self, ZoneRecord};
use super::respond::SERVERS_MAX;
use super::settings::ZoneSettings;

/// The records of all zones.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    names: HashMap<Box<[u8]>, u32, foldhash::fast::RandomState>,
    entries: Vec<Entry>,
    /// The zones, as in the configuration.
    pub(super) zones: Vec<Zone>,
    /// The indices of each edge name: its zone's, and its own in the zone.
    pub(super) edges: Vec<(usize, usize)>,
}

/// The facts about a zone as a whole that responses need.
#[derive(Debug)]
pub(super) struct Zone {
    /// The name without a dot at the end.
    pub name: Arc<str>,
    /// The length in wire form, so that a suffix of a name can be pointed at.
    pub name_length: usize,
    /// The content of SOA and its TTL in negative responses.
    pub soa: RecordSet,
}

/// A name that exists.
#[derive(Debug)]
pub(super) struct Entry {
    /// The index in [`Catalog::zones`].
    pub zone: u16,
    /// Whether the zone has authority over the name.
    authority: Authority,
    /// The records, at most one set of each type.
    pub sets: Vec<RecordSet>,
    /// The index of the edge name whose addresses these are.
    pub edge: Option<u32>,
    /// The entry of the wildcard below this name.
    wildcard: Option<u32>,
    /// If the name is a zone's own and a zone above it is served here, too: that one's side of the zone cut.
    pub parent: Option<Box<ParentSide>>,
}

/// The records of a zone above at the name of a zone below it that is served here, too.
#[derive(Debug)]
pub(super) struct ParentSide {
    /// The index of the zone above in [`Catalog::zones`].
    pub zone: u16,
    /// Its records DS, over which it has authority and the zone below does not (RFC 4035 §3.1.4.1).
    pub ds: Option<RecordSet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Authority {
    Own,
    /// The name is delegated: NS without authority.
    Delegated,
    /// Below a delegated name: only glue.
    Below {
        cut: u32,
        name_length: u8,
    },
}

/// The records of one name and type.
#[derive(Clone, Debug)]
pub(super) struct RecordSet {
    /// TYPE.
    pub kind: u16,
    /// Seconds; the same for all (RFC 2181 §5.2).
    pub ttl: u32,
    /// RDATA of each.
    pub contents: Vec<Box<[u8]>>,
}

/// The part of the zones that answers for a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum SearchResult<'a> {
    /// The name exists, or a wildcard stands for it.
    Name(&'a Entry),
    /// The name is at or below a delegation: its entry, and the length of the delegated name.
    Delegation { cut: &'a Entry, name_length: usize },
    /// The zone has no such name.
    NoName { zone: u16 },
    /// No zone here.
    NoZone,
}

/// A mistake in the zones.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ZoneMistake {
    /// The index of the zone.
    pub zone: usize,
    /// The part of the zone that is the cause.
    pub part: ZonePart,
    /// The mistake, and its remedy.
    pub message: String,
}

/// A part of a zone, by its index in [`ZoneSettings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZonePart {
    /// The zone as a whole.
    Whole,
    /// A record.
    Record(usize),
    /// An edge name.
    Edge(usize),
}

impl From<Option<usize>> for ZonePart {
    fn from(record: Option<usize>) -> Self {
        record.map_or(Self::Whole, Self::Record)
    }
}

impl Entry {
    /// The records of a type.
    pub(super) fn set(&self, kind: u16) -> Option<&RecordSet> {
        self.sets.iter().find(|set| set.kind == kind)
    }

    /// Whether the name exists only because names below it do (RFC 4592 §2.2.2).
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.edge.is_none()
    }

    /// Whether the name is a zone cut to a zone that is not served here.
    pub(super) fn is_delegated(&self) -> bool {
        self.authority == Authority::Delegated
    }
}

impl Catalog {
    /// Builds the map.
    ///
    /// # Errors
    /// All mistakes of all zones.
    pub(crate) fn build(zones: &[ZoneSettings]) -> Result<Self, Vec<ZoneMistake>> {
        let mut builder = Builder::default();
        let mut catalog = Self::default();
        // A zone above another adds its names first, so that the names of the zone below replace them.
        let mut order: Vec<usize> = (0..zones.len()).collect();
        order.sort_by_key(|at| zones[*at].name.len());
        catalog.zones = zones.iter().map(Zone::named).collect();
        for at in order {
            builder.zone = at;
            builder.add_zone(&mut catalog, &zones[at]);
        }
        catalog.link();
        for (at, zone) in zones.iter().enumerate() {
            builder.zone = at;
            builder.check(&catalog, zone);
        }
        if builder.mistakes.is_empty() { Ok(catalog) } else { Err(builder.mistakes) }
    }

    /// Looks a name up.
    #[inline]
    pub(super) fn search(&self, name: &LowerName) -> SearchResult<'_> {
        let wire = name.wire();
        if let Some(entry) = self.names.get(wire) {
            return self.at(*entry, wire.len());
        }
        for start in name::label_starts(wire).skip(1) {
            let Some(encloser) = self.names.get(&wire[start..]) else { continue };
            let entry = &self.entries[*encloser as usize];
            return match (entry.authority, entry.wildcard) {
                (Authority::Own, Some(wildcard)) => {
                    SearchResult::Name(&self.entries[wildcard as usize])
                }
                (Authority::Own, None) => SearchResult::NoName { zone: entry.zone },
                _ => self.at(*encloser, wire.len() - start),
            };
        }
        SearchResult::NoZone
    }

    fn at(&self, entry: u32, name_length: usize) -> SearchResult<'_> {
        let entry = &self.entries[entry as usize];
        match entry.authority {
            Authority::Own => SearchResult::Name(entry),
            Authority::Delegated => SearchResult::Delegation { cut: entry, name_length },
            Authority::Below { cut, name_length } => {
                let cut = &self.entries[cut as usize];
                SearchResult::Delegation { cut, name_length: name_length.into() }
            }
        }
    }

    /// The addresses that a zone has for the name of a server: glue, or its own data.
    pub(super) fn addresses(&self, server: &[u8]) -> impl Iterator<Item = &RecordSet> {
        let entry = LowerName::read(server).and_then(|name| self.entry(name.wire()));
        let sets = entry.into_iter().flat_map(|entry| &entry.sets);
        sets.filter(|set| set.kind == A || set.kind == AAAA)
    }

    /// The mistake of a record at or below the cut to a zone that is served elsewhere, or of a DS that is at none.
    fn mistake_at_cut(&self, record: &ZoneRecord, entry: &Entry) -> Option<String> {
        let belongs_to_cut = [NS, A, AAAA, DS].contains(&record.kind);
        match entry.authority {
            Authority::Own if record.kind == DS => Some(
                "has a record DS and no delegation: it belongs beside the records NS of a signed zone below; that of this zone itself belongs into the zone above".to_owned(),
            ),
            Authority::Delegated | Authority::Below { .. } if !belongs_to_cut => Some(
                "is delegated by a record NS, so that the name servers named there answer for it: leave the record out".to_owned(),
            ),
            Authority::Delegated if record.kind == NS => {
                let server = &record.content;
                let needs_address = name::is_within(server, &record.owner);
                (needs_address && self.addresses(server).next().is_none()).then(|| {
                    format!("is delegated to {0}, which nobody finds without its address: add \"{0} A …\" or \"{0} AAAA …\" (glue)", name::to_text(server))
                })
            }
            _ => None,
        }
    }

    /// The mistake of an edge name that its zone cannot answer for.
    fn mistake_of_edge(&self, zone: usize, name: &[u8]) -> Option<String> {
        let found = self.search(&LowerName::read(name)?);
        let other = match found {
            SearchResult::Name(entry) | SearchResult::Delegation { cut: entry, .. } => entry.zone,
            SearchResult::NoName { zone } => zone,
            SearchResult::NoZone => return None,
        };
        if usize::from(other) != zone {
            let other = &self.zones[usize::from(other)].name;
            return Some(format!("belongs to the zone {other:?}: move it to that zone"));
        }
        let SearchResult::Delegation { name_length, .. } = found else { return None };
        let cut = name::to_text(&name[name.len() - name_length..]);
        Some(format!(
            "is delegated by the record NS of {cut}, so that the name servers named there answer for it: leave the edge name out"
        ))
    }

    /// The mistake of a name server that has no address in the zones that are served here.
    fn mistake_of_server(&self, server: &str, zone: &ZoneSettings) -> Option<String> {
        let (wire, apex) = (name::from_text(server).ok()?, name::from_text(&zone.name).ok()?);
        let found = self.search(&LowerName::read(&wire)?);
        // A wildcard gives no glue.
        let entry = self.entry(&wire);
        let has_address = |entry: &Entry| {
            entry.edge.is_some() || [A, AAAA].into_iter().any(|kind| entry.set(kind).is_some())
        };
        if name::is_within(&wire, &apex) {
            return (!entry.is_some_and(has_address)).then(|| {
                format!("the name server {server:?} is in the zone and has no address: add a record A or AAAA")
            });
        }
        let other = match found {
            SearchResult::Name(entry) if !has_address(entry) => entry.zone,
            SearchResult::NoName { zone } => zone,
            _ => return None,
        };
        let other = &self.zones[usize::from(other)].name;
        Some(format!(
            "the name server {server:?} is in the zone {other:?} and has no address there: add a record A or AAAA to that zone"
        ))
    }

    /// Every name with its entry, those of a zone together and each below its parent.
    pub(super) fn sorted(&self) -> Vec<(&[u8], &Entry)> {
        let entry = |at: &u32| &self.entries[*at as usize];
        let mut names: Vec<_> = self.names.iter().map(|(name, at)| (&**name, entry(at))).collect();
        names.sort_by_cached_key(|(wire, entry)| {
            let labels = name::label_starts(wire).map(|start| wire[start + 1..].to_vec());
            let mut labels: Vec<Vec<u8>> = labels.collect();
            labels.reverse();
            (entry.zone, labels)
        });
        names
    }

    /// The side of the zone above, if there is one, of the cut to the zone `apex`, which has no names yet.
    fn parent_side(&self, apex: &[u8]) -> Option<ParentSide> {
        let mut above = name::label_starts(apex).filter_map(|start| self.entry(&apex[start..]));
        let zone = above.next()?.zone;
        let ds = self.entry(apex).and_then(|entry| entry.set(DS)).cloned();
        Some(ParentSide { zone, ds })
    }

    /// Removes the names of a zone above that are in `apex`, which is a zone of its own.
    fn forget_below(&mut self, apex: &[u8]) {
        self.names.retain(|name, _| !name::is_within(name, apex));
    }

    fn entry(&self, name: &[u8]) -> Option<&Entry> {
        self.names.get(name).map(|at| &self.entries[*at as usize])
    }

    /// The entry of a name, new or not, and those of the names between it and its zone.
    fn entry_mut(&mut self, zone: usize, name: &[u8], apex: usize) -> &mut Entry {
        for start in name::label_starts(name) {
            if name.len() - start < apex {
                break;
            }
            if !self.names.contains_key(&name[start..]) {
                self.names.insert(name[start..].into(), self.entries.len() as u32);
                self.entries.push(Entry {
                    zone: zone as u16,
                    authority: Authority::Own,
                    sets: Vec::new(),
                    edge: None,
                    wildcard: None,
                    parent: None,
                });
            }
        }
        &mut self.entries[self.names[name] as usize]
    }

    /// Finds the zone cuts and what is below them, and tells each name its wildcard.
    fn link(&mut self) {
        let apexes: Vec<usize> = self.zones.iter().map(|zone| zone.name_length).collect();
        let names: Vec<(Box<[u8]>, u32)> =
            self.names.iter().map(|(name, at)| (name.clone(), *at)).collect();
        for (name, at) in &names {
            let apex = apexes[usize::from(self.entries[*at as usize].zone)];
            let above = name::label_starts(name).filter(|start| name.len() - start > apex);
            // The highest cut decides: names below it have no authority, even if they have NS.
            let cut = above.filter_map(|start| {
                let entry = self.names.get(&name[start..])?;
                let is_cut = self.entries[*entry as usize].set(NS).is_some();
                is_cut.then_some((*entry, (name.len() - start) as u8))
            });
            let authority = match cut.last() {
                Some((cut, _)) if cut == *at => Authority::Delegated,
                Some((cut, name_length)) => Authority::Below { cut, name_length },
                None => Authority::Own,
            };
            self.entries[*at as usize].authority = authority;
        }
        for (name, at) in &names {
            let Some(parent) = name.strip_prefix(b"\x01*") else { continue };
            if self.entries[*at as usize].authority == Authority::Own
                && let Some(parent) = self.names.get(parent)
            {
                self.entries[*parent as usize].wildcard = Some(*at);
            }
        }
    }
}

impl Zone {
    fn named(zone: &ZoneSettings) -> Self {
        let name_length = name::from_text(&zone.name).map_or(1, |name| name.len());
        let name = zone.name.trim_end_matches('.').to_ascii_lowercase().into();
        Self {
            name,
            name_length,
            soa: RecordSet { kind: SOA, ttl: zone.negative_ttl, contents: Vec::new() },
        }
    }
}

/// Adds zones to a catalog and collects mistakes.
#[derive(Default)]
struct Builder {
    zone: usize,
    /// The names of the zones so far.
    apexes: Vec<Box<[u8]>>,
    mistakes: Vec<ZoneMistake>,
}

impl Builder {
    fn mistake(&mut self, part: impl Into<ZonePart>, message: String) {
        self.mistakes.push(ZoneMistake { zone: self.zone, part: part.into(), message });
    }

    fn add_zone(&mut self, catalog: &mut Catalog, zone: &ZoneSettings) {
        let apex = match name::from_text(&zone.name) {
            Ok(apex) if apex.len() > 1 => apex,
            Ok(_) => return self.mistake(ZonePart::Whole, "the root cannot be served".to_owned()),
            Err(error) => return self.mistake(ZonePart::Whole, error),
        };
        if self.apexes.contains(&apex) {
            return self
                .mistake(ZonePart::Whole, format!("there are two zones named {:?}", zone.name));
        }
        // This zone, no longer a zone above it, answers for these names.
        let parent = catalog.parent_side(&apex);
        catalog.forget_below(&apex);
        self.apexes.push(apex.clone());
        let mut own = Vec::new();
        match record::soa(zone) {
            Ok(soa) => {
                catalog.zones[self.zone].soa.contents.push(soa.content.clone());
                own.push(soa);
            }
            Err(error) => return self.mistake(ZonePart::Whole, error),
        }
        for server in &zone.name_servers {
            match record::ns(zone, server) {
                Ok(ns) => own.push(ns),
                Err(error) => self.mistake(ZonePart::Whole, error),
            }
        }
        own.iter().for_each(|record| self.add(catalog, &apex, None, record));
        for (at, record) in zone.records.iter().enumerate() {
            if record.kind == SOA || (record.kind == NS && record.owner == apex) {
                let message =
                    "the zone's SOA and NS come from \"name_servers\", \"contact\" and \"serial\"";
                self.mistake(Some(at), message.to_owned());
            } else {
                self.add(catalog, &apex, Some(at), record);
            }
        }
        catalog.entry_mut(self.zone, &apex, apex.len()).parent = parent.map(Box::new);
        for (at, edge) in zone.edges.iter().enumerate() {
            let number = catalog.edges.len() as u32;
            catalog.edges.push((self.zone, at));
            if !name::is_within(&edge.name, &apex) {
                let (name, zone) = (name::to_text(&edge.name), name::to_text(&apex));
                self.mistake(ZonePart::Edge(at), format!("{name} is not in the zone {zone}"));
                continue;
            }
            let other = catalog.entry_mut(self.zone, &edge.name, apex.len()).edge.replace(number);
            if other.is_some() {
                let name = name::to_text(&edge.name);
                self.mistake(ZonePart::Edge(at), format!("there are two edge names {name}"));
            }
        }
    }

    fn add(&mut self, catalog: &mut Catalog, apex: &[u8], at: Option<usize>, record: &ZoneRecord) {
        if !name::is_within(&record.owner, apex) {
            let (owner, zone) = (name::to_text(&record.owner), name::to_text(apex));
            return self.mistake(at, format!("{owner} is not in the zone {zone}"));
        }
        if record.kind == NS && record.owner.starts_with(b"\x01*") {
            return self.mistake(at, "a wildcard cannot be delegated (RFC 4592 §4.2)".to_owned());
        }
        let (zone, owner) = (self.zone, name::to_text(&record.owner));
        let entry = catalog.entry_mut(zone, &record.owner, apex.len());
        if let Some(set) = entry.sets.iter_mut().find(|set| set.kind == record.kind) {
            if set.ttl != record.ttl {
                self.mistake(
                    at,
                    format!(
                        "{owner} has two TTLs for this type: {} and {} (RFC 2181 §5.2)",
                        set.ttl, record.ttl
                    ),
                );
            } else if set.contents.contains(&record.content) {
                self.mistake(at, "the record stands twice".to_owned());
            } else {
                set.contents.push(record.content.clone());
                self.check_size(at, &owner, set);
            }
            return;
        }
        let contents = vec![record.content.clone()];
        let set = RecordSet { kind: record.kind, ttl: record.ttl, contents };
        self.check_size(at, &owner, &set);
        entry.sets.push(set);
    }

    fn check_size(&mut self, at: Option<usize>, owner: &str, set: &RecordSet) {
        let bytes: usize = set.contents.iter().map(|content| content.len() + 12).sum();
        if bytes > SET_BYTES_MAX {
            let message =
                format!("the records of this type at {owner} take more than {SET_BYTES_MAX} bytes");
            self.mistake(at, message);
        }
    }

    /// The checks that need all records.
    fn check(&mut self, catalog: &Catalog, zone: &ZoneSettings) {
        let mistakes = self.mistakes.len();
        for (at, record) in zone.records.iter().enumerate() {
            let Some(entry) = catalog.entry(&record.owner) else { continue };
            let owner = name::to_text(&record.owner);
            if entry.set(NS).is_some_and(|set| set.contents.len() > SERVERS_MAX) {
                self.mistake(Some(at), format!("{owner} has more than {SERVERS_MAX} name servers"));
            }
            if record.kind == CNAME && (entry.sets.len() > 1 || entry.sets[0].contents.len() > 1) {
                self.mistake(
                    Some(at),
                    format!("{owner} has a CNAME and other records (RFC 1034 §3.6.2)"),
                );
            }
            if entry.edge.is_some() && [A, AAAA, CNAME, HTTPS].contains(&record.kind) {
                self.mistake(
                    Some(at),
                    format!("{owner} is an edge name, whose addresses are those of nodes"),
                );
            }
            if usize::from(entry.zone) == self.zone
                && let Some(message) = catalog.mistake_at_cut(record, entry)
            {
                self.mistake(Some(at), format!("{owner} {message}"));
            }
            // A zone above one that is served here may still hold its delegation.
            let is_delegation = [NS, A, AAAA, DS].contains(&record.kind);
            if usize::from(entry.zone) != self.zone && !is_delegation {
                let other = &catalog.zones[usize::from(entry.zone)].name;
                self.mistake(Some(at), format!("{owner} belongs to the zone {other:?}"));
            }
        }
        for (at, edge) in zone.edges.iter().enumerate() {
            if let Some(message) = catalog.mistake_of_edge(self.zone, &edge.name) {
                let name = name::to_text(&edge.name);
                self.mistake(ZonePart::Edge(at), format!("{name} {message}"));
            }
        }
        if self.mistakes.len() > mistakes {
            return;
        }
        for server in &zone.name_servers {
            if let Some(message) = catalog.mistake_of_server(server, zone) {
                self.mistake(ZonePart::Whole, message);
            }
        }
    }
}

/// The records of one name and type in a response by TCP (64 KiB), with all of a CNAME chain and a referral.
const SET_BYTES_MAX: usize = 12 << 10;

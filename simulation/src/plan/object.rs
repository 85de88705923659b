//! The objects that the origins serve, their lifetimes, and bodies that identify themselves.
//!
//! Every block of 64 bytes states its object, version, owner (the client of a private body) and
//! offset:
//!
//! ```text
//! o=000004d2 v=00000007 u=00000000 @000000000040 skerry-sim......\n
//! ```
//!
//! The bytes alone therefore show any mix of versions, shift, truncation or exchange between
//! clients, whatever the header fields claim.

use crate::plan::seed::Random;

/// Index of an object in the [`Catalog`].
pub type ObjectId = u32;

/// The kinds of objects, which differ in size and in how they may be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Small, fresh for minutes.
    Static,
    /// Fresh for seconds; may be served stale during revalidation and while the origin fails.
    Page,
    /// Megabytes, fresh for minutes, often requested in ranges.
    Large,
    /// Like [`Class::Page`], but the origin responds slowly.
    Slow,
    /// `private`: each client gets its own body.
    Private,
    /// `no-store`.
    Dynamic,
    /// `no-store`; the client's country selects the origin.
    World,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 7] = [
        Class::Static,
        Class::Page,
        Class::Large,
        Class::Slow,
        Class::Private,
        Class::Dynamic,
        Class::World,
    ];

    /// The first segment of the object's path.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Static => "static",
            Class::Page => "page",
            Class::Large => "large",
            Class::Slow => "slow",
            Class::Private => "private",
            Class::Dynamic => "dynamic",
            Class::World => "world",
        }
    }

    /// The `Content-Type` of its objects: nodes compress text.
    pub fn content_type(self) -> &'static str {
        match self {
            Class::Page | Class::Slow | Class::Private => "text/html",
            _ => "application/octet-stream",
        }
    }

    /// Whether a shared cache may store objects of this class.
    pub fn is_shared(self) -> bool {
        !matches!(self, Class::Private | Class::Dynamic | Class::World)
    }

    /// The host name of the site that serves this class.
    pub fn host(self) -> &'static str {
        match self {
            Class::Large => "media.test",
            Class::World => "world.test",
            _ => "shop.test",
        }
    }
}

/// The host names of all sites. Every certificate of the simulation covers them.
pub const HOSTS: [&str; 3] = ["shop.test", "media.test", "world.test"];

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its index in the catalog.
    pub id: ObjectId,
    /// Its kind.
    pub class: Class,
    /// Length of version 0; see [`Object::length`].
    pub bytes: u64,
    /// `max-age`, seconds.
    pub max_age: u64,
    /// `stale-while-revalidate`, seconds.
    pub stale_while_revalidate: u64,
    /// `stale-if-error`, seconds.
    pub stale_if_error: u64,
    /// Number of its group. The objects of a group share the tag `group-N`.
    pub group: u32,
}

impl Object {
    /// Its path: `/class/id`.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.class.as_str(), self.id)
    }

    /// The length of a version. Consecutive versions differ in length, so that a response that
    /// combines the length of one with the bytes of another is detected.
    pub fn length(&self, version: u32) -> u64 {
        self.bytes + u64::from(version % 5) * 61
    }

    /// The `Cache-Control` field of its responses.
    pub fn cache_control(&self) -> String {
        match self.class {
            Class::Private => "private, max-age=60".to_owned(),
            Class::Dynamic | Class::World => "no-store".to_owned(),
            _ => format!(
                "max-age={}, stale-while-revalidate={}, stale-if-error={}",
                self.max_age, self.stale_while_revalidate, self.stale_if_error
            ),
        }
    }

    /// The tags of its responses (`Surrogate-Key`).
    pub fn tags(&self) -> String {
        format!("class-{} group-{} object-{}", self.class.as_str(), self.group, self.id)
    }
}

/// All objects of a run. Origins, load and checkers use the same catalog.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalog {
    /// The objects; an object's id is its index.
    pub objects: Vec<Object>,
}

/// The relative number of objects of each class.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// Small, fresh for minutes.
    pub r#static: u32,
    /// Fresh for seconds.
    pub page: u32,
    /// Megabytes, often requested in ranges.
    pub large: u32,
    /// The origin responds slowly.
    pub slow: u32,
    /// Each client gets its own body.
    pub private: u32,
    /// `no-store`.
    pub dynamic: u32,
    /// The client's country selects the origin.
    pub world: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Mix { r#static: 50, page: 30, large: 2, slow: 3, private: 5, dynamic: 5, world: 5 }
    }
}

impl Mix {
    /// Whether no class has a weight, so that no object could be drawn.
    pub fn is_empty(&self) -> bool {
        Class::ALL.iter().all(|class| self.weight(*class) == 0)
    }

    fn weight(&self, class: Class) -> u64 {
        u64::from(match class {
            Class::Static => self.r#static,
            Class::Page => self.page,
            Class::Large => self.large,
            Class::Slow => self.slow,
            Class::Private => self.private,
            Class::Dynamic => self.dynamic,
            Class::World => self.world,
        })
    }

    fn draw(&self, random: &mut Random) -> Class {
        let total: u64 = Class::ALL.iter().map(|class| self.weight(*class)).sum();
        let mut at = random.below(total);
        for class in Class::ALL {
            match at.checked_sub(self.weight(class)) {
                Some(rest) => at = rest,
                None => return class,
            }
        }
        Class::Static
    }
}

/// Number of objects in a group.
const GROUP_OBJECTS: u32 = 20;

impl Catalog {
    /// A catalog of `count` objects. The same arguments give the same catalog.
    pub fn new(seed: u64, count: u32, mix: &Mix) -> Self {
        let mut random = Random::for_purpose(seed, "catalog");
        let objects = (0..count).map(|id| object(id, mix.draw(&mut random), &mut random));
        Catalog { objects: objects.collect() }
    }

    /// The object with this path.
    pub fn at_path(&self, path: &str) -> Option<&Object> {
        let id = path.rsplit('/').next()?.parse::<usize>().ok()?;
        self.objects.get(id).filter(|object| object.path() == path)
    }

    /// The object with this id.
    pub fn get(&self, id: ObjectId) -> &Object {
        &self.objects[id as usize]
    }
}

fn object(id: ObjectId, class: Class, random: &mut Random) -> Object {
    let (low, high) = match class {
        Class::Large => (900_000, 2_500_000),
        Class::Static | Class::World => (400, 120_000),
        _ => (400, 30_000),
    };
    let (max_age, stale_while_revalidate, stale_if_error) = match class {
        Class::Page | Class::Slow => (2 + random.below(6), 2 + random.below(4), 60),
        _ => (300 + random.below(600), 0, 60),
    };
    let bytes = random.log_uniform(low, high);
    let group = id / GROUP_OBJECTS;
    Object { id, class, bytes, max_age, stale_while_revalidate, stale_if_error, group }
}

/// The object, version and client that the bytes of a body name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The object.
    pub object: ObjectId,
    /// The version of the object.
    pub version: u32,
    /// The client of a private body; 0 for a body that is the same for all clients.
    pub owner: u32,
}

/// Length of a block in bytes.
pub const BLOCK: usize = 64;

impl Identity {
    /// The block that starts at `offset`, a multiple of [`BLOCK`].
    pub fn block(&self, offset: u64) -> [u8; BLOCK] {
        let mut block = *b"o=00000000 v=00000000 u=00000000 @000000000000 skerry-sim......\n";
        hexadecimal(&mut block[2..10], u64::from(self.object));
        hexadecimal(&mut block[13..21], u64::from(self.version));
        hexadecimal(&mut block[24..32], u64::from(self.owner));
        hexadecimal(&mut block[34..46], offset);
        block
    }

    /// Bytes `from..to` of the body.
    pub fn bytes(&self, from: u64, to: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity((to - from) as usize + BLOCK);
        let first = from - from % BLOCK as u64;
        let mut at = first;
        while at < to {
            out.extend_from_slice(&self.block(at));
            at += BLOCK as u64;
        }
        out.truncate((to - first) as usize);
        out.drain(..(from - first) as usize);
        out
    }

    /// Reads the identity from the first whole block of `body`, whose first byte is at offset `from`.
    fn read(body: &[u8], from: u64) -> Result<Identity, BodyFault> {
        let skip = (BLOCK as u64 - from % BLOCK as u64) as usize % BLOCK;
        let block = body.get(skip..skip + BLOCK).ok_or(BodyFault::TooShortToTell)?;
        let field = |range: std::ops::Range<usize>| {
            let text = std::str::from_utf8(&block[range]).ok()?;
            u32::from_str_radix(text, 16).ok()
        };
        let read = || {
            Some(Identity { object: field(2..10)?, version: field(13..21)?, owner: field(24..32)? })
        };
        read().ok_or(BodyFault::Foreign { offset: from + skip as u64 })
    }
}

fn hexadecimal(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

/// The defect of a body whose bytes are not those of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// The body contains no whole block.
    TooShortToTell,
    /// The bytes were not generated by an origin of the simulation.
    Foreign {
        /// Offset of the first such byte.
        offset: u64,
    },
    /// The body starts as one version and continues as something else.
    Mixed {
        /// Offset of the first block that does not continue the first one.
        offset: u64,
        /// Identity of the first block.
        first: Identity,
        /// Identity of the bytes at `offset`, if they have one.
        then: Option<Identity>,
    },
}

impl std::fmt::Display for BodyFault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |of: &Identity| format!("object {} version {}", of.object, of.version);
        match self {
            BodyFault::TooShortToTell => write!(out, "it is too short to be identified"),
            BodyFault::Foreign { offset } => {
                write!(out, "byte {offset} does not come from an origin")
            }
            BodyFault::Mixed { offset, first, then } => {
                write!(out, "it begins as {} but continues at byte {offset} as ", name(first))?;
                match then {
                    Some(same) if same == first => write!(out, "another part of the same version"),
                    Some(other) => write!(out, "{}", name(other)),
                    None => write!(out, "unknown bytes"),
                }
            }
        }
    }
}

/// Identifies a body, or a part of one that starts at byte `from`.
///
/// # Errors
/// The bytes are not those of one version without a gap.
pub fn identify(body: &[u8], from: u64) -> Result<Identity, BodyFault> {
    let first = Identity::read(body, from)?;
    let mut at = 0usize;
    while at < body.len() {
        let offset = from + at as u64;
        let within = (offset % BLOCK as u64) as usize;
        let expected = &first.block(offset - within as u64)[within..];
        let found = &body[at..body.len().min(at + expected.len())];
        if found != &expected[..found.len()] {
            let then = Identity::read(&body[at..], offset).ok();
            return Err(BodyFault::Mixed { offset, first, then });
        }
        at += found.len();
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEVEN: Identity = Identity { object: 0x4d2, version: 7, owner: 0 };

    #[test]
    fn a_body_is_identified_from_any_offset() {
        for (from, to) in [(0, 64), (0, 1000), (1, 1000), (63, 300), (64, 128), (100, 5000)] {
            assert_eq!(identify(&SEVEN.bytes(from, to), from), Ok(SEVEN), "{from}..{to}");
        }
        assert_eq!(&SEVEN.block(64)[..34], b"o=000004d2 v=00000007 u=00000000 @");
    }

    #[test]
    fn two_versions_in_one_body_are_found_where_they_meet() {
        let eight = Identity { version: 8, ..SEVEN };
        let mut body = SEVEN.bytes(0, 256);
        body.extend(eight.bytes(256, 512));
        let mixed = BodyFault::Mixed { offset: 256, first: SEVEN, then: Some(eight) };
        assert_eq!(identify(&body, 0), Err(mixed));
    }

    #[test]
    fn a_shifted_body_is_detected() {
        let mut body = SEVEN.bytes(0, 256);
        body.extend(SEVEN.bytes(320, 512));
        assert!(matches!(identify(&body, 0), Err(BodyFault::Mixed { offset: 256, .. })));
        assert!(identify(&SEVEN.bytes(0, 256), 64).is_err());
    }

    #[test]
    fn a_body_that_no_origin_made_is_foreign() {
        let page = b"<html><body>502 Bad Gateway</body></html>                         ";
        assert_eq!(identify(page, 0), Err(BodyFault::Foreign { offset: 0 }));
        assert_eq!(identify(b"", 0), Err(BodyFault::TooShortToTell));
    }

    #[test]
    fn a_seed_gives_one_catalog_and_paths_find_their_objects() {
        let catalog = Catalog::new(1, 500, &Mix::default());
        assert_eq!(catalog, Catalog::new(1, 500, &Mix::default()));
        assert_ne!(catalog, Catalog::new(2, 500, &Mix::default()));
        for object in &catalog.objects {
            assert_eq!(catalog.at_path(&object.path()), Some(object));
        }
        assert_eq!(catalog.at_path("/static/999999"), None);
        for class in Class::ALL {
            assert!(catalog.objects.iter().any(|object| object.class == class), "{class:?}");
        }
    }
}

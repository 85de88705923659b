//! The content of the origins: objects, their lifetimes, and bodies that state their own identity.
//!
//! Every 64 bytes of a body say which object, which version of it, whose it is, and where in
//! the body they stand:
//!
//! ```text
//! o=000004d2 v=00000007 u=00000000 @000000000040 skerry-lab......\n
//! ```
//!
//! So any mix of versions, shift, truncation or mix-up between clients shows in the bytes
//! alone, whatever the headers claim.

use crate::plan::seed::Random;

/// Position in the [`Catalog`].
pub type ObjectId = u32;

/// How an origin lets an object be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Minutes of lifetime, small.
    Static,
    /// Seconds of lifetime, served stale while it is validated and while the origin fails.
    Page,
    /// Minutes of lifetime, megabytes, asked for in ranges.
    Large,
    /// As a page; the origin takes its time to answer.
    Slow,
    /// `private`: one body for each client.
    Private,
    /// `no-store`.
    Dynamic,
    /// `no-store`; the origin that answers depends on the client's country.
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

    /// The first path segment.
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

    /// Whether a shared cache may store it.
    pub fn is_shared(self) -> bool {
        !matches!(self, Class::Private | Class::Dynamic | Class::World)
    }

    /// The site that serves it.
    pub fn host(self) -> &'static str {
        match self {
            Class::Large => "media.test",
            Class::World => "world.test",
            _ => "shop.test",
        }
    }
}

/// Names that every certificate of the lab covers.
pub const HOSTS: [&str; 3] = ["shop.test", "media.test", "world.test"];

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its position in the catalog.
    pub id: ObjectId,
    /// How it may be cached.
    pub class: Class,
    /// Of version 0; see [`Object::length`].
    pub bytes: u64,
    /// Seconds.
    pub max_age: u64,
    /// `stale-while-revalidate`, seconds.
    pub stale_while_revalidate: u64,
    /// `stale-if-error`, seconds.
    pub stale_if_error: u64,
    /// Purged together: the tag `group-N`.
    pub group: u32,
}

impl Object {
    /// `/class/id`.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.class.as_str(), self.id)
    }

    /// The length of a version. Versions differ in length, so that one's length on another's
    /// bytes shows.
    pub fn length(&self, version: u32) -> u64 {
        self.bytes + u64::from(version % 5) * 61
    }

    /// The `Cache-Control` of the origin's response.
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

    /// The tags of the origin's response.
    pub fn tags(&self) -> String {
        format!("class-{} group-{} object-{}", self.class.as_str(), self.group, self.id)
    }
}

/// Every object of a run, the same for origins, load and checkers.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalog {
    /// By id.
    pub objects: Vec<Object>,
}

/// How many of a hundred objects are of each class.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// Minutes of lifetime, small.
    pub r#static: u32,
    /// Seconds of lifetime.
    pub page: u32,
    /// Megabytes, asked for in ranges.
    pub large: u32,
    /// The origin takes its time.
    pub slow: u32,
    /// One body for each client.
    pub private: u32,
    /// `no-store`.
    pub dynamic: u32,
    /// Origin by country.
    pub world: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Mix { r#static: 50, page: 30, large: 2, slow: 3, private: 5, dynamic: 5, world: 5 }
    }
}

impl Mix {
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

/// Objects that share a `group-N` tag.
const GROUP_OBJECTS: u32 = 20;

impl Catalog {
    /// `count` objects; the same for the same arguments.
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

/// The identity that the bytes of a body state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which object.
    pub object: ObjectId,
    /// Which version of it.
    pub version: u32,
    /// The number of the client that it is for; 0: for every client.
    pub owner: u32,
}

/// Bytes of one block.
pub const BLOCK: usize = 64;

impl Identity {
    /// The block that starts at `offset`, a multiple of [`BLOCK`].
    pub fn block(&self, offset: u64) -> [u8; BLOCK] {
        let mut block = *b"o=00000000 v=00000000 u=00000000 @000000000000 skerry-lab......\n";
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

    /// Reads what the first whole block at or after `from` says; `body` starts at `from`.
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

/// A defect in the bytes of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// Less than one whole block.
    TooShortToTell,
    /// Not one of our bodies at all.
    Foreign {
        /// Where.
        offset: u64,
    },
    /// Starts as one thing and goes on as another.
    Mixed {
        /// The first byte that is not as the first block promises.
        offset: u64,
        /// The identity in the first block.
        first: Identity,
        /// The identity in the later block, if it can be read.
        then: Option<Identity>,
    },
}

impl std::fmt::Display for BodyFault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |of: &Identity| format!("object {} version {}", of.object, of.version);
        match self {
            BodyFault::TooShortToTell => write!(out, "it is too short to tell what it is"),
            BodyFault::Foreign { offset } => write!(out, "byte {offset} is of no origin's making"),
            BodyFault::Mixed { offset, first, then } => {
                write!(out, "it begins as {} and from byte {offset} on is ", name(first))?;
                match then {
                    Some(same) if same == first => write!(out, "another part of it"),
                    Some(other) => write!(out, "{}", name(other)),
                    None => write!(out, "something else"),
                }
            }
        }
    }
}

/// Says which version these bytes are, `body` starting at byte `from` of it.
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
    fn a_body_says_what_it_is_from_any_offset() {
        for (from, to) in [(0, 64), (0, 1000), (1, 1000), (63, 300), (64, 128), (100, 5000)] {
            assert_eq!(identify(&SEVEN.bytes(from, to), from), Ok(SEVEN), "{from}..{to}");
        }
        assert_eq!(&SEVEN.block(64)[..34], b"o=000004d2 v=00000007 u=00000000 @");
    }

    #[test]
    fn two_versions_in_one_body_are_seen_where_they_meet() {
        let eight = Identity { version: 8, ..SEVEN };
        let mut body = SEVEN.bytes(0, 256);
        body.extend(eight.bytes(256, 512));
        let mixed = BodyFault::Mixed { offset: 256, first: SEVEN, then: Some(eight) };
        assert_eq!(identify(&body, 0), Err(mixed));
    }

    #[test]
    fn a_shifted_body_is_seen() {
        let mut body = SEVEN.bytes(0, 256);
        body.extend(SEVEN.bytes(320, 512));
        assert!(matches!(identify(&body, 0), Err(BodyFault::Mixed { offset: 256, .. })));
        assert!(identify(&SEVEN.bytes(0, 256), 64).is_err());
    }

    #[test]
    fn what_is_not_ours_is_foreign() {
        let page = b"<html><body>502 Bad Gateway</body></html>                         ";
        assert_eq!(identify(page, 0), Err(BodyFault::Foreign { offset: 0 }));
        assert_eq!(identify(b"", 0), Err(BodyFault::TooShortToTell));
    }

    #[test]
    fn a_catalog_is_given_by_its_seed_and_finds_its_paths() {
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

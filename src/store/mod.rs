//! Memory and disk as one cache. The only user of foyer.

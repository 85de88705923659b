//! Weighted rendezvous hashing (highest random weight): which member of a set gets a key. The result depends
//! on the names and weights alone, so that every node agrees without a word, and a change of one member
//! of n moves about 1/n of the keys. Pure.

/// The score of a member for a key: the member with the highest one gets the key. `hash` and `identity` are
/// [`hash`]es of the key and of the member's name; a member of weight 0 has the lowest score.
pub(crate) fn score(hash: u64, identity: u64, weight: u16) -> f64 {
    // -w / ln(u), u uniform in (0, 1).
    let mixed = mix(hash ^ mix(identity));
    let uniform = ((mixed >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(weight) / uniform.ln()
}

/// A hash that is the same on each node and after each restart: FNV-1a, finished by [`mix`].
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

/// The finaliser of splitmix64: spreads each bit over all bits.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The bound of consistent hashing with bounded loads: no member may have more than a multiple of its share
/// of the whole load, the new request included. The key of a member at its bound goes to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadBound {
    /// The multiple times the whole load, for each unit of weight; `None` is no bound.
    for_weight: Option<f64>,
}

impl LoadBound {
    /// `members`: load (a count) and weight of each that takes keys. `factor_percent`: the multiple in
    /// percent; 0 is no bound.
    pub(crate) fn of(members: impl Iterator<Item = (u32, u16)>, factor_percent: u32) -> Self {
        if factor_percent == 0 {
            return Self { for_weight: None };
        }
        let sum = |(loads, weights), (load, weight)| {
            (loads + f64::from(load), weights + f64::from(weight))
        };
        let (loads, weights) = members.fold((1.0, 0.0), sum);
        Self { for_weight: Some(f64::from(factor_percent) / 100.0 * loads / weights) }
    }

    /// The most load of a member with this weight.
    pub(crate) fn max(&self, weight: u16) -> u32 {
        self.for_weight.map_or(u32::MAX, |unit| (unit * f64::from(weight)).ceil() as u32)
    }

    /// Whether a member with this load and weight may take one more.
    pub(crate) fn allows(&self, load: u32, weight: u16) -> bool {
        load < self.max(weight)
    }
}

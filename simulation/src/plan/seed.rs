//! Reproducible random numbers: xoshiro256++ seeded by SplitMix64, and Zipf's distribution.
//!
//! They are implemented here and not taken from a crate, so that a seed from an old report still
//! gives the same plan after a dependency has changed.

/// A stream of random numbers that depends on its seed only.
#[derive(Clone, Debug)]
pub struct Random([u64; 4]);

impl Random {
    /// Starts the stream of a seed.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Random(std::array::from_fn(|_| split_mix(&mut state)))
    }

    /// Starts a separate stream for one purpose, so that additional draws for one purpose do not
    /// change the numbers of another.
    pub fn for_purpose(seed: u64, purpose: &str) -> Self {
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Random::new(seed ^ hash)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A number in `low..=high` with each order of magnitude equally likely, as sizes of web
    /// objects are.
    pub fn log_uniform(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1) as f64, high.max(low).max(1) as f64);
        (low.ln() + self.unit() * (high.ln() - low.ln())).exp().round() as u64
    }

    /// The time to the next arrival of a Poisson process, in the unit of `mean`.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.unit()).ln() * mean
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Zipf's law over ranks `0..count`: rank r is drawn in proportion to `1 / (r + 1)^skew`.
#[derive(Clone, Debug)]
pub struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    /// The distribution over `count` ranks, at least one.
    pub fn new(count: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let weight = |rank: usize| 1.0 / ((rank + 1) as f64).powf(skew);
        let cumulative = (0..count.max(1)).map(|rank| {
            sum += weight(rank);
            sum
        });
        Zipf { cumulative: cumulative.collect() }
    }

    /// Draws a rank.
    pub fn draw(&self, random: &mut Random) -> usize {
        let total = self.cumulative.last().copied().unwrap_or(1.0);
        let at = random.unit() * total;
        self.cumulative.partition_point(|edge| *edge <= at).min(self.cumulative.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_stream_and_another_seed_another() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..100).map(|_| random.bits()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn purposes_do_not_share_a_stream() {
        let (mut a, mut b) = (Random::for_purpose(1, "load"), Random::for_purpose(1, "faults"));
        assert_ne!(a.bits(), b.bits());
    }

    #[test]
    fn zipf_draws_rank_zero_most_and_stays_in_range() {
        let zipf = Zipf::new(100, 1.0);
        let mut random = Random::new(3);
        let mut counts = [0u32; 100];
        (0..20_000).for_each(|_| counts[zipf.draw(&mut random)] += 1);
        // 1 / H(100) of the draws go to the first rank: 19.3 %.
        assert!((3500..4300).contains(&counts[0]), "{}", counts[0]);
        assert!(counts[0] > counts[1] && counts[1] > counts[10]);
    }

    #[test]
    fn below_covers_its_range_and_never_leaves_it() {
        let mut random = Random::new(5);
        let mut seen = [false; 6];
        (0..1000).for_each(|_| seen[random.below(6) as usize] = true);
        assert_eq!(seen, [true; 6]);
        assert_eq!(random.below(0), 0);
    }
}

//! Chooses one of a pool's origins. Does no I/O: the caller passes which origins are up, tried and
//! busy.

use super::settings::{Balance, Origin, PoolSettings};

/// The input of a choice.
pub(super) struct Choice<'a> {
    pub(super) balance: Balance,
    pub(super) origins: usize,
    /// [`turns`] of the pool.
    pub(super) turns: &'a [u16],
    /// Increases by one for each request on this core.
    pub(super) turn: usize,
    /// The request's hash, for [`Balance::Hash`].
    pub(super) hash: u64,
}

/// The first origin, in the order of preference of the balance, that `admits` accepts. `weight`, `active`
/// (exchanges in flight) and `identity` (a hash) are called with positions.
pub(super) fn choose(
    choice: &Choice<'_>,
    weight: impl Fn(usize) -> u16,
    active: impl Fn(usize) -> usize,
    identity: impl Fn(usize) -> u64,
    mut admits: impl FnMut(usize) -> bool,
) -> Option<usize> {
    if choice.origins == 1 {
        return admits(0).then_some(0);
    }
    match choice.balance {
        Balance::RoundRobin => in_turn(choice).find(|origin| admits(*origin)),
        Balance::LeastConnections => {
            // Load relative to the weight; origins with equal load take turns.
            let load =
                |origin: usize| (active(origin) + 1) * 65_536 / usize::from(weight(origin)).max(1);
            by_preference(in_turn(choice).collect(), |a, b| load(*a) < load(*b), admits)
        }
        Balance::Hash => {
            let scores: Vec<f64> = (0..choice.origins)
                .map(|origin| score(choice.hash, identity(origin), weight(origin)))
                .collect();
            by_preference((0..choice.origins).collect(), |a, b| scores[*a] > scores[*b], admits)
        }
    }
}

/// All origins once, starting with the one whose turn it is.
fn in_turn<'a>(choice: &'a Choice<'_>) -> impl Iterator<Item = usize> + 'a {
    let turns = choice.turns;
    let from = choice.turn % turns.len();
    let first = usize::from(turns[from]);
    let scheduled = turns[from + 1..].iter().chain(&turns[..from]).map(|turn| usize::from(*turn));
    // Origins of weight 0 have no turn and come last.
    let mut others = scheduled.chain(0..choice.origins);
    let mut seen = Vec::new();
    let others = std::iter::from_fn(move || {
        // Allocated only if the first origin is not admitted; most requests allocate nothing here.
        if seen.is_empty() {
            seen = vec![false; choice.origins];
            seen[first] = true;
        }
        others.find(|origin| !std::mem::replace(&mut seen[*origin], true))
    });
    std::iter::once(first).chain(others)
}

/// The best origin that is admitted. `admits` may claim a trial, so it is called for no more origins
/// than needed.
fn by_preference(
    mut candidates: Vec<usize>,
    better: impl Fn(&usize, &usize) -> bool,
    mut admits: impl FnMut(usize) -> bool,
) -> Option<usize> {
    while !candidates.is_empty() {
        let mut best = 0;
        for at in 1..candidates.len() {
            if better(&candidates[at], &candidates[best]) {
                best = at;
            }
        }
        // Not swap_remove: equal candidates must stay in the order of their turns.
        let origin = candidates.remove(best);
        if admits(origin) {
            return Some(origin);
        }
    }
    None
}

/// Weighted rendezvous (highest random weight): -w / ln(u), u uniform in (0, 1) from the
/// hash of request and origin.
fn score(hash: u64, identity: u64, weight: u16) -> f64 {
    let mixed = mix(hash ^ mix(identity));
    let uniform = ((mixed >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(weight) / uniform.ln()
}

/// The finaliser of splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The order of turns: each origin as often as its weight says, spread evenly (the smooth
/// weighted round robin of nginx), scaled down to at most [`TURNS_MAX`]. Never empty.
pub(super) fn turns(origins: &[Origin]) -> Box<[u16]> {
    let total: usize = origins.iter().map(|origin| usize::from(origin.weight)).sum();
    if total == 0 {
        return (0..origins.len()).map(|at| at as u16).collect();
    }
    let shortest = origins.iter().map(|origin| origin.weight).filter(|weight| *weight > 0);
    let divisor = shortest.reduce(gcd).map_or(1, usize::from);
    let rounds = (total / divisor).clamp(1, TURNS_MAX);
    let mut credit = vec![0_i64; origins.len()];
    (0..rounds)
        .map(|_| {
            for (credit, origin) in credit.iter_mut().zip(origins) {
                *credit += i64::from(origin.weight);
            }
            let next = (0..origins.len())
                .filter(|at| origins[*at].weight > 0)
                .max_by_key(|at| (credit[*at], std::cmp::Reverse(*at)))
                .expect("the total weight is above zero");
            credit[next] -= total as i64;
            next as u16
        })
        .collect()
}

/// A hash of an origin's name that is the same on each node and after each restart: FNV-1a,
/// finished by [`mix`].
pub(super) fn hash(name: &str) -> u64 {
    let fnv = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Maximum length of the schedule. Cut to it, shares are right to about a tenth of a percent. No pool
/// has more origins, so that each can have a turn.
const TURNS_MAX: usize = PoolSettings::ORIGINS_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(weights: &[u16]) -> Vec<Origin> {
        let origin = |weight: &u16| Origin { weight: *weight, ..Origin::http("o", 80) };
        weights.iter().map(origin).collect()
    }

    fn check(
        balance: Balance,
        weights: &[u16],
        request: (usize, u64),
        active: &[usize],
        admits: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let turns = turns(&origins(weights));
        let (turn, hash) = request;
        let choice = Choice { balance, origins: weights.len(), turns: &turns, turn, hash };
        choose(
            &choice,
            |at| weights[at],
            |at| active.get(at).copied().unwrap_or(0),
            |at| at as u64,
            admits,
        )
    }

    #[test]
    fn turns_are_spread_by_weight() {
        assert_eq!(*turns(&origins(&[5, 1, 1])), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*turns(&origins(&[100, 100])), [0, 1]);
        assert_eq!(*turns(&origins(&[0, 0])), [0, 1]);
    }

    #[test]
    fn an_origin_that_is_not_admitted_is_passed_over() {
        let chosen = |turn| check(Balance::RoundRobin, &[1, 1, 1], (turn, 0), &[], |at| at != 1);
        assert_eq!([chosen(0), chosen(1), chosen(2)], [Some(0), Some(2), Some(2)]);
        assert_eq!(check(Balance::RoundRobin, &[1, 1], (0, 0), &[], |_| false), None);
    }

    #[test]
    fn weight_zero_is_the_last_resort() {
        assert_eq!(check(Balance::RoundRobin, &[0, 1], (0, 0), &[], |_| true), Some(1));
        assert_eq!(check(Balance::RoundRobin, &[0, 1], (0, 0), &[], |at| at == 0), Some(0));
    }

    #[test]
    fn the_least_busy_for_its_weight_is_chosen() {
        let chosen =
            |active: &[usize]| check(Balance::LeastConnections, &[1, 4], (0, 0), active, |_| true);
        assert_eq!(chosen(&[1, 2]), Some(1));
        assert_eq!(chosen(&[0, 9]), Some(0));
    }

    #[test]
    fn a_lost_origin_moves_only_its_own_share_of_hashes() {
        let all = |hash| check(Balance::Hash, &[1, 1, 1, 1], (0, hash), &[], |_| true);
        let without = |hash| check(Balance::Hash, &[1, 1, 1, 1], (0, hash), &[], |at| at != 2);
        let mut shares = [0; 4];
        for hash in 0..4000_u64 {
            let before = all(hash).expect("all are up");
            shares[before] += 1;
            if before != 2 {
                assert_eq!(without(hash), Some(before));
            }
        }
        assert!(shares.iter().all(|share| (900..1100).contains(share)), "{shares:?}");
    }

    #[test]
    fn each_of_a_thousand_origins_has_its_turn() {
        let weights = vec![1; PoolSettings::ORIGINS_MAX];
        let chosen: std::collections::BTreeSet<_> = (0..weights.len())
            .map(|turn| check(Balance::RoundRobin, &weights, (turn, 0), &[], |_| true))
            .collect();
        assert_eq!(chosen.len(), weights.len());
        let last = weights.len() - 1;
        let only = |at| at == last;
        assert_eq!(check(Balance::RoundRobin, &weights, (5, 0), &[], only), Some(last));
    }
}

//! Remembers keys that were rejected without a look-up, and lets their retries pass within a budget
//! of their own.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::gcra::{Budget, Rate};
use crate::key::KeyHash;

/// A lossy set of recently rejected keys: a fixed-size table of fingerprints, lock-free.
///
/// After *n* other keys, a key is still remembered with probability e^(-n / 262144): after 50,000,
/// one second of a flood, that is 83 %. A key that was never rejected matches with probability
/// 2^-32. The hash is seeded, so clients cannot choose keys that collide.
pub(super) struct RetryFilter {
    seed: RandomState,
    places: OnceLock<Box<[AtomicU32]>>,
    /// For keys that are retried, as a client does after `Retry-After`. A flood of ever new keys
    /// never gets here.
    budget: Budget,
}

/// 1 MiB.
const PLACES: usize = 1 << 18;

impl RetryFilter {
    /// Retries may make a tenth of `queries` per second in addition.
    pub(super) fn new(queries: u32) -> Self {
        let retries = (queries / 10).max(1);
        let budget = Budget::new(Rate::per_second(retries, retries));
        Self { seed: RandomState::new(), places: OnceLock::new(), budget }
    }

    /// Whether the key was rejected before and there is a unit for its retry, which is taken.
    pub(super) fn admit(&self, hash: &KeyHash, now: Duration) -> bool {
        self.remembers(hash) && self.budget.take(now)
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(super) fn remember(&self, hash: &KeyHash) {
        let places = self
            .places
            .get_or_init(|| std::iter::repeat_with(AtomicU32::default).take(PLACES).collect());
        let (place, print) = self.print(hash);
        if let Some(place) = place.and_then(|place| places.get(place)) {
            place.store(print, Ordering::Relaxed);
        }
    }

    fn remembers(&self, hash: &KeyHash) -> bool {
        let Some(places) = self.places.get() else { return false };
        let (place, print) = self.print(hash);
        let place = place.and_then(|place| places.get(place));
        place.is_some_and(|place| place.load(Ordering::Relaxed) == print)
    }

    /// The slot and fingerprint of a key. A fingerprint is never 0, which marks an empty slot.
    fn print(&self, hash: &KeyHash) -> (Option<usize>, u32) {
        let hash = self.seed.hash_one(hash);
        let place = usize::try_from(hash % PLACES as u64).ok();
        (place, u32::try_from(hash >> 32).unwrap_or_default().max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u32) -> KeyHash {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        KeyHash::from_bytes(bytes)
    }

    #[test]
    fn who_was_turned_away_is_remembered_and_nobody_else() {
        let retry_filter = RetryFilter::new(100);
        assert!((0..1000).all(|number| !retry_filter.remembers(&hash(number))));
        for number in 0..1000 {
            retry_filter.remember(&hash(number));
            assert!(retry_filter.remembers(&hash(number)));
        }
        assert!((1000..1_000_000).all(|number| !retry_filter.remembers(&hash(number))));
    }

    #[test]
    fn five_in_six_are_remembered_past_fifty_thousand_others() {
        const ROUNDS: u32 = 20;
        const OTHERS: u32 = 50_000;
        const KEYS: u32 = 500;
        let (mut left, mut number) = (0, 0);
        for _ in 0..ROUNDS {
            let retry_filter = RetryFilter::new(100);
            let keys = number..number + KEYS;
            keys.clone().for_each(|key| retry_filter.remember(&hash(key)));
            (keys.end..keys.end + OTHERS).for_each(|other| retry_filter.remember(&hash(other)));
            left += keys.clone().filter(|key| retry_filter.remembers(&hash(*key))).count();
            number = keys.end + OTHERS;
        }
        let share = left as f64 / f64::from(ROUNDS * KEYS);
        let expected = (-f64::from(OTHERS) / PLACES as f64).exp();
        assert!((expected - 0.826).abs() < 0.001);
        // Within eight standard deviations for ten thousand keys.
        assert!((share - expected).abs() < 0.03, "{share}, not {expected}");
    }
}

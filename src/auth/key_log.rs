//! Limits log lines about single keys.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Clients send the same key repeatedly: one line per minute is enough to find it.
const INTERVAL: Duration = Duration::from_secs(60);
/// While this many keys were logged within the last minute, no further key is.
const MAX_KEYS: usize = 1024;
/// How often keys that were logged long ago are removed, once there are too many.
const REMOVE_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Remembers which keys were logged within the last minute.
pub(super) struct KeyLog<K>(Mutex<State<K>>);

struct State<K> {
    logged: HashMap<K, Duration>,
    removed_at: Duration,
}

impl<K> Default for KeyLog<K> {
    fn default() -> Self {
        Self(Mutex::new(State { logged: HashMap::new(), removed_at: Duration::ZERO }))
    }
}

impl<K: Eq + Hash + Copy> KeyLog<K> {
    /// Whether to log the key at `now` of a monotonic clock: the first time, then once a minute.
    pub(super) fn is_due(&self, key: &K, now: Duration) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { logged, removed_at } = &mut *state;
        let is_recent = |at: &Duration| now.saturating_sub(*at) < INTERVAL;
        if logged.get(key).is_some_and(is_recent) {
            return false;
        }
        if logged.len() >= MAX_KEYS && now.saturating_sub(*removed_at) >= REMOVE_AT_MOST_EVERY {
            logged.retain(|_, at| is_recent(at));
            *removed_at = now;
        }
        if logged.len() >= MAX_KEYS && !logged.contains_key(key) {
            return false;
        }
        logged.insert(*key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn a_key_is_logged_once_a_minute() {
        let keys = KeyLog::default();
        assert!(keys.is_due(&1, second(0)) && keys.is_due(&2, second(1)));
        assert!(!keys.is_due(&1, second(59)) && keys.is_due(&1, second(60)));
        assert!(!keys.is_due(&2, second(60)) && keys.is_due(&2, second(61)));
    }

    #[test]
    fn many_keys_fill_neither_the_log_nor_the_memory() {
        let keys = KeyLog::default();
        let lines = |now| (0..3 * MAX_KEYS).filter(|key| keys.is_due(key, now)).count();
        assert_eq!(lines(second(9)), MAX_KEYS);
        assert_eq!(lines(second(68)), 0);
        assert_eq!(lines(second(69)), MAX_KEYS);
        assert_eq!(keys.0.lock().unwrap().logged.len(), MAX_KEYS);
    }

    #[test]
    fn while_there_are_too_many_keys_old_ones_are_removed_once_a_second() {
        const HALF: usize = MAX_KEYS / 2;
        let keys = KeyLog::default();
        let lines = |half: usize, millis| {
            let range = half * HALF..(half + 1) * HALF;
            range.filter(|key| keys.is_due(key, Duration::from_millis(millis))).count()
        };
        assert_eq!((lines(0, 1_000), lines(1, 1_500)), (HALF, HALF));
        assert_eq!(lines(2, 61_000), HALF, "the first half was removed");
        assert_eq!(lines(3, 61_500), 0, "the second half is not removed yet");
        assert_eq!((lines(3, 61_999), lines(3, 62_000)), (0, HALF));
    }
}

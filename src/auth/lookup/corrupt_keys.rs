//! Limits log lines about keys whose record cannot be read.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::key::KeyHash;

/// Clients send such a key repeatedly, and each time it is looked up: one line per minute is enough
/// to find it.
const INTERVAL: Duration = Duration::from_secs(60);
const MAX_KEYS: usize = 1024;

#[derive(Default)]
pub(super) struct CorruptKeys(Mutex<HashMap<KeyHash, Duration>>);

impl CorruptKeys {
    /// Whether to log the key at `now`: the first time, then once a minute.
    pub(super) fn is_due(&self, hash: &KeyHash, now: Duration) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(hash).is_some_and(|at| now.saturating_sub(*at) < INTERVAL) {
            return false;
        }
        if told.len() >= MAX_KEYS {
            told.clear();
        }
        told.insert(*hash, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_of_once_a_minute_and_not_too_many_are_remembered() {
        let keys = CorruptKeys::default();
        let [one, other] = [1, 2].map(|byte| KeyHash::from_bytes([byte; 32]));
        let second = Duration::from_secs;
        assert!(keys.is_due(&one, second(0)) && keys.is_due(&other, second(1)));
        assert!(!keys.is_due(&one, second(59)) && keys.is_due(&one, second(60)));
        for number in 0..2 * MAX_KEYS {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            keys.is_due(&KeyHash::from_bytes(hash), second(61));
        }
        assert!(keys.0.lock().unwrap().len() <= MAX_KEYS);
    }
}

use std::time::Duration;

use crate::auth::cache::WatchedKey;

/// The longest wait before a key that could not be confirmed is looked up again: after the first
/// failure, and after many.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The wait after consecutive look-ups that confirmed nothing: up to 1 s, doubling up to 5 s. The
/// second half of it is jitter, so that streams that failed together do not retry together. The
/// jitter is deterministic per stream.
pub(super) struct Retries {
    seed: u64,
    failures: u32,
}

impl Retries {
    pub(super) fn new(key: WatchedKey, stream: u64) -> Self {
        let id = key.id.as_u128();
        let halves = [id, id >> u64::BITS].map(|half| u64::try_from(half & u128::from(u64::MAX)));
        let id = halves.into_iter().flatten().fold(0, |mixed, half| mix(mixed ^ half));
        Self { seed: mix(id ^ stream), failures: 0 }
    }

    pub(super) fn next(&mut self) -> Duration {
        let most = FIRST_RETRY.saturating_mul(1 << self.failures.min(8)).min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        let random = mix(self.seed ^ u64::from(self.failures)) >> 48;
        let random = u32::try_from(random).unwrap_or_default();
        most / 2 + most / 2 * random / (1 << 16)
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// SplitMix64: each bit of the result depends on every bit of the input.
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{key::KeyHash, record::KeyId};

    fn retries(key: u8, stream: u64) -> Retries {
        let id = KeyId::from_bytes([key; 16]);
        let hash = KeyHash::from_bytes([0; 32]);
        let (confirmed_at, outdated_by) = (Duration::ZERO, Duration::ZERO);
        Retries::new(WatchedKey { id, hash, confirmed_at, outdated_by }, stream)
    }

    #[test]
    fn retries_back_off_and_differ_from_stream_to_stream() {
        let mut hundredths = [0; 50];
        for stream in 0..5_000 {
            let mut retries = retries(1, stream);
            for most in [1, 2, 4, 5, 5] {
                let (wait, most) = (retries.next(), Duration::from_secs(most));
                assert!(wait >= most / 2 && wait <= most, "{wait:?} of {most:?}");
            }
            retries.reset();
            let over = retries.next() - FIRST_RETRY / 2;
            hundredths[usize::try_from(over.as_millis() / 10).unwrap()] += 1;
        }
        // Expected: 100 each, within seven standard deviations.
        assert!(hundredths.iter().all(|count| (30..170).contains(count)), "{hundredths:?}");
        assert_ne!(retries(1, 7).next(), retries(2, 7).next());
        assert_eq!(retries(1, 7).next(), retries(1, 7).next());
    }
}

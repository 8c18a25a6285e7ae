use std::time::Duration;

use crate::key::EntropySource;

const FIRST: Duration = Duration::from_millis(100);
pub(in crate::auth) const LONGEST: Duration = Duration::from_secs(5);

/// The wait after consecutive failures: 100 ms, doubling up to 5 s. Jitter takes off up to half of
/// it, so that nodes that lost their database together do not reconnect together.
#[derive(Default)]
pub(in crate::auth) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(in crate::auth) fn wait(&mut self, entropy: &impl EntropySource) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let mut random = [0];
        // Without randomness there is no jitter, which is no reason to fail.
        let omitted = entropy.fill(&mut random).map_or(0, |()| u32::from(random[0]));
        whole - whole / 2 * omitted / 256
    }

    pub(in crate::auth) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::RngError;

    struct Always(Option<u8>);

    impl EntropySource for Always {
        fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
            buffer.fill(self.0.ok_or_else(|| RngError::new("none left"))?);
            Ok(())
        }
    }

    fn waits(entropy: &Always) -> Vec<u128> {
        let mut backoff = Backoff::default();
        (0..8).map(|_| backoff.wait(entropy).as_millis()).collect()
    }

    #[test]
    fn waits_double_up_to_five_seconds() {
        let whole = [100, 200, 400, 800, 1600, 3200, 5000, 5000];
        assert_eq!(waits(&Always(Some(0))), whole);
        assert_eq!(waits(&Always(None)), whole);
    }

    #[test]
    fn randomness_takes_away_up_to_half() {
        let least = waits(&Always(Some(255)));
        assert_eq!(least, [50, 100, 200, 401, 803, 1606, 2509, 2509]);
    }

    #[test]
    fn many_failures_do_not_overflow_and_a_reset_starts_again() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.wait(&Always(Some(0))), LONGEST);
        backoff.reset();
        assert_eq!(backoff.wait(&Always(Some(0))), FIRST);
    }
}

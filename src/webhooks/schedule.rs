//! When a failed delivery is tried again.

use std::time::Duration;

use crate::key::EntropySource;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(86_400);

/// With this many consecutive failures, over about five days, an endpoint is parked.
pub(super) const MAX_FAILURES: u32 = 18;

/// The wait after this many consecutive failures: 5 s, doubling up to a day. Jitter takes off up to a
/// quarter, so that endpoints that failed together are not tried together.
pub(super) fn wait(failures: u32, entropy: &dyn EntropySource) -> Duration {
    let doublings = failures.saturating_sub(1).min(20);
    let whole = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    let mut random = [0];
    // Without randomness there is no jitter, which is no reason to fail.
    let omitted = entropy.fill(&mut random).map_or(0, |()| u32::from(random[0]));
    whole - whole / 4 * omitted / 256
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

    #[test]
    fn waits_double_from_seconds_up_to_a_day_and_last_for_days_until_an_endpoint_is_parked() {
        for (failures, seconds) in
            [(1, 5), (2, 10), (3, 20), (10, 2560), (15, 81_920), (16, 86_400)]
        {
            assert_eq!(wait(failures, &Always(Some(0))), Duration::from_secs(seconds));
            assert_eq!(wait(failures, &Always(None)), Duration::from_secs(seconds));
        }
        assert_eq!(wait(u32::MAX, &Always(Some(0))), LONGEST);
        for (byte, least) in [(0, 4.6), (255, 3.4)] {
            let all: Duration = (1..MAX_FAILURES).map(|it| wait(it, &Always(Some(byte)))).sum();
            let days = all.as_secs_f64() / 86_400.0;
            assert!((least - 1.5..least + 0.4).contains(&days), "{days}");
        }
    }

    #[test]
    fn jitter_takes_off_up_to_a_quarter() {
        let least = wait(16, &Always(Some(255)));
        assert!(least >= LONGEST * 3 / 4 && least < LONGEST * 77 / 100, "{least:?}");
    }
}

//! Times as microseconds since 1970.

use std::time::{Duration, SystemTime};

use super::error::unstorable;
use crate::store::StoreError;

const NANOS_PER_MICRO: u128 = 1000;

/// Microseconds since 1970, rounded down.
pub(in crate::store) fn micros(time: SystemTime) -> Result<i64, StoreError> {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).map_err(unstorable),
        Err(before) => {
            let micros = before.duration().as_nanos().div_ceil(NANOS_PER_MICRO);
            i64::try_from(micros).map(|micros| -micros).map_err(unstorable)
        }
    }
}

/// Microseconds since 1970, rounded up: comparing stored times, which were [rounded down](micros),
/// with `<` then gives the same result as comparing with `time`.
pub(in crate::store) fn micros_up(time: SystemTime) -> Result<i64, StoreError> {
    let down = micros(time)?;
    let is_whole = self::time(down) == Some(time);
    Ok(if is_whole { down } else { down.saturating_add(1) })
}

/// The time this many microseconds after 1970, if representable.
pub(in crate::store) fn time(micros: i64) -> Option<SystemTime> {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreErrorKind;

    #[test]
    fn times_are_rounded_down_to_microseconds_on_both_sides_of_1970() {
        let nanos = Duration::from_nanos;
        let epoch = SystemTime::UNIX_EPOCH;
        for (at, expected) in [
            (epoch, 0),
            (epoch + nanos(1_999), 1),
            (epoch - nanos(1), -1),
            (epoch - nanos(1_000), -1),
            (epoch - nanos(1_001), -2),
        ] {
            assert_eq!(micros(at).unwrap(), expected);
        }
        for at in [0, 1, -1, 1_767_225_600_123_456, -i64::MAX, i64::MAX] {
            assert_eq!(time(at).map(|at| micros(at).unwrap()), Some(at));
        }
    }

    #[test]
    fn times_beyond_the_end_are_errors() {
        let end = time(i64::MAX).unwrap();
        assert_eq!(
            micros(end + Duration::from_micros(1)).unwrap_err().kind(),
            StoreErrorKind::Other
        );
    }
}

use proptest::prelude::*;

use super::*;

#[test]
fn zero_and_overflow_are_errors() {
    assert_eq!(Quota::per_second(0), Err(InvalidQuota::Zero));
    assert_eq!(Quota::per_minute(60).unwrap().burst(0), Err(InvalidQuota::Zero));
    assert_eq!(Quota::per(1, Duration::ZERO), Err(InvalidQuota::OutOfRange));
    assert_eq!(Quota::per(1, Duration::MAX), Err(InvalidQuota::OutOfRange));
    assert_eq!(Quota::per(1001, Duration::from_micros(1)), Err(InvalidQuota::OutOfRange));
    let slow = Quota::per(1, Duration::from_secs(86_400)).unwrap();
    assert_eq!(slow.burst(u32::MAX), Err(InvalidQuota::OutOfRange));
    assert!(Quota::per_second(1_000_000_000).is_ok());
    assert_eq!(Quota::per_second(u32::MAX), Err(InvalidQuota::OutOfRange));
    assert_eq!(Quota::at_most(5, MINUTE).unwrap().burst(6), Err(InvalidQuota::OutOfRange));
}

#[test]
fn names_fit_a_header_and_are_unique_in_a_key() {
    let quota = Quota::per_minute(60).unwrap();
    for name in ["", "a b", "a\"b", "a\r\nb", "ä", &"a".repeat(65)] {
        assert_eq!(quota.clone().named(name), Err(InvalidQuota::Name), "{name:?}");
    }
}

#[test]
fn what_is_left_out_is_the_default_and_is_left_out_again() {
    let day = Quota::sliding(1_000, 24 * HOUR).unwrap().named("day").unwrap().per_consumer();
    let minute = Quota::per_minute(60).unwrap();
    for (quota, json, written) in [
        (
            day,
            r#"{"name":"day","limit":1000,"window_ms":86400000,"sliding":true,"counted_per":"consumer"}"#,
            None,
        ),
        (minute.clone(), r#"{"name":"minute","limit":60,"window_ms":60000,"burst":60}"#, None),
        (
            minute.clone(),
            r#"{"name":"minute","limit":60,"window_ms":60000}"#,
            Some(r#"{"name":"minute","limit":60,"window_ms":60000,"burst":60}"#),
        ),
        (
            Quota::at_most(60, MINUTE).unwrap().named("minute").unwrap(),
            r#"{"name":"minute","limit":60,"window_ms":60000,"burst":6,"strict":true}"#,
            None,
        ),
        (
            Quota::sliding(60, MINUTE).unwrap().named("minute").unwrap(),
            r#"{"name":"minute","limit":60,"window_ms":60000,"burst":60,"sliding":true}"#,
            Some(r#"{"name":"minute","limit":60,"window_ms":60000,"sliding":true}"#),
        ),
        (
            minute,
            r#"{"name":"minute","limit":60,"window_ms":60000,"strict":false,"counted_per":"key"}"#,
            Some(r#"{"name":"minute","limit":60,"window_ms":60000,"burst":60}"#),
        ),
    ] {
        assert_eq!(serde_json::from_str::<Quota>(json).unwrap(), quota, "{json}");
        assert_eq!(serde_json::to_string(&quota).unwrap(), written.unwrap_or(json));
    }
}

#[test]
fn a_sliding_window_says_what_it_can_be() {
    for window in [Duration::from_millis(99), Duration::from_micros(100_001), Duration::MAX] {
        assert_eq!(Quota::sliding(1, window), Err(InvalidQuota::Sliding));
    }
    assert_eq!(Quota::sliding(1 << 31, MINUTE), Err(InvalidQuota::Sliding));
    assert_eq!(Quota::sliding(0, MINUTE), Err(InvalidQuota::Zero));
    let quota = Quota::sliding(9, MINUTE).unwrap();
    assert_eq!(quota.clone().burst(8), Err(InvalidQuota::Sliding));
    assert_eq!(quota.clone().burst(0), Err(InvalidQuota::Zero));
    assert_eq!(quota.clone().burst(9), Ok(quota));
}

#[test]
fn a_stored_quota_that_makes_no_sense_is_refused() {
    for json in [
        r#"{"name":"minute","limit":0,"window_ms":60000,"burst":1}"#,
        r#"{"name":"minute","limit":1,"window_ms":0,"burst":1}"#,
        r#"{"name":"minute","limit":1,"window_ms":86400000,"burst":4294967295}"#,
        r#"{"name":"minute","limit":1,"window_ms":60000,"burst":null}"#,
        r#"{"name":"a\nb","limit":1,"window_ms":60000,"burst":1}"#,
        r#"{"name":"minute","limit":-1,"window_ms":60000,"burst":1}"#,
        r#"{"name":"minute","limit":1,"window_ms":60000,"burst":1,"unknown":1}"#,
        r#"{"name":"minute","limit":2,"window_ms":60000,"burst":1,"sliding":true}"#,
        r#"{"name":"minute","limit":2,"window_ms":60000,"burst":3,"strict":true}"#,
        r#"{"name":"minute","limit":1,"window_ms":99,"sliding":true}"#,
        r#"{"name":"minute","limit":1,"window_ms":60000,"counted_per":"planet"}"#,
    ] {
        assert!(serde_json::from_str::<Quota>(json).is_err(), "{json}");
    }
}

proptest! {
    #[test]
    fn quotas_survive_storage(
        limit in 1..=u32::MAX,
        window_ms in 1..=3_000_000_000_u64,
        burst in 1..=u32::MAX,
        kind in 0..3_u8,
        per_consumer: bool,
    ) {
        let window = Duration::from_millis(window_ms);
        let quota = match kind {
            0 => Quota::per(limit, window).and_then(|quota| quota.burst(burst)),
            1 => Quota::at_most(limit, window).and_then(|quota| quota.burst(burst)),
            _ => Quota::sliding(limit, window),
        };
        let Ok(quota) = quota else { return Ok(()) };
        let quota = if per_consumer { quota.per_consumer() } else { quota };
        let json = serde_json::to_string(&quota).unwrap();
        prop_assert_eq!(serde_json::from_str::<Quota>(&json).unwrap(), quota);
    }

    // All of these buckets fill within 146 years.
    #[test]
    fn at_most_means_it(limit in 1..100_000_u32, secs in 1..40_000_u64, burst in 1..100_000_u32) {
        let window = Duration::from_secs(secs);
        let quota = Quota::at_most(limit, window).unwrap();
        prop_assert!(quota.most_in(window) <= limit.into());
        // The interval is rounded up to whole nanoseconds, which may cost the last unit.
        prop_assert!((quota.most_in(window) + 1) * 10 >= u64::from(limit) * 9);
        if burst <= limit {
            let quota = quota.burst(burst).unwrap();
            prop_assert!(quota.most_in(window) <= limit.into());
        }
    }
}

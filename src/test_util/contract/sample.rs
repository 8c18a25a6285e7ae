//! Keys for the rules.

use std::time::{Duration, SystemTime};

use super::Violation;
use crate::{
    clock::{Clock as _, SystemClock},
    key::{KeyFormat, KeyHash, SystemEntropy},
    rate_limit::{Quota, RateLimits},
    record::{KeyId, KeyKind, KeyRecord, Metadata, Networks, Scopes, Tags, WebOrigins},
};

pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// Times are kept in whole microseconds.
pub(super) const TICK: Duration = Duration::from_micros(1);

/// The present, in whole microseconds.
pub(super) fn now() -> SystemTime {
    let now = SystemClock::new().now();
    let beyond = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    now - Duration::from_nanos(u64::from(beyond % 1000))
}

pub(super) fn id() -> Result<KeyId, Violation> {
    Ok(KeyId::generate(now(), &SystemEntropy)?)
}

pub(super) fn hash() -> Result<KeyHash, Violation> {
    Ok(KeyFormat::new("test_")?.generate()?.hash())
}

/// A key of `acme` with default values.
pub(super) fn record() -> Result<KeyRecord, Violation> {
    Ok(KeyRecord::new(id()?, hash()?, "acme", now()))
}

/// A record without default values.
pub(super) fn full_record() -> Result<KeyRecord, Violation> {
    let mut record = record()?;
    record.key_prefix = "sk_live_".into();
    record.key_last4 = "Zq0Q".into();
    record.name = Some("nightly export".into());
    record.scopes = Scopes::parse(["reports:write", "reports:read"])?;
    record.rate_limits = Some(limits()?);
    record.plan = Some("Team-5_eu.v2".into());
    record.metadata = Metadata::from_json(r#"{"plan":"pro","seats":[1,2.5,null]}"#)?;
    record.networks = Networks::parse(["2001:db8::/32", "10.0.0.0/8", "192.0.2.1"])?;
    record.tags = Tags::parse(["team:billing", "mobile"])?;
    record.kind = KeyKind::Publishable;
    record.origins = WebOrigins::parse(["https://shop.example", "http://localhost:3000"])?;
    record.is_active = false;
    record.created_by = Some("alice".into());
    record.not_before = Some(record.created_at + MINUTE);
    record.expires_at = Some(record.created_at + 2 * MINUTE);
    record.revoked_at = Some(record.created_at - MINUTE);
    record.revoked_reason = Some("leaked".into());
    record.rotated_from = Some(id()?);
    record.root_id = id()?;
    record.version = 7;
    Ok(record)
}

pub(super) fn limits() -> Result<RateLimits, Violation> {
    let burst = Quota::per_second(10)?.burst(20)?;
    let strict = Quota::at_most(1000, 1440 * MINUTE)?.named("day")?;
    Ok(RateLimits::new([strict, burst])?)
}

/// A record without the time it was read at.
pub(super) fn unread(record: &KeyRecord) -> KeyRecord {
    KeyRecord { read_at: SystemTime::UNIX_EPOCH, ..record.clone() }
}

pub(super) fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

use std::time::SystemTime;

use crate::{record::KeyRecord, store::KeyQuery};

/// Whether a listing includes the key.
pub(super) fn matches(
    query: &KeyQuery,
    record: &KeyRecord,
    last_used_at: Option<SystemTime>,
    now: SystemTime,
) -> bool {
    let is_before = |at: SystemTime, end: Option<SystemTime>| end.is_none_or(|end| at < end);
    query.consumer_id.as_ref().is_none_or(|consumer| record.consumer_id == *consumer)
        && query.key_prefix.as_ref().is_none_or(|prefix| record.key_prefix == *prefix)
        && query.tag.as_ref().is_none_or(|tag| record.tags.contains(tag))
        && query.scope.as_ref().is_none_or(|scope| record.scopes.contains(scope.as_str()))
        && query.status.is_none_or(|status| record.status(now) == status)
        && query.expires_before.is_none_or(|end| record.expires_at.is_some_and(|at| at < end))
        && is_before(record.created_at, query.unused_since)
        && last_used_at.is_none_or(|at| is_before(at, query.unused_since))
}

//! Batches of counted uses.

use super::{time::micros, uuid::Uuid};
use crate::store::port::{CountedUses, UseCounts};

const MICROS_PER_DAY: i64 = 86_400 * 1_000_000;

/// The identity of a batch: its writer, and its number.
pub(in crate::store) type BatchId = (Uuid, i64);

/// A row of `api_key_usage_hourly`. Times are microseconds since 1970.
#[derive(Clone, Debug)]
pub(in crate::store) struct HourRow<'a> {
    pub(in crate::store) key_id: Uuid,
    pub(in crate::store) hour: i64,
    /// The beginning of the day in UTC.
    pub(in crate::store) day: i64,
    pub(in crate::store) consumer_id: &'a str,
    pub(in crate::store) counts: UseCounts,
}

pub(in crate::store) fn batch_id(counted: &CountedUses) -> BatchId {
    (Uuid::from_bytes(counted.writer), i64::try_from(counted.sequence).unwrap_or(i64::MAX))
}

/// The rows of a batch, without those whose times no database stores.
pub(in crate::store) fn hour_rows(counted: &CountedUses) -> Vec<HourRow<'_>> {
    let rows = counted.hours.iter().filter_map(|used| {
        let hour = micros(used.hour).ok()?;
        Some(HourRow {
            key_id: Uuid::from_bytes(*used.key_id.as_bytes()),
            hour,
            day: hour.checked_sub(hour.rem_euclid(MICROS_PER_DAY))?,
            consumer_id: &used.consumer_id,
            counts: used.counts,
        })
    });
    rows.collect()
}

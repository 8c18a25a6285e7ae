use std::{collections::BTreeMap, time::SystemTime};

use super::keys::Keys;
use crate::store::{
    BucketWidth, UsageBucket, UsageCursor, UsageQuery,
    port::{HourlyUse, UseCounts},
};

impl Keys {
    pub(super) fn usage(&self, query: &UsageQuery) -> Vec<UsageBucket> {
        let counted = match query.width {
            BucketWidth::Hour => &self.hourly,
            BucketWidth::Day => &self.daily,
        };
        let mut buckets = BTreeMap::<_, UseCounts>::new();
        for ((key_id, begin), used) in counted {
            let is_wanted = (query.from..query.to).contains(begin)
                && query.key_id.is_none_or(|id| id == *key_id)
                && query.consumer_id.as_ref().is_none_or(|id| *id == used.consumer_id);
            if is_wanted {
                let sum = buckets.entry(*begin).or_default();
                *sum = sum.plus(used.counts);
            }
        }
        buckets.into_iter().map(|(from, counts)| UsageBucket::new(from, counts)).collect()
    }

    pub(super) fn usage_hours(
        &self,
        after: UsageCursor,
        end: SystemTime,
        limit: usize,
    ) -> Vec<HourlyUse> {
        let is_after = |hour, key_id| UsageCursor::after(hour, key_id) > after;
        let mut hours: Vec<_> = (self.hourly.iter())
            .filter(|((key_id, hour), _)| is_after(*hour, *key_id) && *hour < end)
            .map(|((key_id, hour), used)| {
                HourlyUse::new(*key_id, used.consumer_id.clone(), *hour, used.counts)
            })
            .collect();
        hours.sort_unstable_by_key(|used| (used.hour, used.key_id));
        hours.truncate(limit);
        hours
    }
}

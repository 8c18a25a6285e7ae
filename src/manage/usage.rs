//! Reading the usage ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use super::{KeyIssuer, ManageError};
use crate::store::{BucketWidth, UsageBucket, UsageQuery, port::UseCounts};

/// The counted use of a key, a consumer or all keys, in buckets of time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageReport {
    /// The beginning of the first bucket: that of the query, rounded down.
    pub from: SystemTime,
    /// The end of the last bucket: that of the query, rounded up.
    pub to: SystemTime,
    /// Hours or days.
    pub width: BucketWidth,
    /// The buckets with use, in the order of time. Those without use are left out.
    pub buckets: Vec<UsageBucket>,
}

impl UsageReport {
    /// The counts of all buckets together.
    #[must_use]
    pub fn total(&self) -> UseCounts {
        self.buckets.iter().fold(UseCounts::default(), |sum, bucket| sum.plus(bucket.counts))
    }
}

impl KeyIssuer {
    /// The counted use of the keys that the actor may manage, by hour or by day.
    ///
    /// Buckets begin at full hours, or at midnight in UTC. A query that begins or ends within a
    /// bucket includes the whole bucket. What is read lags behind by the
    /// [interval](crate::auth::Builder::usage_interval) in which nodes write, so the last bucket
    /// still grows. Use stays after its key was pruned.
    ///
    /// An actor that does not see all consumers reads the use of those that it sees, and nothing of
    /// another one.
    ///
    /// # Errors
    ///
    /// [`Invalid`](super::ManageErrorKind::Invalid) if the query does not begin before its end, or
    /// is longer than [`max_range`](BucketWidth::max_range);
    /// [`NotFound`](super::ManageErrorKind::NotFound) if it names one key that does not exist and
    /// was not used in that time; [`Unsupported`](super::ManageErrorKind::Unsupported) if the store
    /// does not keep use; or when the store fails.
    pub async fn usage(&self, query: &UsageQuery) -> Result<UsageReport, ManageError> {
        let query = &rounded(query)?;
        let _permit = self.permit().await?;
        let buckets = match (self.tenants(), &query.consumer_id) {
            (Some(own), Some(asked)) if !own.contains(&**asked) => Vec::new(),
            (Some(own), None) => self.usage_of_each(&own, query).await?,
            _ => self.store.usage(query).await?,
        };
        if let Some(id) = query.key_id.filter(|_| buckets.is_empty()) {
            self.get_now(id).await?;
        }
        let UsageQuery { from, to, width, .. } = *query;
        Ok(UsageReport { from, to, width, buckets })
    }

    /// The use of several consumers together. Reads that of each.
    async fn usage_of_each(
        &self,
        consumers: &BTreeSet<&str>,
        query: &UsageQuery,
    ) -> Result<Vec<UsageBucket>, ManageError> {
        let mut buckets = BTreeMap::<_, UseCounts>::new();
        for consumer_id in consumers {
            let query = query.clone().consumer_id(*consumer_id);
            for UsageBucket { from, counts } in self.store.usage(&query).await? {
                let sum = buckets.entry(from).or_default();
                *sum = sum.plus(counts);
            }
        }
        Ok(buckets.into_iter().map(|(from, counts)| UsageBucket::new(from, counts)).collect())
    }
}

/// The query in whole buckets, if it is valid.
fn rounded(query: &UsageQuery) -> Result<UsageQuery, ManageError> {
    let UsageQuery { width, from, to, .. } = *query;
    let length = to.duration_since(from).unwrap_or_default();
    if length.is_zero() {
        return Err(ManageError::invalid("from", "must be before `to`"));
    }
    if length > width.max_range() {
        let detail = match width {
            BucketWidth::Hour => "must be at most 35 days before `to`, or read days",
            BucketWidth::Day => "must be at most 3,660 days before `to`",
        };
        return Err(ManageError::invalid("from", detail));
    }
    Ok(UsageQuery { from: width.start(from), to: width.end(to), ..query.clone() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::manage::ManageErrorKind;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + HOUR * hours
    }

    #[test]
    fn a_query_includes_the_buckets_that_it_touches() {
        let minute = Duration::from_secs(60);
        let query = UsageQuery::until(at(50) + minute, BucketWidth::Hour).from(at(49) - minute);
        let rounded = rounded(&query).unwrap();
        assert_eq!((rounded.from, rounded.to), (at(48), at(51)));
    }

    #[test]
    fn a_query_begins_before_its_end_and_is_bounded() {
        for width in [BucketWidth::Hour, BucketWidth::Day] {
            let to = at(1_000_000);
            let query = UsageQuery::until(to, width);
            assert!(rounded(&query.clone().from(to - width.max_range())).is_ok());
            let beyond = to - width.max_range() - Duration::from_micros(1);
            for from in [beyond, to, to + HOUR, SystemTime::UNIX_EPOCH] {
                let error = rounded(&query.clone().from(from)).unwrap_err();
                assert_eq!((error.kind(), error.field()), (ManageErrorKind::Invalid, Some("from")));
            }
        }
    }
}

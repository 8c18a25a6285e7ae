//! The rules of a store that counts uses, one function for each, which fails if the rule is broken.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use std::time::{Duration, SystemTime};

use super::{
    Violation,
    key_store::seeded,
    sample::{id, record},
    suite::suite,
    violation::equal,
};
use crate::{
    record::KeyId,
    store::{
        BucketWidth, ManageKeys, UsageBucket, UsageCursor, UsageQuery,
        port::{CountedUses, HourlyUse, KeyTransaction as _, UsageBatch, UseCounts},
    },
};

suite! {
    $
    /// Checks the rules of a store that counts uses: what [`KeyStore::record_usage`] has added is
    /// read by [`ManageKeys::usage`] and [`ManageKeys::usage_hours`].
    ///
    /// [`KeyStore::record_usage`]: crate::store::KeyStore::record_usage
    fn usage_ledger<S: ManageKeys>(store: S) from usage_ledger;
    /// Makes a `#[tokio::test]` of each rule of a store that counts uses, in a module.
    ///
    /// Its arguments are those of [`manage_keys_contract!`](crate::manage_keys_contract).
    macro usage_ledger_contract;
    use_is_read_of_a_key_a_consumer_and_all
    use_is_read_of_a_key_while_it_was_a_consumers
    hours_add_up_to_days_of_utc
    hours_are_in_order_and_only_those_with_use
    a_range_has_its_beginning_and_not_its_end
    a_batch_is_added_once
    corrections_are_added
    use_stays_after_its_key
    hours_of_keys_are_read_page_by_page
}

const HOUR: Duration = Duration::from_secs(3600);

/// Noon of a day, some hours later.
fn noon(hours: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_268_800) + HOUR * hours
}

fn admitted(number: i64) -> UseCounts {
    UseCounts::new(number, 0, 0, 0, number)
}

/// Adds uses in a batch of its own.
async fn add<S: ManageKeys>(
    store: &S,
    sequence: u64,
    uses: &[(KeyId, &str, u32, UseCounts)],
) -> Result<(), Violation> {
    let hour = |(id, consumer_id, hour, counts): &(KeyId, &str, u32, UseCounts)| {
        HourlyUse::new(*id, (*consumer_id).to_owned(), noon(*hour), *counts)
    };
    let mut hours: Vec<_> = uses.iter().map(hour).collect();
    hours.sort_unstable_by_key(|used| (used.key_id, used.hour));
    let counted = CountedUses::new([7; 16], sequence, hours);
    store.record_usage(&UsageBatch::default().counted(counted)).await?;
    Ok(())
}

/// Two days of hours.
fn hourly() -> UsageQuery {
    UsageQuery::until(noon(36), BucketWidth::Hour).from(noon(0) - 12 * HOUR)
}

fn bucket(hour: u32, counts: UseCounts) -> UsageBucket {
    UsageBucket::new(noon(hour), counts)
}

fn ids() -> Result<[KeyId; 3], Violation> {
    let mut ids = [id()?, id()?, id()?];
    ids.sort_unstable();
    Ok(ids)
}

/// A query names a key, a consumer, or neither.
pub async fn use_is_read_of_a_key_a_consumer_and_all<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let [a, b, c] = ids()?;
    let all = UseCounts::new(1, 2, 3, 4, 5);
    add(&store, 1, &[(a, "acme", 0, all), (b, "acme", 0, all), (c, "globex", 0, all)]).await?;
    let sum = |times: i64| vec![bucket(0, (1..times).fold(all, |sum, _| sum.plus(all)))];
    let why = "the use of a key is that of this key alone";
    equal(&store.usage(&hourly().key_id(a)).await?, &sum(1), why)?;
    let why = "the use of a consumer is that of its keys together";
    equal(&store.usage(&hourly().consumer_id("acme")).await?, &sum(2), why)?;
    let why = "without a key and a consumer, the use of all keys is read";
    equal(&store.usage(&hourly()).await?, &sum(3), why)?;
    let why = "a consumer that does not exist has no use";
    equal(&store.usage(&hourly().consumer_id("acm")).await?, &Vec::<UsageBucket>::new(), why)
}

/// A query that names both reads the rows that match both.
pub async fn use_is_read_of_a_key_while_it_was_a_consumers<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let [a, b, _] = ids()?;
    add(&store, 1, &[(a, "acme", 0, admitted(1)), (b, "acme", 0, admitted(2))]).await?;
    add(&store, 2, &[(a, "globex", 1, admitted(4))]).await?;
    let of = |consumer_id: &str| hourly().key_id(a).consumer_id(consumer_id);
    let why = "with a key and a consumer, both have to match";
    equal(&store.usage(&of("acme")).await?, &vec![bucket(0, admitted(1))], why)?;
    equal(&store.usage(&of("globex")).await?, &vec![bucket(1, admitted(4))], why)
}

/// A day has what was counted in its hours.
pub async fn hours_add_up_to_days_of_utc<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let [a, b, _] = ids()?;
    add(&store, 1, &[(a, "acme", 0, admitted(1)), (b, "acme", 11, admitted(2))]).await?;
    add(&store, 2, &[(a, "acme", 11, admitted(4)), (a, "acme", 12, admitted(8))]).await?;
    let days = UsageQuery { width: BucketWidth::Day, ..hourly() };
    let midnight = noon(0) - 12 * HOUR;
    let expected = vec![
        UsageBucket::new(midnight, admitted(7)),
        UsageBucket::new(midnight + 24 * HOUR, admitted(8)),
    ];
    equal(&store.usage(&days).await?, &expected, "a day is the sum of its hours in UTC")
}

/// Buckets without use are left out.
pub async fn hours_are_in_order_and_only_those_with_use<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let [a, ..] = ids()?;
    add(&store, 1, &[(a, "acme", 9, admitted(1)), (a, "acme", 3, admitted(2))]).await?;
    let expected = vec![bucket(3, admitted(2)), bucket(9, admitted(1))];
    equal(
        &store.usage(&hourly()).await?,
        &expected,
        "buckets are in the order of time, without gaps",
    )
}

/// A bucket that begins at the end of the range is not in it.
pub async fn a_range_has_its_beginning_and_not_its_end<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let [a, ..] = ids()?;
    let uses = [1, 2, 3, 4].map(|hour| (a, "acme", hour, admitted(i64::from(hour))));
    add(&store, 1, &uses).await?;
    let range = UsageQuery::until(noon(4), BucketWidth::Hour).from(noon(2));
    let expected = vec![bucket(2, admitted(2)), bucket(3, admitted(3))];
    equal(&store.usage(&range).await?, &expected, "a range has its beginning and not its end")
}

/// A node sends a batch again if it does not learn of the outcome.
pub async fn a_batch_is_added_once<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let [a, ..] = ids()?;
    for sequence in [1, 1, 2, 1, 2] {
        add(&store, sequence, &[(a, "acme", 0, admitted(1))]).await?;
    }
    let why = "a batch that is sent again is not added again, and a new one is";
    equal(&store.usage(&hourly()).await?, &vec![bucket(0, admitted(2))], why)
}

/// Nodes correct what they have counted before, by negative counts.
pub async fn corrections_are_added<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let [a, ..] = ids()?;
    add(&store, 1, &[(a, "acme", 0, admitted(1)), (a, "acme", 1, admitted(1))]).await?;
    let correction = UseCounts::new(-1, 1, 0, 0, -5);
    add(&store, 2, &[(a, "acme", 1, correction)]).await?;
    let expected = vec![bucket(0, admitted(1)), bucket(1, UseCounts::new(0, 1, 0, 0, -4))];
    equal(&store.usage(&hourly()).await?, &expected, "counts may be lowered, also below zero")
}

/// A deleted key is billed, too.
pub async fn use_stays_after_its_key<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let key = seeded(&store, record()?).await?;
    add(&store, 1, &[(key.id, "acme", 0, admitted(1))]).await?;
    let mut transaction = store.begin().await?;
    transaction.delete(&[key.id]).await?;
    transaction.commit().await?;
    let expected = vec![bucket(0, admitted(1))];
    equal(&store.usage(&hourly().key_id(key.id)).await?, &expected, "use outlives its key")?;
    equal(&store.usage(&hourly().consumer_id("acme")).await?, &expected, "use outlives its key")
}

/// An export misses no hour and has none twice.
pub async fn hours_of_keys_are_read_page_by_page<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let [a, b, c] = ids()?;
    let mut expected = Vec::new();
    for hour in [0, 1, 2] {
        let uses = [(a, "acme"), (b, "globex"), (c, "acme")];
        let uses = uses.map(|(id, consumer_id)| (id, consumer_id, hour, admitted(hour.into())));
        add(&store, u64::from(hour) + 1, &uses).await?;
        expected.extend(uses.map(|(id, consumer_id, hour, counts)| {
            HourlyUse::new(id, consumer_id.to_owned(), noon(hour), counts)
        }));
    }
    for limit in 1..=10 {
        let (mut after, mut read) = (UsageCursor::at(noon(0)), Vec::new());
        loop {
            let page = store.usage_hours(after, noon(2), limit).await?;
            let why = "a page has at most `limit` hours";
            equal(&(page.len() <= limit), &true, why)?;
            let Some(last) = page.last() else { break };
            after = UsageCursor::after(last.hour, last.key_id);
            read.extend(page);
        }
        let why = "pages have each hour of each key before the end once, ordered by hour and key";
        equal(&read, &expected.get(..6).unwrap_or_default().to_vec(), why)?;
    }
    let after = store.usage_hours(UsageCursor::at(noon(1)), noon(9), 100).await?;
    let why = "a position at an hour is before all of its keys";
    equal(&after, &expected.get(3..).unwrap_or_default().to_vec(), why)
}

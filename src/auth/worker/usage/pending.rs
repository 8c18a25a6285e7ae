//! Uses that wait to be written.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use crate::{
    key::{EntropySource, SystemEntropy},
    record::{Consumer, KeyId},
    store::port::{CountedUses, HourlyUse, Usage, UsageBatch, UseCounts},
};

/// Keys whose last use, and pairs of key and hour whose counts, may wait to be written while the store
/// is down.
const MAX_PENDING: usize = 100_000;
/// Last uses, and counts, in a batch: PostgreSQL adds that many in 20 to 50 ms.
const MAX_BATCH: usize = 5_000;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub(super) struct Pending {
    last_uses: BTreeMap<KeyId, SystemTime>,
    counts: BTreeMap<(KeyId, SystemTime), Counted>,
    batches: Batches,
}

struct Counted {
    consumer_id: String,
    counts: UseCounts,
}

/// There is no room.
pub(super) struct Dropped;

/// The beginning of the hour.
pub(super) fn hour_of(time: SystemTime) -> SystemTime {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let into_the_hour = since_1970.as_nanos() % HOUR.as_nanos();
    let into_the_hour = Duration::from_nanos(u64::try_from(into_the_hour).unwrap_or_default());
    SystemTime::UNIX_EPOCH + since_1970.saturating_sub(into_the_hour)
}

/// How long until the next hour begins.
pub(super) fn left_of_hour(time: SystemTime) -> Duration {
    let into_the_hour = time.duration_since(hour_of(time)).unwrap_or_default();
    HOUR.saturating_sub(into_the_hour)
}

impl Pending {
    /// The number of keys whose last use waits.
    pub(super) fn keys(&self) -> usize {
        self.last_uses.len()
    }

    /// The number of last uses and counts that wait.
    pub(super) fn rows(&self) -> usize {
        self.last_uses.len() + self.counts.len()
    }

    pub(super) fn used(&mut self, key_id: KeyId, at: SystemTime) -> Result<(), Dropped> {
        if self.last_uses.len() >= MAX_PENDING && !self.last_uses.contains_key(&key_id) {
            return Err(Dropped);
        }
        let latest = self.last_uses.entry(key_id).or_insert(at);
        *latest = at.max(*latest);
        Ok(())
    }

    /// Takes the counts of `key`, which were counted in `hour`.
    pub(super) fn take_counts(
        &mut self,
        key: &Consumer,
        hour: SystemTime,
    ) -> Result<UseCounts, Dropped> {
        let Some(counters) = key.use_counters() else { return Ok(UseCounts::default()) };
        let [admitted, limited, forbidden, refused, units] = counters.take();
        let counts = UseCounts::new(admitted, limited, forbidden, refused, units);
        self.count(key.key_id(), key.id(), hour, counts).map(|()| counts)
    }

    fn count(
        &mut self,
        key_id: KeyId,
        consumer_id: &str,
        hour: SystemTime,
        counts: UseCounts,
    ) -> Result<(), Dropped> {
        if counts.is_zero() {
            return Ok(());
        }
        let row = (key_id, hour);
        if self.counts.len() >= MAX_PENDING && !self.counts.contains_key(&row) {
            return Err(Dropped);
        }
        let new = || Counted { consumer_id: consumer_id.to_owned(), counts: UseCounts::default() };
        let counted = self.counts.entry(row).or_insert_with(new);
        counted.counts = counted.counts.plus(counts);
        Ok(())
    }

    /// The next batch to write, in the order of keys on every node, so that concurrent batches cannot
    /// deadlock. `None` if nothing waits.
    pub(super) fn next_batch(&mut self) -> Option<UsageBatch> {
        let last_uses = take(&mut self.last_uses, MAX_BATCH, Usage::new);
        let mut batch = UsageBatch::new(last_uses);
        if !self.counts.is_empty()
            && let Some((writer, sequence)) = self.batches.next_id()
        {
            let hour = |(key_id, hour), Counted { consumer_id, counts }| {
                HourlyUse::new(key_id, consumer_id, hour, counts)
            };
            let hours = take(&mut self.counts, MAX_BATCH, hour);
            batch.counted = Some(CountedUses::new(writer, sequence, hours));
        }
        Some(batch).filter(|batch| !batch.is_empty())
    }
}

/// Removes the first `limit` entries.
fn take<K: Ord, V, T>(map: &mut BTreeMap<K, V>, limit: usize, make: impl Fn(K, V) -> T) -> Vec<T> {
    let entries = std::iter::from_fn(|| map.pop_first());
    entries.take(limit).map(|(key, value)| make(key, value)).collect()
}

/// The identities of batches.
#[derive(Default)]
struct Batches {
    writer: Option<[u8; 16]>,
    last: u64,
}

impl Batches {
    /// `None` if there is no randomness for the id of the writer; the counts then wait.
    fn next_id(&mut self) -> Option<([u8; 16], u64)> {
        if self.writer.is_none() {
            let mut writer = [0; 16];
            SystemEntropy.fill(&mut writer).ok()?;
            self.writer = Some(writer);
        }
        self.last = self.last.saturating_add(1);
        Some((self.writer?, self.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn an_hour_begins_with_its_first_second_and_ends_before_the_next() {
        for (time, begin, left) in
            [(0, 0, 3600), (3599, 0, 1), (3600, 3600, 3600), (7201, 7200, 3599)]
        {
            assert_eq!(hour_of(at(time)), at(begin), "{time}");
            assert_eq!(left_of_hour(at(time)), Duration::from_secs(left), "{time}");
        }
        let before_1970 = at(0) - Duration::from_secs(1);
        assert_eq!(hour_of(before_1970), at(0));
        assert!(left_of_hour(before_1970) <= HOUR);
    }

    #[test]
    fn batches_have_a_bounded_number_of_keys_and_growing_numbers() {
        let mut pending = Pending::default();
        let keys = 2 * MAX_BATCH + 1;
        for key in 0..keys {
            let id = KeyId::from_bytes(u128::try_from(key).unwrap().to_be_bytes());
            pending.used(id, at(0)).ok().unwrap();
            let counted =
                Counted { consumer_id: "acme".into(), counts: UseCounts::new(1, 0, 0, 0, 1) };
            pending.counts.insert((id, at(0)), counted);
        }
        let batches: Vec<_> = std::iter::from_fn(|| pending.next_batch()).collect();
        assert_eq!(batches.len(), 3);
        let mut counted = batches.iter().map(|batch| batch.counted.as_ref().unwrap());
        assert!(counted.clone().map(|it| it.sequence).eq(1..=3));
        let writer = counted.next().unwrap().writer;
        assert!(counted.all(|it| it.writer == writer));
        let ids: Vec<_> =
            batches.iter().flat_map(|it| &it.last_uses).map(|used| used.key_id).collect();
        assert!(ids.len() == keys && ids.is_sorted());
        assert!(pending.last_uses.is_empty() && pending.counts.is_empty());
    }

    #[test]
    fn counts_beyond_the_bound_are_dropped() {
        let mut pending = Pending::default();
        let id = |key: usize| KeyId::from_bytes(u128::try_from(key).unwrap().to_be_bytes());
        let count = |pending: &mut Pending, key: usize, hour: u64| {
            let counts = UseCounts::new(1, 0, 0, 0, 1);
            pending.count(id(key), "acme", at(hour * 3600), counts).is_ok()
        };
        for key in 0..MAX_PENDING / 2 {
            assert!(count(&mut pending, key, 0) && count(&mut pending, key, 1));
        }
        assert!(!count(&mut pending, 0, 2) && !count(&mut pending, MAX_PENDING, 0));
        assert!(count(&mut pending, 0, 0), "the row is there");
        assert_eq!(pending.counts.len(), MAX_PENDING);
    }

    #[test]
    fn uses_beyond_the_bound_are_dropped_and_those_of_known_keys_are_not() {
        let mut pending = Pending::default();
        let id = |key: usize| KeyId::from_bytes(u128::try_from(key).unwrap().to_be_bytes());
        for key in 0..MAX_PENDING {
            assert!(pending.used(id(key), at(0)).is_ok());
        }
        assert!(pending.used(id(MAX_PENDING), at(0)).is_err());
        assert!(pending.used(id(0), at(1)).is_ok());
        assert_eq!(pending.keys(), MAX_PENDING);
    }
}

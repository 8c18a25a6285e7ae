//! Buckets in this process's memory.

mod atomic;
mod cell;
mod gcra;
#[cfg(test)]
mod interleaving;
#[cfg(feature = "redis")]
mod mirror;
pub(super) mod nanos;
mod ring;
mod set;
mod state;
mod window;

use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use smallvec::SmallVec;

pub(super) use self::set::BucketSet;
#[cfg(feature = "redis")]
pub(super) use self::state::State;
use self::{
    cell::Cell,
    gcra::Rates,
    nanos::nanos,
    set::{Part, Place},
    state::Spec,
};
use super::{
    CountedPer, RateLimiter, RateLimits,
    measure::Measure,
    port::{Buckets, Subject},
};
use crate::key::digest;

/// Keeps buckets in this process's memory. GCRA buckets are counted by
/// [`governor`](https://docs.rs/governor).
///
/// Suitable for a single process: a fleet of `n` processes admits up to `n` times the quota.
///
/// Buckets that no cached key uses are dropped ten minutes after they are full again: on each
/// worker tick, and whenever the number of subjects has doubled.
pub struct LocalRateLimiter {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

/// With this many, sweeping one shard of a million buckets holds a lock for about a millisecond.
const SHARDS: usize = 64;
const SWEEP_FROM: usize = 64;

#[derive(Default)]
struct Shard {
    cells: HashMap<Name, Arc<Cell>>,
    rates: Rates,
    sweep_at: usize,
}

/// A digest of a subject. With a million subjects, their text would take more memory than
/// everything else.
type Name = [u8; 32];

/// The name of the subject's key or of its consumer.
fn name(subject: &Subject<'_>, counted_per: CountedPer) -> Name {
    let consumer = subject.consumer().as_bytes();
    let class = subject.class().map(str::as_bytes);
    let (kind, class): (&[u8], _) = match class {
        None => (b"", b"".as_slice()),
        Some(class) => (b"class", class),
    };
    match counted_per {
        CountedPer::Key => digest(&[b"key", consumer, &subject.root().to_be_bytes(), kind, class]),
        CountedPer::Consumer => digest(&[b"consumer", consumer, kind, class]),
    }
}

impl LocalRateLimiter {
    /// Creates a limiter without buckets.
    #[must_use]
    pub fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }

    /// The number of keys and consumers whose buckets are in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).cells.len()).sum()
    }

    /// Whether there are no buckets in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buckets of a subject. The key's buckets count per-consumer quotas as well, so that they
    /// are up to date if a quota becomes per-key.
    pub(super) fn set(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> BucketSet {
        let now = nanos(now);
        let mut measures = [Measures::new(), Measures::new()];
        let [of_key, of_consumer] = &mut measures;
        let places = limits.iter().map(|quota| {
            let measure = Measure::of(quota);
            let is_shared = quota.counted_per() == CountedPer::Consumer;
            Place {
                of_key: index_of(of_key, measure),
                of_consumer: is_shared.then(|| index_of(of_consumer, measure)),
            }
        });
        let places = places.collect();
        let [of_key, of_consumer] = measures;
        let of_consumer = (!of_consumer.is_empty())
            .then(|| self.part(&name(subject, CountedPer::Consumer), &of_consumer, now));
        let of_key = self.part(&name(subject, CountedPer::Key), &of_key, now);
        BucketSet::new(of_key, of_consumer, places)
    }

    fn part(&self, name: &Name, measures: &[Measure], now: u64) -> Part {
        // The top bits choose the shard, because the map inside uses the others.
        if measures.is_empty() {
            return Part::join(Arc::new(Cell::new(now)), &[], now);
        }
        let shard = self.hasher.hash_one(name) >> (u64::BITS - SHARDS.trailing_zeros());
        let shard = usize::try_from(shard).ok().and_then(|shard| self.shards.get(shard));
        let (cell, specs) = match shard {
            Some(shard) => {
                let mut shard = lock(shard);
                if shard.cells.len() >= shard.sweep_at {
                    shard.sweep(now);
                }
                let Shard { cells, rates, .. } = &mut *shard;
                // Holding the `Arc` keeps the cell from being swept.
                let cell = cells.entry(*name).or_insert_with(|| Arc::new(Cell::new(now)));
                (Arc::clone(cell), specs(measures, rates))
            }
            None => (Arc::new(Cell::new(now)), specs(measures, &mut Rates::default())),
        };
        Part::join(cell, &specs, now)
    }
}

/// Room for the quotas of most keys.
type Measures = SmallVec<[Measure; 4]>;

fn specs(measures: &[Measure], rates: &mut Rates) -> SmallVec<[Spec; 4]> {
    measures.iter().map(|measure| Spec::new(*measure, rates)).collect()
}

/// The index of `measure`, which is appended if missing.
fn index_of(measures: &mut Measures, measure: Measure) -> u16 {
    let at = measures.iter().position(|known| *known == measure).unwrap_or_else(|| {
        measures.push(measure);
        measures.len() - 1
    });
    u16::try_from(at).unwrap_or(u16::MAX)
}

impl Default for LocalRateLimiter {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LocalRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRateLimiter").field("buckets", &self.len()).finish()
    }
}

impl RateLimiter for LocalRateLimiter {
    fn buckets(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn Buckets> {
        Arc::new(self.set(subject, limits, now))
    }

    fn sweep(&self, now: Duration) {
        for shard in &self.shards {
            lock(shard).sweep(nanos(now));
        }
    }
}

impl Shard {
    fn sweep(&mut self, now: u64) {
        self.cells.retain(|_, cell| {
            let is_in_use = Arc::strong_count(cell) > 1;
            let mut cell = cell.lock();
            if is_in_use {
                cell.tidy_up(now);
            }
            is_in_use || !cell.is_forgettable(now)
        });
        self.rates.sweep();
        self.sweep_at = (self.cells.len() * 2).max(SWEEP_FROM);
        if self.cells.capacity() > self.sweep_at * 2 {
            self.cells.shrink_to(self.sweep_at);
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

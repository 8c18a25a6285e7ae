//! Buckets in this process's memory.

mod atomic;
mod fill;
#[cfg(feature = "redis")]
mod follow;
mod gcra;
pub(super) mod nanos;
mod ring;
mod window;

#[cfg(feature = "redis")]
use std::sync::atomic::AtomicBool;
use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use self::{
    fill::Fill,
    gcra::{Gcra, Rates},
    nanos::nanos,
    window::Window,
};
use super::{Algorithm, BucketId, Buckets, Check, Decision, Decisions, Quota, RateLimiter};
use crate::key::digest;

/// Buckets in this process's memory. Those that refill evenly are counted by
/// [`governor`](https://docs.rs/governor).
///
/// Right for one process. A fleet of `n` processes admits up to `n` times the quota.
///
/// Buckets that are full again and belong to no cached key are forgotten, which nobody can tell
/// from keeping them: on each worker tick, and whenever the number of buckets has doubled.
pub struct LocalRateLimiter {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

/// Enough that sweeping one of a million buckets holds a lock for about a millisecond.
const SHARDS: usize = 64;
const SWEEP_FROM: usize = 64;

#[derive(Default)]
struct Shard {
    buckets: HashMap<Name, Arc<Bucket>>,
    rates: Rates,
    sweep_at: usize,
}

/// A digest of a [`BucketId`]: for a million buckets, whole ones would take more than all else.
type Name = [u8; 32];

fn name(id: &BucketId) -> Name {
    let (consumer, policy) = (id.consumer().as_bytes(), id.policy().as_bytes());
    match id.key() {
        Some(root) => digest(&[b"key", consumer, &root.to_be_bytes(), policy]),
        None => digest(&[b"consumer", consumer, policy]),
    }
}

impl LocalRateLimiter {
    /// A limiter without buckets.
    #[must_use]
    pub fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }

    /// The number of buckets in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).buckets.len()).sum()
    }

    /// Whether there are no buckets in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bucket(&self, id: &BucketId, quota: &Quota, now: u64) -> Arc<Bucket> {
        let name = name(id);
        // The top bits choose the shard, as the map inside uses the others.
        let shard = self.hasher.hash_one(name) >> (u64::BITS - SHARDS.trailing_zeros());
        let shard = usize::try_from(shard).ok().and_then(|shard| self.shards.get(shard));
        let Some(shard) = shard else {
            return Arc::new(Bucket::new(quota, &mut Rates::default(), Fill::FULL, now));
        };
        let mut shard = lock(shard);
        if shard.buckets.len() >= shard.sweep_at {
            shard.sweep(now);
        }
        let Shard { buckets, rates, .. } = &mut *shard;
        match buckets.get(&name) {
            Some(bucket) if bucket.quota() == quota => Arc::clone(bucket),
            known => {
                let bucket = Arc::new(match known {
                    Some(known) => known.under(quota, rates, now),
                    None => Bucket::new(quota, rates, Fill::FULL, now),
                });
                buckets.insert(name, Arc::clone(&bucket));
                bucket
            }
        }
    }
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
    fn buckets(&self, quotas: &[(BucketId, Quota)], now: Duration) -> Arc<dyn Buckets> {
        let now = nanos(now);
        match quotas {
            [(id, quota)] => self.bucket(id, quota, now),
            quotas => {
                let bucket = |(id, quota): &(BucketId, Quota)| self.bucket(id, quota, now);
                Arc::new(Several(quotas.iter().map(bucket).collect()))
            }
        }
    }

    fn sweep(&self, now: Duration) {
        for shard in &self.shards {
            lock(shard).sweep(nanos(now));
        }
    }
}

impl Shard {
    fn sweep(&mut self, now: u64) {
        self.buckets.retain(|_, bucket| bucket.is_in_use() || !bucket.fill(now).is_full());
        self.rates.sweep();
        self.sweep_at = (self.buckets.len() * 2).max(SWEEP_FROM);
        if self.buckets.capacity() > self.sweep_at * 2 {
            self.buckets.shrink_to(self.sweep_at);
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The live state of one quota.
pub(super) struct Bucket {
    counter: Counter,
    /// Whether it has gone on by itself since it last heard of the shared bucket that it follows.
    #[cfg(feature = "redis")]
    went_on: Arc<AtomicBool>,
}

enum Counter {
    Gcra(Gcra),
    Window(Window),
}

impl Bucket {
    fn new(quota: &Quota, rates: &mut Rates, fill: Fill, now: u64) -> Self {
        let counter = match quota.algorithm() {
            Algorithm::Gcra => Counter::Gcra(Gcra::new(quota, rates, fill, now)),
            Algorithm::SlidingWindow => Counter::Window(Window::new(quota, fill, now)),
        };
        Self {
            counter,
            #[cfg(feature = "redis")]
            went_on: Arc::default(),
        }
    }

    /// The bucket that goes on where this one is, under another quota. Both may be in use for a
    /// while, and share what they can.
    fn under(&self, quota: &Quota, rates: &mut Rates, now: u64) -> Self {
        let counter = match (&self.counter, quota.algorithm()) {
            (Counter::Gcra(gcra), Algorithm::Gcra) => Counter::Gcra(gcra.under(quota, rates, now)),
            (Counter::Window(window), Algorithm::SlidingWindow) => {
                Counter::Window(window.under(quota, now))
            }
            _ => Self::new(quota, rates, self.fill(now), now).counter,
        };
        Self {
            counter,
            #[cfg(feature = "redis")]
            went_on: Arc::clone(&self.went_on),
        }
    }

    fn quota(&self) -> &Quota {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.quota(),
            Counter::Window(window) => window.quota(),
        }
    }

    /// Says where it was booked, too, for [`undo`](Self::undo).
    fn take_one(&self, units: NonZeroU32, now: u64) -> (Decision, u64) {
        match &self.counter {
            Counter::Gcra(gcra) => (gcra.take(units, now), 0),
            Counter::Window(window) => window.take(units, now),
        }
    }

    /// Takes back what was taken just now.
    fn undo(&self, units: NonZeroU32, booked: u64) {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.give_back(units),
            Counter::Window(window) => window.undo(units, booked),
        }
    }

    fn peek_one(&self, units: NonZeroU32, now: u64) -> Decision {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.peek(units, now),
            Counter::Window(window) => window.peek(units, now),
        }
    }

    fn charge_one(&self, units: NonZeroU32, now: u64) {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.charge(units, now),
            Counter::Window(window) => window.charge(units, now),
        }
    }

    fn give_back_one(&self, units: NonZeroU32, now: u64) {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.give_back(units),
            Counter::Window(window) => window.give_back(units, now),
        }
    }

    fn fill(&self, now: u64) -> Fill {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.fill(now),
            Counter::Window(window) => window.fill(now),
        }
    }

    /// Whether somebody holds this bucket, or one of an earlier quota that shares its state.
    fn is_in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
            || match &self.counter {
                Counter::Gcra(gcra) => gcra.is_shared(),
                Counter::Window(window) => window.is_shared(),
            }
    }
}

impl Buckets for Bucket {
    fn take(&self, units: NonZeroU32, now: Duration) -> Check {
        let (decision, _) = self.take_one(units, nanos(now));
        Check::Ready(decision.into())
    }

    fn peek(&self, now: Duration) -> Check {
        Check::Ready(self.peek_one(NonZeroU32::MIN, nanos(now)).into())
    }

    fn charge(&self, units: NonZeroU32, now: Duration) {
        self.charge_one(units, nanos(now));
    }

    fn give_back(&self, units: NonZeroU32, now: Duration) {
        self.give_back_one(units, nanos(now));
    }
}

/// The buckets of a key with several quotas.
pub(super) struct Several(Box<[Arc<Bucket>]>);

impl Several {
    fn peek_all(&self, units: NonZeroU32, now: u64) -> Decisions {
        self.0.iter().map(|bucket| bucket.peek_one(units, now)).collect()
    }
}

impl Buckets for Several {
    /// Looks first: a request that does not fit is in nobody's way. Only one that is overtaken between
    /// looking and taking holds for a moment what it gives back, and what another one may miss.
    fn take(&self, units: NonZeroU32, now: Duration) -> Check {
        let now = nanos(now);
        let mut decisions = self.peek_all(units, now);
        if decisions.is_admitted() && !take_all(&self.0, &mut decisions, units, now) {
            // Somebody else was faster. What was taken of the others has been given back.
            for (bucket, decision) in self.0.iter().zip(&mut *decisions) {
                if decision.is_admitted() {
                    *decision = bucket.peek_one(units, now);
                }
            }
        }
        Check::Ready(decisions)
    }

    fn peek(&self, now: Duration) -> Check {
        Check::Ready(self.peek_all(NonZeroU32::MIN, nanos(now)))
    }

    fn charge(&self, units: NonZeroU32, now: Duration) {
        self.0.iter().for_each(|bucket| bucket.charge_one(units, nanos(now)));
    }

    fn give_back(&self, units: NonZeroU32, now: Duration) {
        self.0.iter().for_each(|bucket| bucket.give_back_one(units, nanos(now)));
    }
}

/// Takes of the first, then of the rest; of neither if the rest does not have it.
fn take_all(
    buckets: &[Arc<Bucket>],
    decisions: &mut [Decision],
    units: NonZeroU32,
    now: u64,
) -> bool {
    let (Some((bucket, buckets)), Some((decision, decisions))) =
        (buckets.split_first(), decisions.split_first_mut())
    else {
        return true;
    };
    let (taken, booked) = bucket.take_one(units, now);
    *decision = taken;
    if !taken.is_admitted() || take_all(buckets, decisions, units, now) {
        return taken.is_admitted();
    }
    bucket.undo(units, booked);
    false
}

#[cfg(test)]
mod tests;

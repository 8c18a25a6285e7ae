use std::{
    fmt,
    num::NonZeroU32,
    ops::ControlFlow,
    sync::{Arc, OnceLock, Weak, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    rate_limit::{Bucket, BucketId, Check, Decision, Quota, RateLimiter, RateLimits},
    record::{Consumer, KeyRecord, KeyStatus, Retirement, Validity, Watch},
};

/// What the cache holds of a key: facts, and the live buckets. No verdicts.
pub(super) struct Entry {
    pub(super) consumer: Consumer,
    /// [`Clock::monotonic`](crate::clock::Clock::monotonic) when the store was asked.
    pub(super) loaded_at: Duration,
    /// Of the cache, when the store was asked.
    pub(super) generation: Generation,
    /// When its use was last reported; see [`usage`](super::usage).
    pub(super) touched_at: AtomicU64,
    validity: Validity,
    /// In a box, as few keys have it.
    retirement: Option<Box<Retirement>>,
    read_at: SystemTime,
    limits: RateLimits,
    buckets: Box<[Arc<dyn Bucket>]>,
    policy: OnceLock<Bytes>,
}

/// Counts how often what was known of all keys, or of those that do not exist, ceased to hold.
#[derive(Clone, Copy, Default)]
pub(super) struct Generation {
    pub(super) present: u64,
    pub(super) absent: u64,
}

impl Entry {
    pub(super) fn new(
        record: KeyRecord,
        default_limits: &RateLimits,
        limiter: &dyn RateLimiter,
        watch: Weak<dyn Watch>,
        loaded_at: Duration,
        answered_at: Duration,
        generation: Generation,
    ) -> Self {
        let limits = record.rate_limits.clone().unwrap_or_else(|| default_limits.clone());
        let bucket = |quota: &Quota| {
            let id = BucketId::new(record.root_id.as_u128(), quota.name());
            limiter.bucket(&id, quota, loaded_at)
        };
        Self {
            loaded_at,
            generation,
            touched_at: AtomicU64::new(0),
            // The store read its clock at some time in between. Reckoned from the beginning of that,
            // an end comes early rather than late; so would a beginning.
            validity: record
                .validity()
                .begin_later(record.read_at, answered_at.saturating_sub(loaded_at)),
            retirement: record.retirement().map(Box::new),
            read_at: record.read_at,
            buckets: limits.iter().map(bucket).collect(),
            limits,
            policy: OnceLock::new(),
            consumer: Consumer::watched_by(record, watch, loaded_at),
        }
    }

    /// Whether the key may be used at `now` of the monotonic clock, reckoned from the store's
    /// clock: neither a wrong nor a stepping wall clock of this node matters.
    pub(super) fn status(&self, now: Duration) -> KeyStatus {
        match self.read_at.checked_add(now.saturating_sub(self.loaded_at)) {
            Some(now) => self.validity.status(now),
            // Beyond the end of time every deadline has passed.
            None => KeyStatus::Expired,
        }
    }

    pub(super) fn retirement(&self) -> Option<Retirement> {
        self.retirement.as_deref().copied()
    }

    /// How long until the key expires; `None` if it never does.
    pub(super) fn expires_in(&self, now: Duration) -> Option<Duration> {
        let lifetime = self.validity.expires_at?.duration_since(self.read_at);
        Some(lifetime.unwrap_or_default().saturating_sub(now.saturating_sub(self.loaded_at)))
    }
}

/// What a request takes of each quota.
#[derive(Clone, Copy, Debug)]
pub(super) enum Charge {
    One,
    /// It is let in even where nothing is left.
    Nothing,
}

/// Where a key stands with its quotas after a request: shortest window first, up to the one that
/// turned the request away.
#[derive(Clone)]
pub struct Standing {
    entry: Arc<Entry>,
    decisions: SmallVec<[Decision; 1]>,
}

impl Standing {
    pub(super) fn new(entry: Arc<Entry>) -> Self {
        Self { entry, decisions: SmallVec::new() }
    }

    /// Asks the next bucket; `None` when all were asked.
    pub(super) fn ask_next(&self, charge: Charge, now: Duration) -> Option<Check> {
        let bucket = self.entry.buckets.get(self.decisions.len())?;
        Some(match charge {
            Charge::One => bucket.take(NonZeroU32::MIN, now),
            Charge::Nothing => bucket.peek(now),
        })
    }

    /// Breaks where the bucket has turned the request away.
    pub(super) fn push(&mut self, charge: Charge, decision: Decision) -> ControlFlow<()> {
        self.decisions.push(decision);
        match charge {
            Charge::One if !decision.is_admitted() => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    pub(super) fn consumer(&self) -> &Consumer {
        &self.entry.consumer
    }

    /// Each quota that was asked, and what it said.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Quota, Decision)> {
        self.entry.limits.iter().zip(self.decisions.iter().copied())
    }

    /// Whether the key was rotated and is on its way out.
    #[must_use]
    pub fn retirement(&self) -> Option<Retirement> {
        self.entry.retirement()
    }

    /// All quotas of the key.
    #[must_use]
    pub fn limits(&self) -> &RateLimits {
        &self.entry.limits
    }

    /// The quotas that turned the request away.
    pub fn violated(&self) -> impl Iterator<Item = &Quota> {
        self.iter().filter(|(_, decision)| !decision.is_admitted()).map(|(quota, _)| quota)
    }

    /// How long until another request would fit the quotas that were asked. Not only the one that
    /// turned a request away counts: those that let it through may have nothing left.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let used_up = self.decisions.iter().filter(|decision| decision.remaining() == 0);
        used_up.map(Decision::next_unit_in).max().unwrap_or_default()
    }

    /// A text made of the key's quotas, made once for as long as the key is cached.
    pub(crate) fn policy(&self, make: impl FnOnce(&RateLimits) -> Bytes) -> Bytes {
        self.entry.policy.get_or_init(|| make(&self.entry.limits)).clone()
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

//! The buckets of a key in Redis, with a local copy.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use super::{
    connection::{Connection, Failure},
    lease::Lease,
    outage_policy::OutagePolicy,
    script::{Action, Call, Counted, Known, Reply},
};
use crate::{
    rate_limit::{
        Decision,
        local::{BucketSet, State, nanos::nanos},
        port::{Buckets, Check, Decisions},
    },
    trace,
};

pub(super) struct SharedBuckets(Arc<Shared>);

pub(super) struct Shared {
    pub(super) link: Arc<Connection>,
    pub(super) counted: Arc<Counted>,
    /// This node's copies of the buckets. They mirror the shared ones, and take over during an
    /// outage.
    pub(super) own: BucketSet,
    pub(super) unavailable: OutagePolicy,
    pub(super) nodes: NonZeroU32,
    pub(super) lease: Option<Lease>,
    /// Whether Redis uses the caller's clock, as in tests.
    pub(super) has_callers_time: bool,
    pub(super) is_reported: AtomicBool,
}

impl SharedBuckets {
    pub(super) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// Adjusts the buckets in Redis in a task of its own, because the caller does not wait; locally
    /// if that fails.
    fn settle(&self, action: Action, now: Duration) {
        let Ok(runtime) = Handle::try_current() else { return self.0.settle_alone(action, now) };
        let shared = Arc::clone(&self.0);
        runtime.spawn(async move { shared.settle(action, now).await });
    }
}

impl Buckets for SharedBuckets {
    fn take(&self, units: NonZeroU32, now: Duration) -> Check {
        if let Some(decisions) = self.0.at_hand(units, now) {
            return Check::Ready(decisions);
        }
        if !self.0.is_asked(now) {
            return Check::Ready(self.0.take_alone(units, now));
        }
        let shared = Arc::clone(&self.0);
        Check::Pending(Box::pin(async move { shared.take(units, now).await }))
    }

    fn peek(&self, now: Duration) -> Check {
        if !self.0.is_asked(now) {
            return Check::Ready(self.0.peek_alone(now));
        }
        let shared = Arc::clone(&self.0);
        Check::Pending(Box::pin(async move { shared.peek(now).await }))
    }

    fn charge(&self, units: NonZeroU32, now: Duration) {
        self.settle(Action::Charge(units), now);
    }

    fn give_back(&self, units: NonZeroU32, now: Duration) {
        self.settle(Action::GiveBack(units), now);
    }
}

impl Shared {
    /// Whether to ask Redis. Calls with too many quotas are not made, because they would delay
    /// others.
    fn is_asked(&self, now: Duration) -> bool {
        self.counted.is_small() && self.link.is_up(now)
    }

    /// Decides without asking, if the lease suffices or the quota is known to be exhausted.
    fn at_hand(&self, units: NonZeroU32, now: Duration) -> Option<Decisions> {
        let lease = self.lease.as_ref()?;
        if let Some(left) = lease.take(units, now) {
            let own = self.own.look(NonZeroU32::MIN, now);
            return Some(own.iter().map(|own| admit(*own, left)).collect());
        }
        if !lease.is_none_left(now) {
            return None;
        }
        Some(self.own.look(units, now)).filter(|decisions| !decisions.is_admitted())
    }

    async fn take(self: &Arc<Self>, units: NonZeroU32, now: Duration) -> Decisions {
        let decided = match &self.lease {
            Some(lease) if lease.is_worthwhile() => {
                let slice = self.take_slice(lease, units, now);
                timeout(self.link.deadline(), slice).await.ok().flatten()
            }
            _ => self.take_shared(units, now).await,
        };
        decided.unwrap_or_else(|| self.take_alone(units, now))
    }

    async fn take_shared(&self, units: NonZeroU32, now: Duration) -> Option<Decisions> {
        let call = self.call(Action::Take { units, extra: 0, returned: 0 }, now);
        let reply = self.ask(&call, now).await?;
        self.remember(&reply, now);
        Some(self.decisions(&reply, units, reply.taken))
    }

    /// Only one request at a time asks for a slice; the others wait for its result. It asks in a
    /// task of its own, so that a cancelled request loses no slice.
    async fn take_slice(
        self: &Arc<Self>,
        lease: &Lease,
        units: NonZeroU32,
        now: Duration,
    ) -> Option<Decisions> {
        let turn = Arc::clone(&lease.turn).lock_owned().await;
        if let Some(decisions) = self.at_hand(units, now) {
            return Some(decisions);
        }
        let (shared, (decided, decision)) = (Arc::clone(self), oneshot::channel());
        tokio::spawn(async move {
            let Some(lease) = &shared.lease else { return };
            let (decisions, slice) = shared.renew(lease, units, now).await;
            drop(turn);
            // The request may have been cancelled.
            let _ = decided.send(decisions);
            if let Some(slice) = slice {
                sleep_until(Instant::now() + lease.lifetime()).await;
                shared.put_back(lease, slice, now + lease.lifetime()).await;
            }
        });
        decision.await.ok().flatten()
    }

    /// The decisions, and the token of the new slice, if any.
    async fn renew(
        &self,
        lease: &Lease,
        units: NonZeroU32,
        now: Duration,
    ) -> (Option<Decisions>, Option<u64>) {
        let (returned, extra) = lease.end(now);
        let call = self.call(Action::Take { units, extra, returned }, now);
        let Some(reply) = self.ask(&call, now).await else { return (None, None) };
        self.remember(&reply, now);
        let mut decisions = self.decisions(&reply, units, reply.taken);
        if !reply.taken {
            return (Some(decisions), None);
        }
        for decision in decisions.iter_mut() {
            *decision = admit(*decision, reply.extra);
        }
        let slice = (reply.extra > 0).then(|| lease.begin(reply.extra, now));
        (Some(decisions), slice)
    }

    /// Remembers in the lease that the quota is exhausted.
    fn remember(&self, reply: &Reply, now: Duration) {
        let Some(lease) = self.lease.as_ref().filter(|_| !reply.taken) else { return };
        let one = self.decisions(reply, NonZeroU32::MIN, false);
        let waits = one.iter().filter(|decision| !decision.is_admitted());
        if let Some(wait) = waits.map(Decision::next_unit_in).max() {
            lease.none_for(wait, now);
        }
    }

    async fn put_back(&self, lease: &Lease, slice: u64, now: Duration) {
        if let Some(units) = lease.end_of(slice) {
            self.settle(Action::GiveBack(units), now).await;
        }
    }

    async fn settle(&self, action: Action, now: Duration) {
        let is_asked = self.is_asked(now);
        if !is_asked || self.ask(&self.call(action, now), now).await.is_none() {
            self.settle_alone(action, now);
        }
    }

    async fn peek(&self, now: Duration) -> Decisions {
        let Some(reply) = self.ask(&self.call(Action::Peek, now), now).await else {
            return self.peek_alone(now);
        };
        let decisions = self.decisions(&reply, NonZeroU32::MIN, false);
        match self.lease.as_ref().map_or(0, |lease| lease.left(now)) {
            0 => decisions,
            held => decisions.iter().map(|decision| admit(*decision, held)).collect(),
        }
    }

    /// Asks Redis, and updates the local copies.
    async fn ask(&self, call: &Call, now: Duration) -> Option<Reply> {
        match self.link.ask(call, now).await {
            Ok(reply) => {
                for (at, own) in self.own.iter().enumerate() {
                    if let Some(level) = reply.level(&self.counted, at) {
                        own.follow(&level, now);
                    }
                }
                Some(reply)
            }
            Err(failure) => {
                self.report(&failure);
                None
            }
        }
    }

    fn call(&self, action: Action, now: Duration) -> Call {
        let known = |own: &State| Known { level: own.level(now), diverged: own.diverged() };
        Call {
            action,
            counted: Arc::clone(&self.counted),
            known: self.own.iter().map(known).collect(),
            now: self.has_callers_time.then(|| nanos(now)),
        }
    }

    fn decisions(&self, reply: &Reply, units: NonZeroU32, taken: bool) -> Decisions {
        if !taken {
            return reply.decisions(&self.counted, units).collect();
        }
        let left = reply.decisions(&self.counted, NonZeroU32::MIN);
        left.map(|left| Decision::admit(left.remaining(), left.next_unit_in())).collect()
    }

    fn report(&self, failure: &Failure) {
        if failure.is_of_one_subject() && !self.is_reported.swap(true, Ordering::Relaxed) {
            trace::warn!(
                keys = ?self.counted.cells.iter().map(|cell| &*cell.key).collect::<Vec<_>>(),
                %failure,
                "rate limit key in Redis unreadable; outage policy applies"
            );
        }
    }
}

/// Admits, with `more` units beside those that the bucket has left.
pub(super) fn admit(bucket: Decision, more: u32) -> Decision {
    Decision::admit(bucket.remaining().saturating_add(more), bucket.next_unit_in())
}

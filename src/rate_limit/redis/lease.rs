use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Mutex;

use super::lease_config::Leases;
use crate::{clock::nanos, rate_limit::Quota};

/// Units taken in advance, for some or all quotas of a key together.
///
/// The units and their expiry are one atomic number, so takes are lock-free.
pub(super) struct Lease {
    /// The expiry, in milliseconds of the monotonic clock, and the units left.
    held: AtomicU64,
    /// The initial number of units.
    size: AtomicU32,
    /// The number of units to request next.
    wanted: AtomicU32,
    most: u32,
    lifetime: Duration,
    /// Until when no units are available, in nanoseconds of the monotonic clock.
    none_until: AtomicU64,
    /// Held by the one request that asks for more.
    pub(super) turn: Arc<Mutex<()>>,
}

const UNIT_BITS: u32 = 24;
const MOST_UNITS: u32 = (1 << UNIT_BITS) - 1;
/// At most this fraction of the burst, so that several nodes leave something for each other.
const PART: u32 = 8;

impl Lease {
    pub(super) fn of<'q>(quotas: impl Iterator<Item = &'q Quota>, leases: &Leases) -> Self {
        let fits = quotas.map(|quota| quota.burst_size().get()).min().unwrap_or_default();
        Self {
            held: AtomicU64::new(0),
            size: AtomicU32::new(0),
            wanted: AtomicU32::new(1),
            most: (fits / PART).min(leases.most).min(MOST_UNITS),
            lifetime: leases.lifetime,
            none_until: AtomicU64::new(0),
            turn: Arc::default(),
        }
    }

    /// Takes `units` and returns how many are left; `None` if there are too few.
    pub(super) fn take(&self, units: NonZeroU32, now: Duration) -> Option<u32> {
        let taken = |held: u64| {
            let (until, left) = unpack(held);
            let left = left.checked_sub(units.get()).filter(|_| millis(now) < until)?;
            Some(pack(until, left))
        };
        let before = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).ok()?;
        Some(unpack(before).1 - units.get())
    }

    /// The units left.
    pub(super) fn left(&self, now: Duration) -> u32 {
        let (until, left) = unpack(self.held.load(Ordering::Acquire));
        if millis(now) < until { left } else { 0 }
    }

    /// Starts a lease of `units`. Returns the token to [end](Self::end_of) it.
    pub(super) fn begin(&self, units: u32, now: Duration) -> u64 {
        let until = millis(now + self.lifetime);
        self.size.store(units, Ordering::Relaxed);
        self.held.store(pack(until, units.min(MOST_UNITS)), Ordering::Release);
        until
    }

    /// Ends the lease before the next one. Returns the unused units, and how many to request: twice
    /// the size if the lease ran out early, otherwise as many as were used.
    pub(super) fn end(&self, now: Duration) -> (u32, u32) {
        let (until, left) = unpack(self.held.swap(0, Ordering::AcqRel));
        if millis(now) < until {
            let size = self.size.load(Ordering::Relaxed);
            self.wanted.fetch_max(size.saturating_mul(2), Ordering::Relaxed);
        } else if until > 0 {
            self.lasted(left);
        }
        (left, self.wanted.load(Ordering::Relaxed).min(self.most))
    }

    /// Ends the lease with this token, unless another has started. Returns the unused units.
    pub(super) fn end_of(&self, until: u64) -> Option<NonZeroU32> {
        let ended = |held| (unpack(held).0 == until).then_some(0);
        let held = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, ended).ok()?;
        let left = unpack(held).1;
        self.lasted(left);
        NonZeroU32::new(left)
    }

    fn lasted(&self, left: u32) {
        let used = self.size.load(Ordering::Relaxed).saturating_sub(left);
        self.wanted.store(used.max(1), Ordering::Relaxed);
    }

    pub(super) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Whether the quotas are large enough for a slice.
    pub(super) fn is_worthwhile(&self) -> bool {
        self.most > 0
    }

    /// Remembers that no units are available, for at most one lifetime: then unused units of other
    /// nodes are back.
    pub(super) fn none_for(&self, wait: Duration, now: Duration) {
        let until = now.saturating_add(wait.min(self.lifetime));
        self.none_until.store(nanos(until), Ordering::Relaxed);
    }

    /// Whether it is known that no units are available.
    pub(super) fn is_none_left(&self, now: Duration) -> bool {
        nanos(now) < self.none_until.load(Ordering::Relaxed)
    }
}

fn pack(until: u64, units: u32) -> u64 {
    until << UNIT_BITS | u64::from(units)
}

fn unpack(held: u64) -> (u64, u32) {
    let units = held & u64::from(MOST_UNITS);
    (held >> UNIT_BITS, u32::try_from(units).unwrap_or_default())
}

/// 40 bits, which last for 34 years.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX) & (u64::MAX >> UNIT_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);
    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn lease(burst: u32) -> Lease {
        let quota = Quota::per_second(burst).unwrap();
        Lease::of([&quota].into_iter(), &Leases::default())
    }

    #[test]
    fn nothing_is_held_before_it_begins_or_after_it_ended() {
        let lease = lease(800);
        assert_eq!(lease.take(ONE, START), None);
        lease.begin(2, START);
        assert_eq!(lease.take(ONE, START), Some(1));
        let end = START + lease.lifetime();
        assert_eq!(lease.take(ONE, end), None);
        assert_eq!(lease.take(ONE, end - Duration::from_millis(1)), Some(0));
        assert_eq!(lease.take(ONE, START), None);
    }

    #[test]
    fn slices_grow_with_demand_up_to_an_eighth_of_the_burst_and_shrink_with_it() {
        let lease = lease(800);
        let mut sizes = Vec::new();
        for _ in 0..9 {
            let (returned, extra) = lease.end(START);
            assert_eq!(returned, 0);
            sizes.push(extra);
            lease.begin(extra, START);
            while lease.take(ONE, START).is_some() {}
        }
        assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64, 100, 100]);

        let until = lease.begin(100, START);
        for _ in 0..7 {
            lease.take(ONE, START);
        }
        assert_eq!(lease.end_of(until).map(NonZeroU32::get), Some(93));
        assert_eq!(lease.end(START + lease.lifetime()), (0, 7));
    }

    #[test]
    fn what_is_left_is_returned_once() {
        let lease = lease(800);
        let until = lease.begin(10, START);
        assert_eq!(lease.end(START).0, 10);
        assert_eq!(lease.end_of(until), None);
        let until = lease.begin(10, START);
        assert_eq!(lease.end_of(until).map(NonZeroU32::get), Some(10));
        assert_eq!(lease.end(START).0, 0);
    }

    #[test]
    fn small_quotas_are_never_taken_in_advance() {
        let lease = lease(7);
        assert!(!lease.is_worthwhile());
        assert_eq!(lease.end(START), (0, 0));
    }

    #[test]
    fn that_nothing_is_left_is_remembered_until_there_may_be_something() {
        let lease = lease(800);
        assert!(!lease.is_none_left(START));
        lease.none_for(Duration::from_millis(5), START);
        assert!(lease.is_none_left(START + Duration::from_nanos(4_999_999)));
        assert!(!lease.is_none_left(START + Duration::from_millis(5)));
        lease.none_for(Duration::MAX, START);
        assert!(!lease.is_none_left(START + lease.lifetime()));
    }
}

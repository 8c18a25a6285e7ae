use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    cell::{Cell, Locked, NEVER, States, both},
    nanos::nanos,
    state::{Spec, State},
};
use crate::rate_limit::{
    Decision,
    port::{Buckets, Check, Decisions},
};

/// The buckets of a key: its own, and those shared with the other keys of its consumer.
pub(in crate::rate_limit) struct BucketSet {
    of_key: Part,
    of_consumer: Option<Part>,
    places: SmallVec<[Place; 2]>,
}

/// The position of a quota's state.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) of_key: u16,
    pub(super) of_consumer: Option<u16>,
}

/// The states in a cell that the quotas of a key use.
pub(super) struct Part {
    cell: Arc<Cell>,
    pub(super) states: States,
    /// The epoch of the cell in which `states` are all its states.
    alone: AtomicU32,
}

/// Room for the quotas of most keys.
type Few<T> = SmallVec<[T; 8]>;

impl Part {
    pub(super) fn join(cell: Arc<Cell>, specs: &[Spec], now: u64) -> Self {
        let mut locked = cell.lock();
        let states = locked.join(specs, now);
        let alone = AtomicU32::new(locked.alone(&states, now));
        drop(locked);
        Self { cell, states, alone }
    }

    /// The epoch, if `states` are all states of the cell in it.
    fn alone(&self) -> Option<u32> {
        let alone = self.alone.load(Ordering::Relaxed);
        (alone != NEVER && self.cell.epoch() == alone).then_some(alone)
    }

    fn is_still(&self, epoch: u32) -> bool {
        self.cell.epoch() == epoch
    }

    fn lock(&self, now: u64) -> Locked<'_> {
        let mut locked = self.cell.lock();
        locked.settle(now);
        locked
    }

    fn unlock(&self, locked: &Locked<'_>, now: u64) {
        self.alone.store(locked.alone(&self.states, now), Ordering::Relaxed);
    }
}

impl BucketSet {
    pub(super) fn new(
        of_key: Part,
        of_consumer: Option<Part>,
        places: SmallVec<[Place; 2]>,
    ) -> Self {
        Self { of_key, of_consumer, places }
    }

    /// The state, if only one counts.
    fn only(&self) -> Option<(&State, u32)> {
        match (&*self.of_key.states, &self.of_consumer, &*self.places) {
            ([state], None, [_]) => Some((state, self.of_key.alone()?)),
            _ => None,
        }
    }

    /// The epochs in which the states of this set are all states of their cells.
    fn alone(&self) -> Option<(u32, u32)> {
        let of_key = self.of_key.alone()?;
        let of_consumer = match &self.of_consumer {
            Some(part) => part.alone()?,
            None => NEVER,
        };
        Some((of_key, of_consumer))
    }

    fn is_still(&self, (of_key, of_consumer): (u32, u32)) -> bool {
        self.of_key.is_still(of_key)
            && self.of_consumer.as_ref().is_none_or(|part| part.is_still(of_consumer))
    }

    /// Each state once; the consumer's first, because they deny more often.
    fn states(&self) -> impl Iterator<Item = &State> {
        let of_consumer = self.of_consumer.iter().flat_map(|part| part.states.iter());
        of_consumer.chain(self.of_key.states.iter()).map(|state| &**state)
    }

    /// The decision of each quota, from those of its states.
    fn decisions(&self, of: impl Fn(&Part, usize) -> Option<Decision>) -> Decisions {
        let decide = |place: &Place| {
            let of_key = of(&self.of_key, place.of_key.into());
            let of_consumer = match (&self.of_consumer, place.of_consumer) {
                (Some(part), Some(at)) => of(part, at.into()),
                _ => None,
            };
            match (of_key, of_consumer) {
                (Some(of_key), Some(of_consumer)) => both(of_consumer, of_key),
                (Some(decision), None) | (None, Some(decision)) => decision,
                // Unreachable by construction.
                (None, None) => Decision::deny(Duration::MAX),
            }
        };
        self.places.iter().map(decide).collect()
    }

    fn peek_alone(&self, units: NonZeroU32, now: u64) -> Decisions {
        self.decisions(|part, at| Some(part.states.get(at)?.peek(units, now)))
    }

    pub(super) fn peek_all(&self, units: NonZeroU32, now: u64) -> Decisions {
        if self.alone().is_some() {
            return self.peek_alone(units, now);
        }
        self.locked(now, |locked| self.look_locked(locked, units, now))
    }

    pub(super) fn take_all(&self, units: NonZeroU32, now: u64) -> Decisions {
        if let Some((state, epoch)) = self.only() {
            let (decision, booked) = state.take(units, now);
            if !decision.is_admitted() || self.of_key.is_still(epoch) {
                return decision.into();
            }
            state.undo(units, booked);
        } else if let Some(epochs) = self.alone() {
            loop {
                if self.states().all(|state| state.peek(units, now).is_admitted()) {
                    match self.take_each(units, now) {
                        Some(taken) if self.is_still(epochs) => return self.taken(&taken),
                        Some(taken) => {
                            self.undo(&taken, units);
                            break;
                        }
                        // Other requests were faster.
                        None => {}
                    }
                }
                // They may have undone their takes since: then there is room, and nothing was taken.
                let decisions = self.peek_alone(units, now);
                if !decisions.is_admitted() {
                    return decisions;
                }
            }
        }
        self.locked(now, |locked| self.take_locked(locked, units, now))
    }

    /// Peeks before it takes, so that a request that does not fit takes nothing, even briefly. If
    /// concurrent requests take units in between, it may have to [undo](State::undo) its own takes,
    /// and another request may be denied meanwhile.
    fn take_locked(&self, locked: &mut Cells<'_>, units: NonZeroU32, now: u64) -> Decisions {
        loop {
            let decisions = self.look_locked(locked, units, now);
            if !decisions.is_admitted() {
                return decisions;
            }
            if self.take_each(units, now).is_some() {
                break;
            }
        }
        locked.0.count(&self.of_key.states, units, now);
        if let (Some(locked), Some(part)) = (&mut locked.1, &self.of_consumer) {
            locked.count(&part.states, units, now);
        }
        let left = self.look_locked(locked, NonZeroU32::MIN, now);
        left.iter().map(|left| Decision::admit(left.remaining(), left.next_unit_in())).collect()
    }

    /// Takes from each state, or from none.
    fn take_each(&self, units: NonZeroU32, now: u64) -> Option<Few<(Decision, u64)>> {
        let mut taken = Few::new();
        for state in self.states() {
            let (decision, booked) = state.take(units, now);
            if !decision.is_admitted() {
                self.undo(&taken, units);
                return None;
            }
            taken.push((decision, booked));
        }
        Some(taken)
    }

    fn undo(&self, taken: &[(Decision, u64)], units: NonZeroU32) {
        for (state, (_, booked)) in self.states().zip(taken) {
            state.undo(units, *booked);
        }
    }

    fn taken(&self, taken: &[(Decision, u64)]) -> Decisions {
        let of_consumer = self.of_consumer.as_ref().map_or(0, |part| part.states.len());
        self.decisions(|part, at| {
            let before = if self.is_of_key(part) { of_consumer } else { 0 };
            Some(taken.get(before + at)?.0)
        })
    }

    fn is_of_key(&self, part: &Part) -> bool {
        std::ptr::eq(part, &raw const self.of_key)
    }

    fn look_locked(&self, locked: &Cells<'_>, units: NonZeroU32, now: u64) -> Decisions {
        self.decisions(|part, at| {
            let cell = if self.is_of_key(part) { Some(&locked.0) } else { locked.1.as_ref() };
            Some(cell?.look(part.states.get(at)?, units, now))
        })
    }

    /// Locks the key's cell first, then the consumer's: the same order everywhere.
    fn locked<T>(&self, now: u64, act: impl FnOnce(&mut Cells<'_>) -> T) -> T {
        #[cfg(test)]
        let _locked = super::interleaving::locked();
        let of_key = self.of_key.lock(now);
        let mut locked = Cells(of_key, self.of_consumer.as_ref().map(|part| part.lock(now)));
        let done = act(&mut locked);
        self.of_key.unlock(&locked.0, now);
        if let (Some(part), Some(locked)) = (&self.of_consumer, &locked.1) {
            part.unlock(locked, now);
        }
        done
    }

    pub(super) fn charge_all(&self, units: NonZeroU32, now: u64) {
        if let Some(epochs) = self.alone() {
            self.states().for_each(|state| state.charge(units, &Default::default(), now));
            if !self.is_still(epochs) {
                self.locked(now, |locked| {
                    locked.0.charge_others(&self.of_key.states, units, now);
                    if let (Some(locked), Some(part)) = (&mut locked.1, &self.of_consumer) {
                        locked.charge_others(&part.states, units, now);
                    }
                });
            }
            return;
        }
        self.locked(now, |locked| {
            locked.0.charge(units, now);
            if let Some(locked) = &mut locked.1 {
                locked.charge(units, now);
            }
        });
    }

    pub(super) fn give_back_all(&self, units: NonZeroU32, now: u64) {
        if self.alone().is_some() {
            self.states().for_each(|state| state.give_back(units, &mut Default::default(), now));
            return;
        }
        self.locked(now, |locked| {
            locked.0.give_back(&self.of_key.states, units, now);
            if let (Some(locked), Some(part)) = (&mut locked.1, &self.of_consumer) {
                locked.give_back(&part.states, units, now);
            }
        });
    }

    /// The deciding state of each quota: the consumer's if the quota is per consumer.
    #[cfg(feature = "redis")]
    pub(super) fn homes(&self) -> impl Iterator<Item = &State> {
        self.places.iter().filter_map(|place| {
            let state = match (&self.of_consumer, place.of_consumer) {
                (Some(part), Some(at)) => part.states.get(usize::from(at)),
                _ => self.of_key.states.get(usize::from(place.of_key)),
            };
            state.map(|state| &**state)
        })
    }
}

/// The locked cells of a key and of its consumer.
struct Cells<'a>(Locked<'a>, Option<Locked<'a>>);

impl Buckets for BucketSet {
    fn take(&self, units: NonZeroU32, now: Duration) -> Check {
        Check::Ready(self.take_all(units, nanos(now)))
    }

    fn peek(&self, now: Duration) -> Check {
        Check::Ready(self.peek_all(NonZeroU32::MIN, nanos(now)))
    }

    fn charge(&self, units: NonZeroU32, now: Duration) {
        self.charge_all(units, nanos(now));
    }

    fn give_back(&self, units: NonZeroU32, now: Duration) {
        self.give_back_all(units, nanos(now));
    }
}

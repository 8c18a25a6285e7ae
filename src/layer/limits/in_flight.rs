use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The number of requests in flight of each holder that has any.
#[derive(Default)]
pub(super) struct InFlight {
    shards: [Mutex<HashMap<Holder, u32>>; SHARDS],
    hasher: RandomState,
}

/// Enough that two cores rarely contend for the same one.
const SHARDS: usize = 16;

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    Key(u128),
    Consumer(Box<str>),
}

/// One request in flight.
pub(super) struct Permit {
    in_flight: Arc<InFlight>,
    holder: Holder,
}

impl InFlight {
    /// A permit, and how many more are left; `None` if all `most` are taken.
    pub(super) fn enter(self: &Arc<Self>, holder: Holder, most: u32) -> Option<(Permit, u32)> {
        let mut shard = self.shard(&holder)?;
        let under_way = shard.get_mut(&holder);
        let left = most.checked_sub(under_way.as_deref().map_or(1, |n| n.saturating_add(1)))?;
        match under_way {
            Some(under_way) => *under_way += 1,
            None => {
                shard.insert(holder.clone(), 1);
            }
        }
        Some((Permit { in_flight: Arc::clone(self), holder }, left))
    }

    fn leave(&self, holder: &Holder) {
        let Some(mut shard) = self.shard(holder) else { return };
        match shard.get_mut(holder) {
            Some(under_way) if *under_way > 1 => *under_way -= 1,
            _ => {
                shard.remove(holder);
            }
        }
    }

    fn shard(&self, holder: &Holder) -> Option<MutexGuard<'_, HashMap<Holder, u32>>> {
        // The top bits: the map uses the others.
        let at = self.hasher.hash_one(holder) >> (u64::BITS - SHARDS.trailing_zeros());
        let shard = usize::try_from(at).ok().and_then(|at| self.shards.get(at))?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.leave(&self.holder);
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InFlight")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_that_is_dropped_frees_its_own_place_alone() {
        let in_flight = Arc::new(InFlight::default());
        let enter = || in_flight.enter(Holder::Key(1), 3);
        let first = enter().unwrap();
        let mut others = vec![enter().unwrap().0, enter().unwrap().0];
        assert_eq!(first.1, 2, "two more fit");
        assert!(enter().is_none());
        drop(first);
        others.push(enter().unwrap().0);
        assert!(enter().is_none());
        assert_eq!(in_flight.enter(Holder::Key(2), 3).unwrap().1, 2, "of another key");
        drop(others);
        let held = in_flight.shards.iter().map(|shard| shard.lock().unwrap().len());
        assert_eq!(held.sum::<usize>(), 0, "nothing is kept of those who left");
    }
}

use std::{
    array,
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// The last slot is shared by all further threads.
const SLOTS: usize = 32;
const SHARED: usize = SLOTS - 1;

thread_local! {
    /// Never given to another thread.
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A counter for the hot path: the first 31 threads that add to it have slots of their own, in which
/// adding takes a load and a store. An atomic addition would take several nanoseconds more.
pub(super) struct Striped([Slot; SLOTS]);

/// As large as two cache lines, which processors fetch together.
#[derive(Default)]
#[repr(align(128))]
struct Slot(AtomicU64);

impl Striped {
    pub(super) fn new() -> Self {
        Self(array::from_fn(|_| Slot::default()))
    }

    pub(super) fn add_one(&self) {
        let number = SLOT.get().unwrap_or_else(assign);
        let Some(Slot(slot)) = self.0.get(number) else { return };
        if number == SHARED {
            slot.fetch_add(1, Ordering::Relaxed);
        } else {
            // No other thread writes to it.
            slot.store(slot.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(|Slot(slot)| slot.load(Ordering::Relaxed)).sum()
    }
}

#[cold]
fn assign() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let slot = take(&NEXT);
    SLOT.set(Some(slot));
    slot
}

/// A slot that no other thread has, or the shared one.
fn take(next: &AtomicUsize) -> usize {
    let taken = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        (next < SHARED).then_some(next + 1)
    });
    taken.unwrap_or(SHARED)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, thread};

    use super::*;

    #[test]
    fn nothing_is_lost_with_more_threads_than_slots() {
        const EACH: u64 = 10_000;
        let (one, other) = (Striped::new(), Striped::new());
        let slots: Vec<_> = thread::scope(|scope| {
            let threads = [(); 2 * SLOTS].map(|()| {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        one.add_one();
                        other.add_one();
                    }
                    SLOT.get().expect("a slot")
                })
            });
            threads.map(|thread| thread.join().unwrap()).into()
        });
        let all = 2 * SLOTS as u64 * EACH;
        assert_eq!((one.sum(), other.sum()), (all, all));
        let own = || slots.iter().filter(|slot| **slot != SHARED);
        assert_eq!(own().collect::<BTreeSet<_>>().len(), own().count(), "{slots:?}");
    }

    #[test]
    fn each_slot_but_the_last_is_given_to_one_thread() {
        let next = AtomicUsize::new(0);
        let slots = [(); SLOTS + 3].map(|()| take(&next));
        assert_eq!(slots[..SHARED], array::from_fn::<_, SHARED, _>(|slot| slot));
        assert_eq!(slots[SHARED..], [SHARED; 4]);
    }
}

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
    let next = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        (next < SHARED).then_some(next + 1)
    });
    let slot = next.unwrap_or(SHARED);
    SLOT.set(Some(slot));
    slot
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_lost_with_more_threads_than_slots() {
        const EACH: u64 = 10_000;
        let (one, other) = (Striped::new(), Striped::new());
        thread::scope(|scope| {
            for _ in 0..2 * SLOTS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        one.add_one();
                        other.add_one();
                    }
                });
            }
        });
        let all = 2 * SLOTS as u64 * EACH;
        assert_eq!((one.sum(), other.sum()), (all, all));
    }
}

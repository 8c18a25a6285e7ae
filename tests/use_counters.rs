//! The counters of a key's uses, between requests and the worker, under every interleaving of threads
//! and every memory reordering: no count is lost, and none is taken twice.

#![cfg(test)]

#[path = "../src/record/use_counters.rs"]
#[allow(dead_code, reason = "the model needs less than the cache")]
mod use_counters;

/// The atomics of the counters.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicI64, AtomicU8, Ordering};
}

use loom::{
    sync::{Arc, Mutex},
    thread,
};

use self::use_counters::{UseCounters, UseRejection};

/// A key with its counters, and the queue that tells the worker of it.
#[derive(Default)]
struct Key {
    counters: UseCounters,
    queue: Queue,
}

struct Queue {
    told: Mutex<usize>,
    room: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { told: Mutex::new(0), room: usize::MAX }
    }
}

impl Key {
    fn with_room(room: usize) -> Self {
        let queue = Queue { told: Mutex::new(0), room };
        Self { queue, ..Self::default() }
    }

    /// What a request does after it has counted.
    fn tell(&self, is_news: bool) {
        if !is_news {
            return;
        }
        let mut told = self.queue.told.lock().unwrap();
        if *told < self.queue.room {
            *told += 1;
        } else {
            drop(told);
            self.counters.not_told();
        }
    }

    /// What the worker does at each flush: takes the counts of the keys that it was told of.
    fn flush(&self) -> Option<[i64; 5]> {
        let told = std::mem::take(&mut *self.queue.told.lock().unwrap());
        (told > 0).then(|| self.counters.take())
    }
}

fn sum(taken: impl IntoIterator<Item = Option<[i64; 5]>>) -> [i64; 5] {
    let mut sum = [0; 5];
    for taken in taken.into_iter().flatten() {
        for (sum, taken) in sum.iter_mut().zip(taken) {
            *sum += taken;
        }
    }
    sum
}

#[test]
fn every_admission_is_taken_once() {
    loom::model(|| {
        let key = Arc::new(Key::default());
        let request = thread::spawn({
            let key = Arc::clone(&key);
            move || {
                key.tell(key.counters.admit(true));
                key.tell(key.counters.admit(true));
            }
        });
        let taken = [key.flush(), key.flush()];
        request.join().unwrap();
        // All that is left is known to the worker.
        let rest = key.flush();
        assert_eq!(sum(taken.into_iter().chain([rest])), [2, 0, 0, 0, 2]);
    });
}

#[test]
fn admissions_and_rejections_at_once_are_taken_once() {
    loom::model(|| {
        let key = Arc::new(Key::default());
        let spawn = |work: fn(&Key)| {
            let key = Arc::clone(&key);
            thread::spawn(move || work(&key))
        };
        let admitted = spawn(|key| key.tell(key.counters.admit(true)));
        let refused = spawn(|key| key.tell(key.counters.reject(UseRejection::Refused)));
        let taken = key.flush();
        admitted.join().unwrap();
        refused.join().unwrap();
        let rest = key.flush();
        assert_eq!(sum([taken, rest]), [1, 0, 0, 1, 1]);
    });
}

#[test]
fn corrections_are_taken_once() {
    loom::model(|| {
        let key = Arc::new(Key::default());
        let request = thread::spawn({
            let key = Arc::clone(&key);
            move || {
                key.tell(key.counters.admit(false));
                key.tell(key.counters.reject_admitted(UseRejection::Forbidden));
            }
        });
        let taken = key.flush();
        request.join().unwrap();
        let rest = key.flush();
        assert_eq!(sum([taken, rest]), [0, 0, 1, 0, 0]);
    });
}

#[test]
fn what_a_full_queue_does_not_take_stays_until_another_request_tells() {
    loom::model(|| {
        let key = Arc::new(Key::with_room(0));
        let request = thread::spawn({
            let key = Arc::clone(&key);
            move || key.tell(key.counters.admit(true))
        });
        let taken = key.flush();
        request.join().unwrap();
        assert_eq!((taken, key.flush()), (None, None));
        // There is room again.
        assert!(key.counters.admit(true), "the next request tells");
        assert_eq!(key.counters.take(), [2, 0, 0, 0, 2]);
    });
}

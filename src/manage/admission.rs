use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Admission control: a concurrency limit for each consumer, so that one consumer cannot take the
/// capacity of all.
///
/// Requests over the limit queue, because a page in a browser sends several at once, and are
/// refused when their wait is over. Idle consumers cost no memory.
pub(crate) struct PerConsumer {
    max: usize,
    wait: Duration,
    turns: Mutex<Turns>,
}

#[derive(Default)]
struct Turns {
    of: HashMap<String, Arc<Semaphore>>,
    sweep_at: usize,
}

/// A permit, held while the work is in progress.
pub(crate) type Turn = OwnedSemaphorePermit;

const MIN_SWEEP: usize = 256;

impl PerConsumer {
    pub(crate) fn new(max: usize, wait: Duration) -> Self {
        Self { max, wait, turns: Mutex::default() }
    }

    /// `None` if no permit became free within the wait.
    pub(crate) async fn take(&self, consumer_id: &str) -> Option<Turn> {
        let turns = self.turns_of(consumer_id);
        // Without a timer if possible: `timeout` needs a runtime with time enabled.
        match Arc::clone(&turns).try_acquire_owned() {
            Ok(turn) => Some(turn),
            Err(_) => timeout(self.wait, turns.acquire_owned()).await.ok()?.ok(),
        }
    }

    fn turns_of(&self, consumer_id: &str) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let Turns { of, sweep_at } = &mut *turns;
        if let Some(turns) = of.get(consumer_id) {
            return Arc::clone(turns);
        }
        if of.len() >= *sweep_at {
            // Permits and waiters hold a reference to their semaphore.
            of.retain(|_, turns| Arc::strong_count(turns) > 1);
            *sweep_at = MIN_SWEEP.max(of.len() * 2);
        }
        let turns = Arc::new(Semaphore::new(self.max));
        of.insert(consumer_id.to_owned(), Arc::clone(&turns));
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_consumer_has_so_many_turns_and_takes_none_of_anothers() {
        let turns = PerConsumer::new(2, Duration::from_secs(1));
        let held = (turns.take("acme").await.unwrap(), turns.take("acme").await.unwrap());
        assert!(turns.take("acme").await.is_none());
        assert!(turns.take("other").await.is_some());
        let (first, second) = held;
        let (third, ()) = tokio::join!(turns.take("acme"), async { drop(first) });
        assert!(third.is_some(), "a waiter gets the permit that becomes free");
        drop(second);
    }

    #[tokio::test]
    async fn consumers_without_work_cost_no_memory() {
        let turns = PerConsumer::new(1, Duration::ZERO);
        let held = turns.take("kept").await.unwrap();
        for number in 0..100_000 {
            drop(turns.take(&number.to_string()).await.unwrap());
        }
        assert!(turns.turns.lock().unwrap().of.len() <= 2 * MIN_SWEEP);
        assert!(turns.take("kept").await.is_none(), "work in progress still counts");
        drop(held);
    }
}

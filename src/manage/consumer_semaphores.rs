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
pub(crate) struct ConsumerSemaphores {
    max: usize,
    wait: Duration,
    permits: Mutex<Turns>,
}

#[derive(Default)]
struct Turns {
    of: HashMap<String, Arc<Semaphore>>,
    sweep_at: usize,
}

/// A permit, held while the work is in progress.
pub(crate) type ConsumerPermit = OwnedSemaphorePermit;

const MIN_SWEEP: usize = 256;

impl ConsumerSemaphores {
    pub(crate) fn new(max: usize, wait: Duration) -> Self {
        Self { max, wait, permits: Mutex::default() }
    }

    /// `None` if no permit became free within the wait.
    pub(crate) async fn take(&self, consumer_id: &str) -> Option<ConsumerPermit> {
        let permits = self.turns_of(consumer_id);
        // Without a timer if possible: `timeout` needs a runtime with time enabled.
        match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => timeout(self.wait, permits.acquire_owned()).await.ok()?.ok(),
        }
    }

    fn turns_of(&self, consumer_id: &str) -> Arc<Semaphore> {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let Turns { of, sweep_at } = &mut *permits;
        if let Some(permits) = of.get(consumer_id) {
            return Arc::clone(permits);
        }
        if of.len() >= *sweep_at {
            // Permits and waiters hold a reference to their semaphore.
            of.retain(|_, permits| Arc::strong_count(permits) > 1);
            *sweep_at = MIN_SWEEP.max(of.len() * 2);
        }
        let permits = Arc::new(Semaphore::new(self.max));
        of.insert(consumer_id.to_owned(), Arc::clone(&permits));
        permits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_consumer_has_so_many_turns_and_takes_none_of_anothers() {
        let permits = ConsumerSemaphores::new(2, Duration::from_secs(1));
        let held = (permits.take("acme").await.unwrap(), permits.take("acme").await.unwrap());
        assert!(permits.take("acme").await.is_none());
        assert!(permits.take("other").await.is_some());
        let (first, second) = held;
        let (third, ()) = tokio::join!(permits.take("acme"), async { drop(first) });
        assert!(third.is_some(), "a waiter gets the permit that becomes free");
        drop(second);
    }

    #[tokio::test]
    async fn consumers_without_work_cost_no_memory() {
        let permits = ConsumerSemaphores::new(1, Duration::ZERO);
        let held = permits.take("kept").await.unwrap();
        for number in 0..100_000 {
            drop(permits.take(&number.to_string()).await.unwrap());
        }
        assert!(permits.permits.lock().unwrap().of.len() <= 2 * MIN_SWEEP);
        assert!(permits.take("kept").await.is_none(), "work in progress still counts");
        drop(held);
    }
}

//! Noticing that a key has ended without a request that asks.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    cache::Peek,
    entry::{Entry, Watch, WatchedKey},
    load::Loader,
};
use crate::record::KeyStatus;

/// How soon a key is asked for again that the store did not confirm.
const RETRY: Duration = Duration::from_secs(1);

impl Watch for Loader {
    fn ended(self: Arc<Self>, key: WatchedKey) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(ended(self, key))
    }
}

/// Asks as a client would who never stops: when there is news of the key, when it expires, and
/// whenever what is cached of it is no longer fresh.
async fn ended(loader: Arc<Loader>, mut key: WatchedKey) {
    // Before the first look: what comes after it is news.
    let mut news = loader.watch(key.id, key.hash);
    let mut confirmed = None;
    let mut failed = None;
    loop {
        let changes = *news.borrow_and_update();
        let entry = match loader.peek(&key.hash, loader.clock.monotonic()) {
            Peek::Fresh(entry) => Ok(Some(entry)),
            Peek::Absent => Ok(None),
            Peek::Stale(_) | Peek::Miss => Arc::clone(&loader).load(key.hash, None).await,
        };
        let now = loader.clock.monotonic();
        let wait = match entry {
            Ok(entry) => {
                let Some(entry) = entry.filter(|entry| works(entry, key, now)) else { return };
                key.confirm(&entry);
                confirmed = Some(changes);
                let fresh_for = loader.cache.fresh_for(&entry, now);
                let confirm_in = if fresh_for.is_zero() { RETRY } else { fresh_for };
                entry.expires_in(now).map_or(confirm_in, |expires_in| expires_in.min(confirm_in))
            }
            // It was changed, and is refused by now for want of knowing how.
            Err(_) if confirmed != Some(changes) && failed == Some(changes) => return,
            // Kept for as long as a cached key would be.
            Err(_) if key.age(now) >= loader.cache.usable() => return,
            Err(_) => {
                failed = Some(changes);
                RETRY
            }
        };
        // Time is up, or there is news.
        let _ = timeout(wait, news.changed()).await;
    }
}

fn works(entry: &Entry, key: WatchedKey, now: Duration) -> bool {
    entry.key_id() == key.id && entry.status(now) == KeyStatus::Active
}

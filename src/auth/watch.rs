//! Noticing that a key has ended without a request that asks.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{cache::Peek, entry::Entry, load::Loader};
use crate::{
    key::KeyHash,
    record::{KeyId, KeyStatus, Watch},
};

/// How soon a key is asked for again that the store did not confirm.
const RETRY: Duration = Duration::from_secs(1);

impl Watch for Loader {
    fn ended(
        self: Arc<Self>,
        key_id: KeyId,
        hash: KeyHash,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(ended(self, key_id, hash))
    }
}

/// Asks as a client would who never stops: when there is news of the key, when it expires, and
/// whenever what is cached of it is no longer fresh.
async fn ended(loader: Arc<Loader>, key_id: KeyId, hash: KeyHash) {
    // Before the first look: what comes after it is news.
    let mut news = loader.watch(key_id, hash);
    let mut confirmed_at = loader.clock.monotonic();
    loop {
        let entry = match loader.peek(&hash, loader.clock.monotonic()) {
            Peek::Fresh(entry) => Ok(Some(entry)),
            Peek::Absent => Ok(None),
            Peek::Stale(_) | Peek::Miss => Arc::clone(&loader).load(hash).await,
        };
        let now = loader.clock.monotonic();
        let wait = match entry {
            Ok(entry) => {
                let Some(entry) = entry.filter(|entry| works(entry, key_id, now)) else { return };
                confirmed_at = entry.loaded_at;
                let fresh_for = loader.cache.fresh_for(&entry, now);
                let confirm_in = if fresh_for.is_zero() { RETRY } else { fresh_for };
                entry.expires_in(now).map_or(confirm_in, |expires_in| expires_in.min(confirm_in))
            }
            // Kept for as long as a cached key would be.
            Err(_) if now.saturating_sub(confirmed_at) >= loader.cache.usable() => return,
            Err(_) => RETRY,
        };
        // Time is up, or there is news.
        let _ = timeout(wait, news.changed()).await;
    }
}

fn works(entry: &Entry, key_id: KeyId, now: Duration) -> bool {
    entry.consumer.key_id() == key_id && entry.status(now) == KeyStatus::Active
}

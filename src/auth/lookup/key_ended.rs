//! Detects the end of a key for streams, which make no further requests.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::{
    state::{Known, Outcome},
    stream_retries::Retries,
};
use crate::auth::{
    RejectionKind,
    cache::{Entry, EntryOwner, Peek, WatchedKey},
    catch_panic::catch_pending_panic,
    core::Core,
};
use crate::record::{Consumer, KeyStatus};

impl EntryOwner for Core {
    fn ended(self: Arc<Self>, key: WatchedKey) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        // If the check panics, the stream ends; the panic must not reach the server's connection.
        Box::pin(async move {
            let _ = catch_pending_panic(ended(self, key)).await;
        })
    }

    fn tell_use(&self, key: Consumer) {
        Self::tell_use(self, key, None);
    }
}

/// Looks the key up again when it may have changed, when it expires, and when its cached record is
/// no longer fresh.
///
/// When many keys change at once, a semaphore bounds their streams' look-ups, so that they do not
/// crowd out requests or each other. A look-up that gets no permit says nothing about the key.
async fn ended(core: Arc<Core>, mut key: WatchedKey) {
    // Subscribe before the first look-up, so that no change is missed.
    let mut news = core.lookup.watch(key.id, key.hash);
    let mut retries = Retries::new(key, core.lookup.next_stream());
    let mut confirmed = None;
    let mut failed = None;
    let mut expires_at = None;
    loop {
        let mut changes = *news.borrow_and_update();
        let known = match core.peek(&key.hash, core.clock.monotonic()) {
            Peek::Fresh(entry) => Ok(Known::Key(entry)),
            Peek::Absent(canary) => Ok(Known::Absent(canary)),
            Peek::Stale(_) | Peek::Miss => {
                // The expiry of a changed key is unknown.
                let expires_at = expires_at.filter(|_| confirmed == Some(changes));
                let taking_turns = look_up(&core, key, &mut news, &mut changes);
                match expires_at {
                    None => taking_turns.await,
                    Some(expires_at) => {
                        let left = Duration::saturating_sub(expires_at, core.clock.monotonic());
                        match timeout(left, taking_turns).await {
                            Ok(outcome) => outcome,
                            // The timer may disagree with the clock; the clock decides.
                            Err(_) if core.clock.monotonic() >= expires_at => return,
                            Err(_) => continue,
                        }
                    }
                }
            }
        };
        let now = core.clock.monotonic();
        let wait = match known {
            Ok(known) => {
                let works = |entry: &&Arc<Entry>| {
                    entry.key_id() == key.id && core.status(entry, now) == KeyStatus::Active
                };
                let Some(entry) = known.entry().filter(works) else { return };
                key.confirm(entry);
                confirmed = Some(changes);
                let missed = core.missed_since(entry);
                let expires_in = entry.expires_in(now.saturating_add(missed));
                expires_at = expires_in.map(|expires_in| now.saturating_add(expires_in));
                let fresh_for = core.cache.fresh_for(entry, now);
                let confirm_in = if fresh_for.is_zero() {
                    retries.next()
                } else {
                    retries.reset();
                    fresh_for
                };
                expires_in.map_or(confirm_in, |expires_in| expires_in.min(confirm_in))
            }
            // Past the time for which a cached key would be let in.
            Err(_) if key.age(now) >= core.cache.usable() => return,
            // Overload is neither a decision about the key nor an outage.
            Err(rejection) if rejection.kind() == RejectionKind::Overloaded => retries.next(),
            // The key changed, and look-ups have failed since: a request with it would be rejected
            // by now.
            Err(_) if confirmed != Some(changes) && failed == Some(changes) => return,
            Err(_) => {
                failed = Some(changes);
                retries.next()
            }
        };
        // Wakes on timeout or on a change.
        let _ = timeout(wait, news.changed()).await;
    }
}

/// Looks the key up once a permit is free, or returns what is cached meanwhile.
async fn look_up(
    core: &Arc<Core>,
    key: WatchedKey,
    news: &mut watch::Receiver<u64>,
    changes: &mut u64,
) -> Outcome {
    let mut permit = pin!(core.lookup.watchers.acquire());
    let permit = loop {
        tokio::select! {
            biased;
            permit = &mut permit => break permit,
            told = news.changed() => {
                *changes = *news.borrow_and_update();
                if let Some(outcome) = known(core, key) {
                    return outcome;
                }
                if told.is_err() {
                    // No further changes are reported, but a permit may still come.
                    break permit.await;
                }
            }
        }
    };
    *changes = *news.borrow_and_update();
    if let Some(outcome) = known(core, key) {
        return outcome;
    }
    core.mark_known(key.hash);
    let outcome = Arc::clone(core).load(key.hash, None, None).await;
    drop(permit);
    outcome
}

fn known(core: &Core, key: WatchedKey) -> Option<Outcome> {
    match core.peek(&key.hash, core.clock.monotonic()) {
        Peek::Fresh(entry) => Some(Ok(Known::Key(entry))),
        Peek::Absent(canary) => Some(Ok(Known::Absent(canary))),
        Peek::Stale(_) | Peek::Miss => None,
    }
}

//! Detects the end of a key for streams, which make no further requests.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::state::Outcome;
use crate::auth::{
    RejectionKind,
    cache::{EndSignal, Entry, Peek, WatchedKey},
    catch_panic::catch_pending_panic,
    core::Core,
};
use crate::record::KeyStatus;

/// The longest wait before a key that could not be confirmed is looked up again: after the first
/// failure, and after many.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(5);

impl EndSignal for Core {
    fn ended(self: Arc<Self>, key: WatchedKey) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        // If the check panics, the stream ends; the panic must not reach the server's connection.
        Box::pin(async move {
            let _ = catch_pending_panic(ended(self, key)).await;
        })
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
        let entry = match core.peek(&key.hash, core.clock.monotonic()) {
            Peek::Fresh(entry) => Ok(Some(entry)),
            Peek::Absent => Ok(None),
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
        let wait = match entry {
            Ok(entry) => {
                let works = |entry: &Arc<Entry>| {
                    entry.key_id() == key.id && core.status(entry, now) == KeyStatus::Active
                };
                let Some(entry) = entry.filter(works) else { return };
                key.confirm(&entry);
                confirmed = Some(changes);
                let missed = core.missed_since(&entry);
                let expires_in = entry.expires_in(now.saturating_add(missed));
                expires_at = expires_in.map(|expires_in| now.saturating_add(expires_in));
                let fresh_for = core.cache.fresh_for(&entry, now);
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
    let outcome = Arc::clone(core).load(key.hash, None).await;
    drop(permit);
    outcome
}

fn known(core: &Core, key: WatchedKey) -> Option<Outcome> {
    match core.peek(&key.hash, core.clock.monotonic()) {
        Peek::Fresh(entry) => Some(Ok(Some(entry))),
        Peek::Absent => Some(Ok(None)),
        Peek::Stale(_) | Peek::Miss => None,
    }
}

/// The wait after consecutive look-ups that confirmed nothing: up to 1 s, doubling up to 5 s. The
/// second half of it is jitter, so that streams that failed together do not retry together. The
/// jitter is deterministic per stream.
struct Retries {
    seed: u64,
    failures: u32,
}

impl Retries {
    fn new(key: WatchedKey, stream: u64) -> Self {
        let id = key.id.as_u128();
        let halves = [id, id >> u64::BITS].map(|half| u64::try_from(half & u128::from(u64::MAX)));
        let id = halves.into_iter().flatten().fold(0, |mixed, half| mix(mixed ^ half));
        Self { seed: mix(id ^ stream), failures: 0 }
    }

    fn next(&mut self) -> Duration {
        let most = FIRST_RETRY.saturating_mul(1 << self.failures.min(8)).min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        let random = mix(self.seed ^ u64::from(self.failures)) >> 48;
        let random = u32::try_from(random).unwrap_or_default();
        most / 2 + most / 2 * random / (1 << 16)
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// SplitMix64: each bit of the result depends on every bit of the input.
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{key::KeyHash, record::KeyId};

    fn retries(key: u8, stream: u64) -> Retries {
        let id = KeyId::from_bytes([key; 16]);
        let hash = KeyHash::from_bytes([0; 32]);
        let (confirmed_at, outdated_by) = (Duration::ZERO, Duration::ZERO);
        Retries::new(WatchedKey { id, hash, confirmed_at, outdated_by }, stream)
    }

    #[test]
    fn retries_back_off_and_differ_from_stream_to_stream() {
        let mut hundredths = [0; 50];
        for stream in 0..5_000 {
            let mut retries = retries(1, stream);
            for most in [1, 2, 4, 5, 5] {
                let (wait, most) = (retries.next(), Duration::from_secs(most));
                assert!(wait >= most / 2 && wait <= most, "{wait:?} of {most:?}");
            }
            retries.reset();
            let over = retries.next() - FIRST_RETRY / 2;
            hundredths[usize::try_from(over.as_millis() / 10).unwrap()] += 1;
        }
        // Expected: 100 each, within seven standard deviations.
        assert!(hundredths.iter().all(|count| (30..170).contains(count)), "{hundredths:?}");
        assert_ne!(retries(1, 7).next(), retries(2, 7).next());
        assert_eq!(retries(1, 7).next(), retries(1, 7).next());
    }
}

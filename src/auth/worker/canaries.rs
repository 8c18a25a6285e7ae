//! Uses of canary keys: noticed by requests, reported, and written to the audit.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use crate::{
    auth::{
        ClientNetwork, Event,
        canary::CanaryUse,
        catch_panic::{catch_panic, caught},
        core::Core,
    },
    key::KeyMask,
    record::{AuditEntry, KeyAction, KeyId, is_plain, rfc3339},
    store::{StoreError, StoreErrorKind},
    trace,
};

/// A key is reported once in this time for each network that it is used from.
const WINDOW: Duration = Duration::from_secs(3600);
/// Uses in a [`WINDOW`] that are reported of all keys of a consumer: an attacker may have many
/// addresses, and a key that may issue keys may issue canary keys.
const LINES: u32 = 64;
/// Keys and networks that are remembered. While there are as many, no further one is reported.
const MAX_KNOWN: usize = 4096;
/// Audit entries that wait while the store is down. Further uses are only logged.
const MAX_PENDING: usize = 1024;
/// How often writing is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
const RECEIVE_AT_ONCE: usize = 64;

/// What the audit names as the actor.
const ACTOR: &str = "client";

/// Reports uses of canary keys, and writes them to the audit.
pub(in crate::auth) struct CanaryWriter {
    core: Arc<Core>,
    mask: KeyMask,
    uses: mpsc::Receiver<CanaryUse>,
    received: Vec<CanaryUse>,
    reported: Reported,
    pending: VecDeque<AuditEntry>,
    errors: trace::ErrorLog,
}

/// Which uses were reported in the last [`WINDOW`].
#[derive(Default)]
struct Reported {
    from: HashMap<(KeyId, Option<ClientNetwork>), Duration>,
    of_consumers: HashMap<String, (Duration, u32)>,
}

impl Reported {
    fn is_due(&mut self, used: &CanaryUse) -> bool {
        let is_recent = |since: Duration| used.at.saturating_sub(since) < WINDOW;
        let from = (used.canary.key_id, used.address.map(ClientNetwork::from));
        if self.from.get(&from).is_some_and(|at| is_recent(*at)) {
            return false;
        }
        if self.from.len() >= MAX_KNOWN {
            self.from.retain(|_, at| is_recent(*at));
        }
        if self.of_consumers.len() >= MAX_KNOWN {
            self.of_consumers.retain(|_, (since, _)| is_recent(*since));
        }
        let consumer_id = &used.canary.consumer_id;
        let (since, lines) = self.of_consumers.get(consumer_id).copied().unwrap_or((used.at, 0));
        let (since, lines) = if is_recent(since) { (since, lines) } else { (used.at, 0) };
        let is_full =
            self.from.len() >= MAX_KNOWN || self.of_consumers.len() >= MAX_KNOWN && lines == 0;
        if lines >= LINES || is_full {
            return false;
        }
        self.of_consumers.insert(consumer_id.clone(), (since, lines + 1));
        self.from.insert(from, used.at);
        true
    }
}

impl CanaryWriter {
    pub(in crate::auth) fn new(
        core: Arc<Core>,
        mask: KeyMask,
        uses: mpsc::Receiver<CanaryUse>,
    ) -> Self {
        let (received, reported, pending) = (Vec::new(), Reported::default(), VecDeque::new());
        Self { core, mask, uses, received, reported, pending, errors: trace::ErrorLog::default() }
    }

    /// Reports and writes uses as they come. Cancel safe: may be dropped at any await and called
    /// again.
    pub(super) async fn write(&mut self) -> Infallible {
        // Received before a panic.
        self.take_up();
        let mut ticks = interval_at(Instant::now() + RETRY_INTERVAL, RETRY_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_open = true;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                count = self.uses.recv_many(&mut self.received, RECEIVE_AT_ONCE), if is_open => {
                    is_open = count > 0;
                    self.take_up();
                }
            }
            self.flush().await;
        }
    }

    /// Writes what is left.
    pub(super) async fn finish(mut self) {
        self.uses.close();
        self.write_now().await;
    }

    /// Reports and writes what was noticed so far.
    pub(super) async fn write_now(&mut self) {
        while let Ok(used) = self.uses.try_recv() {
            self.received.push(used);
        }
        // If the clock panics, uses without a wall-clock time are lost; the others are still written.
        let _ = catch_panic(async { self.take_up() }).await;
        self.flush().await;
    }

    /// Reports the uses that are due, and makes audit entries of them.
    fn take_up(&mut self) {
        if self.received.is_empty() {
            return;
        }
        let (wall, now) = (self.core.clock.now(), self.core.clock.monotonic());
        for used in self.received.drain(..) {
            if !self.reported.is_due(&used) {
                continue;
            }
            let (key_id, address) = (used.canary.key_id, used.address);
            let user_agent = used.user_agent.as_deref().map(|text| shown(&self.mask, text));
            let origin = address.map(|address| address.to_canonical().to_string());
            trace::warn!(%key_id, address = origin, user_agent, "canary key used");
            let user_agent = user_agent.as_deref();
            self.core.observe(&Event::CanaryUsed { key_id, address, user_agent });
            if self.pending.len() >= MAX_PENDING {
                continue;
            }
            let at = wall.checked_sub(now.saturating_sub(used.at)).unwrap_or(wall);
            let changes = json!({ "user_agent": user_agent, "used_at": rfc3339(at) });
            self.pending.push_back(AuditEntry {
                key_id: Some(key_id),
                consumer_id: Some(used.canary.consumer_id.clone()),
                origin,
                changes: Some(changes.to_string()),
                ..AuditEntry::new(KeyAction::CanaryUsed, ACTOR)
            });
        }
    }

    /// Entries that cannot be written stay for the next attempt.
    async fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let entries = self.pending.make_contiguous();
        let append = caught(async { self.core.store.append_audit(entries).await });
        let written = timeout(FLUSH_DEADLINE, append).await;
        let late = |late| Err(StoreError::new(StoreErrorKind::Unavailable).because(late));
        match written.unwrap_or_else(late) {
            Ok(()) => self.pending.clear(),
            Err(error) => {
                let now = self.core.clock.monotonic();
                self.errors.warn("uses of canary keys not written", &error, now);
            }
        }
    }
}

/// What a client sent, without what would garble a log or a terminal, and without keys.
fn shown(mask: &KeyMask, text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let plain = |character: char| {
        if is_plain(character.encode_utf8(&mut [0; 4])) { character } else { '\u{fffd}' }
    };
    mask.mask(&text).chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;
    use crate::auth::canary::Canary;

    fn used(key: u8, consumer_id: &str, address: u128, at: u64) -> CanaryUse {
        let (key_id, consumer_id) = (KeyId::from_bytes([key; 16]), consumer_id.to_owned());
        CanaryUse {
            canary: Arc::new(Canary { key_id, consumer_id }),
            address: Some(IpAddr::V6(Ipv6Addr::from_bits(address))),
            user_agent: None,
            at: Duration::from_secs(at),
        }
    }

    #[test]
    fn a_key_is_reported_once_an_hour_for_each_network() {
        let mut reported = Reported::default();
        let network = 1 << 64;
        assert!(reported.is_due(&used(1, "acme", network, 0)));
        assert!(!reported.is_due(&used(1, "acme", network + 1, 1)), "the same /64");
        assert!(reported.is_due(&used(1, "acme", 2 * network, 2)));
        assert!(reported.is_due(&used(2, "acme", network, 3)));
        assert!(!reported.is_due(&used(1, "acme", network, 3599)));
        assert!(reported.is_due(&used(1, "acme", network, 3600)));
    }

    #[test]
    fn many_networks_of_one_consumer_hide_nothing_of_another() {
        let mut reported = Reported::default();
        let lines = |reported: &mut Reported, consumer: &str, at| {
            let due = |network: &u128| reported.is_due(&used(1, consumer, network << 64, at));
            (1..100_000).filter(due).count()
        };
        assert_eq!(lines(&mut reported, "mallory", 0), 64);
        assert!(reported.is_due(&used(2, "acme", 1 << 64, 1)));
        assert!(reported.from.len() < MAX_KNOWN);
        assert_eq!(lines(&mut reported, "mallory", 3600), 64);
    }

    #[test]
    fn many_consumers_take_no_more_memory() {
        let mut reported = Reported::default();
        let due = |number: &u128| reported.is_due(&used(1, &number.to_string(), number << 64, 0));
        assert_eq!((1..50_000).filter(due).count(), MAX_KNOWN);
        assert_eq!((reported.from.len(), reported.of_consumers.len()), (MAX_KNOWN, MAX_KNOWN));
        assert!(reported.is_due(&used(1, "acme", 1 << 64, 3600)));
    }

    #[test]
    fn what_a_client_sends_is_shown_without_keys_and_control_characters() {
        let format = crate::key::KeyFormat::new("sk_test_").unwrap();
        let key = format.generate().unwrap();
        let text = format!("curl\u{1b}[31m\n{}\u{202e}", key.expose_secret());
        let shown = shown(&format.into(), text.as_bytes());
        assert!(!shown.contains(key.expose_secret()) && shown.contains("sk_test_…"), "{shown}");
        assert!(is_plain(&shown), "{shown:?}");
    }
}

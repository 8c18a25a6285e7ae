use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::{
    task::{Id, JoinSet},
    time::timeout,
};

use super::{
    delivery::{Rest, deliver},
    settings::Settings,
    settled::Settled,
    shared::Shared,
};
use crate::{
    record::{WebhookEndpoint, WebhookId, WebhookState},
    store::{StoreError, StoreErrorKind, port::Notice},
};

/// How often events that time brings about are looked for.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);
/// Keys that one step of such a search examines.
const NOTICE_KEYS: usize = 500;
/// Steps of such a search in a row.
const NOTICE_STEPS: usize = 20;
/// How long events wait for an open transaction before that is logged.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long requests under way have when the worker is stopped. An event whose request is cut off is
/// delivered again.
const FAREWELL: Duration = Duration::from_secs(4);

/// Delivers events until it is stopped: one node at a time, each endpoint by itself.
///
/// Dropping it at any time loses nothing: what was not noted as delivered is delivered again.
#[must_use = "nothing is delivered until it is run"]
pub struct WebhookWorker {
    shared: Arc<Shared>,
    holder: [u8; 16],
    is_holder: bool,
    /// When the lease is renewed, by the monotonic clock.
    renew_at: Duration,
    notices_at: Option<SystemTime>,
    settled: Settled,
    /// The last settled event, since when it is that although there are later ones.
    waiting: Option<(u64, Duration)>,
    deliveries: JoinSet<(WebhookId, Result<Rest, StoreError>)>,
    under_way: HashMap<WebhookId, Id>,
    /// The oldest undelivered event of the endpoints that are behind.
    oldest: HashMap<WebhookId, SystemTime>,
}

impl WebhookWorker {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            shared: Arc::new(Shared::new(settings)),
            holder: [0; 16],
            is_holder: false,
            renew_at: Duration::ZERO,
            notices_at: None,
            settled: Settled::default(),
            waiting: None,
            deliveries: JoinSet::new(),
            under_way: HashMap::new(),
            oldest: HashMap::new(),
        }
    }

    /// Delivers until `shutdown` completes. Requests under way then have 4 seconds, and another node
    /// goes on at once.
    ///
    /// Errors of the store are logged and retried.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown);
        let entropy = Arc::clone(&self.shared.settings.entropy);
        while let Err(error) = entropy.fill(&mut self.holder) {
            self.shared.errors.warn(
                "webhooks delayed",
                &error,
                self.shared.settings.clock.monotonic(),
            );
            tokio::select! {
                () = &mut shutdown => return,
                () = self.pause() => {}
            }
        }
        loop {
            let round = async {
                let worked = self.work().await;
                if let Err(error) = &worked {
                    self.shared.warn(error);
                }
                self.wait().await;
            };
            tokio::select! {
                () = &mut shutdown => break,
                () = round => {}
            }
        }
        self.stop().await;
    }

    /// Starts the deliveries that are due.
    async fn work(&mut self) -> Result<(), StoreError> {
        if !self.holds_lease().await? {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let store = &shared.settings.store;
        let endpoints = store.all().await?;
        if !endpoints.is_empty() {
            self.write_notices().await;
        }
        let frontier = store.frontier().await?;
        let last = frontier.last;
        let until = self.settled.observe(frontier);
        self.note_open_transactions(until, last);
        let now = shared.settings.clock.now();
        self.show(&endpoints, now);
        for endpoint in endpoints {
            let is_due = endpoint.state == WebhookState::Active
                && endpoint.next_attempt_at.is_none_or(|at| at <= now)
                && endpoint.delivered_to < until;
            if is_due && !self.under_way.contains_key(&endpoint.id) {
                let (shared, id) = (Arc::clone(&shared), endpoint.id);
                let delivery = async move { (id, deliver(&shared, endpoint, until).await) };
                let task = self.deliveries.spawn(delivery);
                self.under_way.insert(id, task.id());
            }
        }
        Ok(())
    }

    /// Takes or renews the lease. Without it, deliveries under way are given up.
    async fn holds_lease(&mut self) -> Result<bool, StoreError> {
        let settings = &self.shared.settings;
        let now = settings.clock.monotonic();
        if self.is_holder && now < self.renew_at {
            return Ok(true);
        }
        let taken = settings.store.lease(self.holder, settings.lease).await;
        if let Ok(true) = taken {
            self.renew_at = now.saturating_add(settings.lease / 3);
            if !self.is_holder {
                self.settled = Settled::default();
                self.notices_at = None;
            }
        } else if self.is_holder {
            self.deliveries.abort_all();
            self.oldest.clear();
            self.shared.metrics.clear();
        }
        self.is_holder = matches!(taken, Ok(true));
        taken
    }

    /// Logs that events wait for a transaction that stays open.
    fn note_open_transactions(&mut self, until: u64, last: u64) {
        let now = self.shared.settings.clock.monotonic();
        let since = match self.waiting {
            Some((at, since)) if at == until => since,
            _ => now,
        };
        self.waiting = (until < last).then_some((until, since));
        if self.waiting.is_some() && now.saturating_sub(since) >= PATIENCE {
            let problem = "a transaction that has written to the audit stays open, and later events \
                wait for it: `pg_stat_activity` shows it";
            self.shared.warn(&StoreError::new(StoreErrorKind::Other).because(problem));
        }
    }

    /// Writes the events that time brings about, once a minute. Deliveries do not depend on it.
    async fn write_notices(&mut self) {
        let now = self.shared.settings.clock.now();
        if self.notices_at.is_some_and(|at| now < at && at <= now + NOTICE_INTERVAL) {
            return;
        }
        self.notices_at = now.checked_add(NOTICE_INTERVAL);
        for notice in Notice::ALL {
            if let Err(error) = self.write_notice(notice, now).await {
                self.shared.warn(&error);
            }
        }
    }

    async fn write_notice(&self, notice: Notice, now: SystemTime) -> Result<(), StoreError> {
        for _ in 0..NOTICE_STEPS {
            let store = &self.shared.settings.store;
            let examined = store.notices(notice, now, NOTICE_KEYS).await?;
            // The search for unused keys goes round all keys, a step at a time.
            if examined < NOTICE_KEYS || notice == Notice::Unused {
                break;
            }
        }
        Ok(())
    }

    /// Waits for a delivery to end, or for the next round.
    async fn wait(&mut self) {
        let interval = self.shared.settings.interval;
        let ended = async {
            loop {
                match self.deliveries.join_next().await {
                    None => std::future::pending().await,
                    // Aborted with the lease, or a panic.
                    Some(Err(error)) => self.under_way.retain(|_, task| *task != error.id()),
                    Some(Ok((id, rest))) => {
                        self.under_way.remove(&id);
                        let Rest { has_more, oldest } = rest.unwrap_or_else(|error| {
                            self.shared.warn(&error);
                            Rest { has_more: false, oldest: self.oldest.get(&id).copied() }
                        });
                        match oldest {
                            Some(at) => self.oldest.insert(id, at),
                            None => self.oldest.remove(&id),
                        };
                        if has_more {
                            return;
                        }
                    }
                }
            }
        };
        // Whichever comes first: the deadline is the next round.
        let _ = timeout(interval, ended).await;
    }

    async fn pause(&self) {
        let _ = timeout(self.shared.settings.interval, std::future::pending::<()>()).await;
    }

    fn show(&mut self, endpoints: &[WebhookEndpoint], now: SystemTime) {
        self.oldest.retain(|id, _| {
            endpoints.iter().any(|it| it.id == *id && it.state == WebhookState::Active)
        });
        let ages = self.oldest.values().map(|at| now.duration_since(*at).unwrap_or_default());
        let stopped = endpoints.iter().filter(|it| it.state == WebhookState::Parked).count();
        self.shared.metrics.show(stopped, ages.max().unwrap_or_default());
    }

    async fn stop(mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        let ended = async { while self.deliveries.join_next().await.is_some() {} };
        let _ = timeout(FAREWELL, ended).await;
        self.deliveries.shutdown().await;
        if self.is_holder {
            let release = self.shared.settings.store.release(self.holder);
            // Otherwise the lease ends by itself.
            let _ = timeout(Duration::from_secs(1), release).await;
        }
    }
}

impl fmt::Debug for WebhookWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookWorker")
            .field("is_holder", &self.is_holder)
            .field("under_way", &self.under_way.len())
            .finish_non_exhaustive()
    }
}

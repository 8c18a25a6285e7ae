use std::{fmt, sync::Arc, time::Duration};

use serde_json::json;

use super::{
    AuditTail, WebhookError, WebhookWorker, client::Client, message::Message, settings::Settings,
    target::Targets,
};
use crate::{
    clock::{Clock, SystemClock},
    key::{EntropySource, SigningSecret, SystemEntropy},
    record::{
        AuditEntry, EventFilter, KeyAction, Network, WebhookEndpoint, WebhookId, WebhookState,
        rfc3339,
    },
    store::port::WebhookStore,
    tls,
};

/// Endpoints to which the events of the audit are posted, and the worker that does it.
///
/// Cheap to clone; clones share the settings.
#[derive(Clone)]
#[must_use]
pub struct Webhooks {
    settings: Settings,
    trusted: Vec<Vec<u8>>,
    actor: String,
    origin: Option<String>,
}

/// Maximum endpoints. All of them are read and delivered to by one node, and each is a copy of every
/// event that leaves the system.
const MAX_ENDPOINTS: usize = 100;
const INTERVAL: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(30);
/// How long the previous secret signs as well.
const MAX_OVERLAP: Duration = Duration::from_secs(30 * 86_400);
/// Attempts to change an endpoint that is being delivered to.
const ATTEMPTS: usize = 10;

impl Webhooks {
    /// Webhooks whose endpoints are in `store`.
    pub fn new(store: impl WebhookStore) -> Self {
        let settings = Settings {
            store: Arc::new(store),
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SystemEntropy),
            client: Client::default(),
            targets: Targets::default(),
            interval: INTERVAL,
            lease: LEASE,
        };
        Self { settings, trusted: Vec::new(), actor: "system".to_owned(), origin: None }
    }

    /// Who changes endpoints, as the audit names them. Default: `system`.
    pub fn by(self, actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), ..self }
    }

    /// From where endpoints are changed, for the audit: an address or a host. Default: none.
    pub fn origin(self, origin: impl Into<String>) -> Self {
        Self { origin: Some(origin.into()), ..self }
    }

    /// Also posts to addresses in `network`, which may be private, and there also to `http:` URLs.
    /// Default: public addresses only, and `https:` only.
    ///
    /// The worker checks every address it connects to: otherwise an operator who may add an endpoint
    /// could have the service send requests into its own network.
    pub fn allow_network(mut self, network: Network) -> Self {
        self.settings.targets.allow(network);
        self
    }

    /// Also trusts the certificate authorities in `pem`, for receivers within a company. Default: the
    /// authorities that browsers trust.
    ///
    /// # Errors
    ///
    /// [`Invalid`](super::WebhookErrorKind::Invalid) when there is no certificate, or one cannot be
    /// read.
    pub fn trust_certificates(mut self, pem: &[u8]) -> Result<Self, WebhookError> {
        let invalid = || WebhookError::invalid("the file must have certificates in PEM");
        self.trusted.extend(tls::Client::certificates(pem).ok_or_else(invalid)?);
        self.settings.client = Client::new(tls::Client::new(&self.trusted));
        Ok(self)
    }

    /// How often the worker looks for new events. Default: 1 s, at the cost of two cheap statements
    /// per second on one node. Clamped to 10 ms to 1 min.
    pub fn interval(mut self, interval: Duration) -> Self {
        let interval = interval.clamp(Duration::from_millis(10), Duration::from_secs(60));
        self.settings.interval = interval;
        self
    }

    /// After how long another node goes on when the one that delivers is gone. Default: 30 s, longer
    /// than a request takes, so that a slow receiver does not get an event from two nodes. Clamped to
    /// 1 s to 10 min.
    pub fn lease(mut self, lease: Duration) -> Self {
        let lease = lease.clamp(Duration::from_secs(1), Duration::from_secs(600));
        self.settings.lease = lease;
        self
    }

    /// The time source, for attempts and signatures. Default: [`SystemClock`].
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.settings.clock = Arc::new(clock);
        self
    }

    /// The source of secrets, ids and jitter. Default: [`SystemEntropy`].
    pub fn entropy(mut self, entropy: impl EntropySource) -> Self {
        self.settings.entropy = Arc::new(entropy);
        self
    }

    /// The worker that delivers. It runs nothing until its [`run`](WebhookWorker::run) is awaited.
    pub fn worker(&self) -> WebhookWorker {
        WebhookWorker::new(self.settings.clone())
    }

    /// The events of the audit as they are written, after the event `after`.
    #[must_use]
    pub fn tail(&self, after: u64) -> AuditTail {
        AuditTail::new(Arc::clone(&self.settings.store), after)
    }

    /// Adds an endpoint that gets the events written from now on. Its
    /// [secret](WebhookEndpoint::secret) is generated: the receiver needs it to verify signatures.
    ///
    /// # Errors
    ///
    /// [`Invalid`](super::WebhookErrorKind::Invalid) for a URL that is not `https:`, that has a user,
    /// a password or a fragment, or whose host is a private address, and
    /// [`TooMany`](super::WebhookErrorKind::TooMany) beyond 100 endpoints.
    pub async fn add(
        &self,
        url: &str,
        events: EventFilter,
    ) -> Result<WebhookEndpoint, WebhookError> {
        let target = self.settings.targets.parse(url)?;
        let id = WebhookId::generate(&*self.settings.entropy)?;
        let secret = SigningSecret::generate(&*self.settings.entropy)?;
        let mut endpoint = WebhookEndpoint::new(id, url, secret, 0);
        let changes = json!({
            "webhook": { "to": id.to_string() },
            // The rest of the URL may hold a token of the receiver.
            "host": { "to": target.host },
            "events": { "to": events.types() },
        });
        endpoint.events = events;
        let audit = self.entry(KeyAction::WebhookAdded, &changes);
        if !self.settings.store.add(&endpoint, MAX_ENDPOINTS, audit).await? {
            return Err(WebhookError::too_many(MAX_ENDPOINTS));
        }
        self.get(id).await
    }

    /// All endpoints, in the order in which they were added.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    pub async fn list(&self) -> Result<Vec<WebhookEndpoint>, WebhookError> {
        Ok(self.settings.store.all().await?)
    }

    /// The endpoint with this id.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::WebhookErrorKind::NotFound), or when the store cannot answer.
    pub async fn get(&self, id: WebhookId) -> Result<WebhookEndpoint, WebhookError> {
        let mut all = self.settings.store.all().await?.into_iter();
        all.find(|endpoint| endpoint.id == id).ok_or_else(WebhookError::not_found)
    }

    /// Removes an endpoint. A request under way may still arrive.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::WebhookErrorKind::NotFound), or when the store cannot.
    pub async fn remove(&self, id: WebhookId) -> Result<(), WebhookError> {
        let changes = json!({ "webhook": { "from": id.to_string() } });
        let audit = self.entry(KeyAction::WebhookRemoved, &changes);
        if self.settings.store.remove(id, audit).await? {
            Ok(())
        } else {
            Err(WebhookError::not_found())
        }
    }

    /// Replaces the secret of an endpoint. The one before it signs as well for `overlap`, at most 30
    /// days, in which the receiver takes the new one; the one before that ends.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::WebhookErrorKind::NotFound),
    /// [`Invalid`](super::WebhookErrorKind::Invalid) for a longer overlap, or when the store cannot.
    pub async fn rotate_secret(
        &self,
        id: WebhookId,
        overlap: Duration,
    ) -> Result<WebhookEndpoint, WebhookError> {
        if overlap > MAX_OVERLAP {
            return Err(WebhookError::invalid("the previous secret may sign for at most 30 days"));
        }
        let secret = SigningSecret::generate(&*self.settings.entropy)?;
        let until = self.settings.clock.now().checked_add(overlap);
        let changes = json!({
            "webhook": { "to": id.to_string() },
            "secret": { "to": "another secret" },
            "previous_until": { "to": until.map(rfc3339) },
        });
        self.change(id, &changes, |endpoint| {
            let before = std::mem::replace(&mut endpoint.secret, secret.clone());
            endpoint.previous_secret = until.filter(|_| !overlap.is_zero()).map(|it| (before, it));
        })
        .await
    }

    /// Resumes an endpoint, at once and in any state: with the event `from` and all after it, or
    /// where it stopped. Events that were delivered before are delivered again, with the same ids.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::WebhookErrorKind::NotFound), or when the store cannot.
    pub async fn replay(
        &self,
        id: WebhookId,
        from: Option<u64>,
    ) -> Result<WebhookEndpoint, WebhookError> {
        let changes = json!({
            "webhook": { "to": id.to_string() },
            "state": { "to": WebhookState::Active.as_str() },
            "replayed_from": { "to": from },
        });
        self.change(id, &changes, |endpoint| {
            endpoint.state = WebhookState::Active;
            endpoint.failures = 0;
            endpoint.next_attempt_at = None;
            if let Some(from) = from {
                endpoint.delivered_to = from.saturating_sub(1);
            }
        })
        .await
    }

    /// Posts an event of type `webhook.test` to an endpoint now, whatever its state, and changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::WebhookErrorKind::NotFound), or when the store cannot answer. That the
    /// receiver does not answer is no error but the result.
    pub async fn test(&self, id: WebhookId) -> Result<WebhookTest, WebhookError> {
        let endpoint = self.get(id).await?;
        let target = self.settings.targets.parse(&endpoint.url)?;
        let mut nonce = [0; 8];
        self.settings.entropy.fill(&mut nonce)?;
        let now = self.settings.clock.now();
        let message = Message::test(nonce, now);
        let headers = message.headers(&endpoint, now);
        let begun = self.settings.clock.monotonic();
        let posted =
            self.settings.client.post(&self.settings.targets, &target, headers, message.body).await;
        Ok(WebhookTest {
            status: posted.ok().map(|status| status.as_u16()),
            problem: posted.err().map(|problem| problem.to_string()),
            duration: self.settings.clock.monotonic().saturating_sub(begun),
        })
    }

    /// Changes an endpoint, whose version a delivery may take meanwhile.
    async fn change(
        &self,
        id: WebhookId,
        changes: &serde_json::Value,
        change: impl Fn(&mut WebhookEndpoint),
    ) -> Result<WebhookEndpoint, WebhookError> {
        for _ in 0..ATTEMPTS {
            let mut endpoint = self.get(id).await?;
            change(&mut endpoint);
            let audit = self.entry(KeyAction::WebhookUpdated, changes);
            if self.settings.store.update(&endpoint, Some(audit)).await? {
                return self.get(id).await;
            }
        }
        Err(WebhookError::conflict())
    }

    fn entry(&self, action: KeyAction, changes: &serde_json::Value) -> AuditEntry {
        AuditEntry {
            origin: self.origin.clone(),
            changes: Some(changes.to_string()),
            ..AuditEntry::new(action, self.actor.clone())
        }
    }
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks")
            .field("interval", &self.settings.interval)
            .field("lease", &self.settings.lease)
            .finish_non_exhaustive()
    }
}

/// The result of a [test](Webhooks::test).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WebhookTest {
    /// The status of the response, if there was one.
    pub status: Option<u16>,
    /// Why there was none.
    pub problem: Option<String>,
    /// How long it took.
    pub duration: Duration,
}

impl WebhookTest {
    /// Whether an event would count as delivered.
    #[must_use]
    pub fn is_delivered(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

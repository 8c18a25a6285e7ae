use std::{error::Error, fmt, str::FromStr, time::SystemTime};

use uuid::Uuid;

use super::KeyAction;
use crate::key::{EntropySource, RngError, SigningSecret};

/// The public id of a webhook endpoint: a version 4 UUID. Feature `webhooks`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WebhookId(Uuid);

impl WebhookId {
    /// A new id.
    ///
    /// # Errors
    ///
    /// When the source of randomness fails.
    pub fn generate(entropy: &(impl EntropySource + ?Sized)) -> Result<Self, RngError> {
        let mut random = [0; 16];
        entropy.fill(&mut random)?;
        Ok(Self(uuid::Builder::from_random_bytes(random).into_uuid()))
    }

    /// An id as read by a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for WebhookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for WebhookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookId({})", self.0)
    }
}

impl FromStr for WebhookId {
    type Err = InvalidWebhook;

    fn from_str(id: &str) -> Result<Self, InvalidWebhook> {
        let invalid = |_| InvalidWebhook("the id of a webhook must be a UUID".to_owned());
        Uuid::try_parse(id).map(Self).map_err(invalid)
    }
}

/// A receiver of events, and how far it has got. Feature `webhooks`.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WebhookEndpoint {
    /// Its id.
    pub id: WebhookId,
    /// Where events are posted. It may hold a token of the receiver: never log it.
    pub url: String,
    /// The secret that requests are signed with.
    pub secret: SigningSecret,
    /// The secret before the last rotation, which signs as well until this time.
    pub previous_secret: Option<(SigningSecret, SystemTime)>,
    /// The types of events that are posted.
    pub events: EventFilter,
    /// Events of the audit up to this id were delivered or filtered out.
    pub delivered_to: u64,
    /// Whether events are delivered.
    pub state: WebhookState,
    /// Consecutive failures of the next event.
    pub failures: u32,
    /// When the next event is tried again after a failure.
    pub next_attempt_at: Option<SystemTime>,
    /// Why the last attempt failed: a status or a reason, without the address or the response.
    pub last_error: Option<String>,
    /// The last delivery.
    pub last_delivered_at: Option<SystemTime>,
    /// When it was added, by the store's clock.
    pub created_at: SystemTime,
    /// Each change takes the next version.
    pub version: u64,
}

impl WebhookEndpoint {
    /// An active endpoint for all events after the event `delivered_to`.
    #[must_use]
    pub fn new(
        id: WebhookId,
        url: impl Into<String>,
        secret: SigningSecret,
        delivered_to: u64,
    ) -> Self {
        Self {
            id,
            url: url.into(),
            secret,
            previous_secret: None,
            events: EventFilter::all(),
            delivered_to,
            state: WebhookState::Active,
            failures: 0,
            next_attempt_at: None,
            last_error: None,
            last_delivered_at: None,
            created_at: SystemTime::UNIX_EPOCH,
            version: 1,
        }
    }
}

impl fmt::Debug for WebhookEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookEndpoint")
            .field("id", &self.id)
            .field("state", &self.state)
            .field("delivered_to", &self.delivered_to)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

/// Whether an endpoint gets events. Feature `webhooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WebhookState {
    /// Events are delivered.
    Active,
    /// Deliveries failed for days. An operator resumes it with a replay.
    Parked,
    /// The receiver answered 410. An operator resumes it with a replay.
    Unsubscribed,
}

impl WebhookState {
    /// Its name, such as `active`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Parked => "parked",
            Self::Unsubscribed => "unsubscribed",
        }
    }
}

impl FromStr for WebhookState {
    type Err = InvalidWebhook;

    fn from_str(name: &str) -> Result<Self, InvalidWebhook> {
        let all = [Self::Active, Self::Parked, Self::Unsubscribed];
        let unknown = || InvalidWebhook("unknown state of a webhook".to_owned());
        all.into_iter().find(|state| state.as_str() == name).ok_or_else(unknown)
    }
}

/// Types of events, such as `key.revoked`, or all of a kind, `key.*`. Feature `webhooks`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter(Option<Vec<String>>);

/// Maximum types of a filter: there are fewer.
const MAX_TYPES: usize = 64;
const MAX_TEXT: usize = 2048;

impl EventFilter {
    /// All events.
    #[must_use]
    pub const fn all() -> Self {
        Self(None)
    }

    /// Only these types. None at all is [every type](Self::all).
    ///
    /// # Errors
    ///
    /// When one of them is unknown, because no event would ever have it.
    pub fn parse<S: AsRef<str>>(
        types: impl IntoIterator<Item = S>,
    ) -> Result<Self, InvalidWebhook> {
        let mut chosen: Vec<String> =
            types.into_iter().map(|name| name.as_ref().to_owned()).collect();
        chosen.sort();
        chosen.dedup();
        if let Some(unknown) = chosen.iter().find(|name| !is_known(name)) {
            let types: Vec<_> = event_types().collect();
            return Err(InvalidWebhook(format!(
                "there are no events of {}; there are key.*, plan.*, webhook.*, {}",
                quoted(unknown),
                types.join(", ")
            )));
        }
        Ok(Self((!chosen.is_empty()).then_some(chosen)))
    }

    /// The filter as [stored](Self::to_stored): types of a newer release are kept.
    #[must_use]
    pub fn from_stored(text: Option<&str>) -> Self {
        let types = text.map(|text| text.split(' ').take(MAX_TYPES).map(str::to_owned).collect());
        Self(types)
    }

    /// The text to store: the types, separated by spaces; `None` for all events.
    #[must_use]
    pub fn to_stored(&self) -> Option<String> {
        self.0.as_ref().map(|types| types.join(" ")).filter(|text| text.len() <= MAX_TEXT)
    }

    /// The types; `None` for all events.
    #[must_use]
    pub fn types(&self) -> Option<&[String]> {
        self.0.as_deref()
    }

    /// Whether events of this type are posted.
    #[must_use]
    pub fn admits(&self, name: &str) -> bool {
        let Some(types) = &self.0 else { return true };
        types.iter().any(|chosen| match chosen.strip_suffix('*') {
            Some(kind) => name.starts_with(kind),
            None => chosen == name,
        })
    }
}

/// The type, unless it may be a secret by mistake.
fn quoted(unknown: &str) -> String {
    let is_plain = unknown.bytes().all(|byte| byte.is_ascii_lowercase() || b"._*".contains(&byte));
    if is_plain && (1..=32).contains(&unknown.len()) {
        format!("type `{unknown}`")
    } else {
        "that type".to_owned()
    }
}

fn is_known(chosen: &str) -> bool {
    match chosen.strip_suffix('*') {
        Some(kind) => kind.ends_with('.') && event_types().any(|name| name.starts_with(kind)),
        None => event_types().any(|name| name == chosen),
    }
}

fn event_types() -> impl Iterator<Item = String> {
    KeyAction::ALL.into_iter().map(|action| event_type(action.as_str()))
}

/// The type of an event by the name of its action: `revoked` is `key.revoked`, `plan_created` is
/// `plan.created`. Also of actions that only a newer release knows.
pub(crate) fn event_type(action: &str) -> String {
    for kind in ["plan", "webhook"] {
        let rest = action.strip_prefix(kind).and_then(|rest| rest.strip_prefix('_'));
        if let Some(rest) = rest {
            return format!("{kind}.{rest}");
        }
    }
    format!("key.{action}")
}

/// What is wrong with an id, a filter or a state of webhooks. Feature `webhooks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidWebhook(String);

impl fmt::Display for InvalidWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for InvalidWebhook {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_named_after_what_the_event_is_about() {
        for (action, name) in [
            (KeyAction::Revoked, "key.revoked"),
            (KeyAction::FirstUse, "key.first_use"),
            (KeyAction::PlanCreated, "plan.created"),
            (KeyAction::WebhookAdded, "webhook.added"),
        ] {
            assert_eq!(event_type(action.as_str()), name);
        }
        assert_eq!(event_type("invented_later"), "key.invented_later");
    }

    #[test]
    fn a_filter_admits_its_types_and_kinds() {
        let filter = EventFilter::parse(["key.revoked", "plan.*"]).unwrap();
        for (name, is_admitted) in [
            ("key.revoked", true),
            ("key.issued", false),
            ("plan.created", true),
            ("key.revoked2", false),
        ] {
            assert_eq!(filter.admits(name), is_admitted, "{name}");
        }
        assert_eq!(EventFilter::from_stored(filter.to_stored().as_deref()), filter);
        assert!(EventFilter::all().admits("key.invented_later"));
        assert_eq!(EventFilter::parse([""; 0]).unwrap(), EventFilter::all());
    }

    #[test]
    fn a_type_that_no_event_has_is_refused_and_the_types_are_named() {
        for unknown in ["key.revokd", "revoked", "key*", "*", "", "user.*"] {
            let error = EventFilter::parse([unknown]).unwrap_err().to_string();
            assert!(error.contains("key.revoked"), "{error}");
        }
        let longest = KeyAction::ALL.map(|action| event_type(action.as_str()));
        assert!(EventFilter::parse(longest).unwrap().to_stored().is_some(), "all types fit");
    }
}

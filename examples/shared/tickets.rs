// Tickets: what a page puts into a URL in place of its key. Each is good once, for 30 seconds, on
// the node that issued it.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::{Query, State},
    response::{IntoResponse, Response, Sse, sse::Event},
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use tower_api_key::{
    ApiKeys, Consumer,
    clock::Clock,
    key::{ApiKey, KeyFormat, KeyHash},
    layer::UntilKeyEnds,
};

const LIFETIME: Duration = Duration::from_secs(30);

/// Unused tickets, of all keys together.
const CAPACITY: usize = 10_000;

pub(crate) struct Tickets {
    format: KeyFormat,
    clock: Box<dyn Clock>,
    /// The consumer of each, and when it was issued.
    unused: Mutex<HashMap<KeyHash, (Consumer, Duration)>>,
}

impl Tickets {
    pub(crate) fn new(format: KeyFormat, clock: impl Clock) -> Self {
        Self { format, clock: Box::new(clock), unused: Mutex::default() }
    }

    /// A ticket for a request that the layer has admitted; `None` if too many are unused.
    pub(crate) fn issue(&self, consumer: Consumer) -> Option<ApiKey> {
        let now = self.clock.monotonic();
        let ticket = self.format.generate().ok()?;
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        if unused.len() >= CAPACITY {
            unused.retain(|_, (_, issued_at)| is_valid(*issued_at, now));
        }
        if unused.len() >= CAPACITY {
            return None;
        }
        unused.insert(ticket.hash(), (consumer, now));
        Some(ticket)
    }

    /// The consumer for whom `ticket` was issued, once.
    pub(crate) fn redeem(&self, ticket: &str) -> Option<Consumer> {
        let now = self.clock.monotonic();
        let hash = self.format.parse(ticket.as_bytes()).ok()?.hash();
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        let (consumer, issued_at) = unused.remove(&hash)?;
        is_valid(issued_at, now).then_some(consumer)
    }
}

fn is_valid(issued_at: Duration, now: Duration) -> bool {
    now.saturating_sub(issued_at) < LIFETIME
}

/// `POST /tickets` needs a key, and `GET /events?ticket=...` a ticket.
pub(crate) fn routes(keys: &ApiKeys, tickets: Tickets) -> Router {
    Router::new()
        .route("/tickets", post(issue))
        .layer(keys.layer())
        .route("/events", get(events))
        .with_state(Arc::new(tickets))
}

async fn issue(State(tickets): State<Arc<Tickets>>, consumer: Consumer) -> Response {
    match tickets.issue(consumer) {
        Some(ticket) => ticket.expose_secret().to_owned().into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn events(
    State(tickets): State<Arc<Tickets>>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let ticket = query.get("ticket").map_or("", String::as_str);
    let Some(consumer) = tickets.redeem(ticket) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let hello = Event::default().data(format!("hello {}", consumer.id()));
    let events = stream::iter([Ok::<_, Infallible>(hello)]).chain(stream::pending());
    // Ends with the key for which the ticket was issued.
    UntilKeyEnds::response(Sse::new(events).into_response(), &consumer).into_response()
}

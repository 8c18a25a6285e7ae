//! A receiver of webhooks on a port of its own.

use std::{
    collections::HashSet,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::HeaderMap,
    response::Response,
};
use http::StatusCode;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::wait::eventually;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The number of the event in the audit, if it has one.
    event: Option<u64>,
}

/// What the receiver does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    Status(u16),
    Redirect(SocketAddr),
    Hang,
    EndlessBody,
}

type Decide = Box<dyn FnMut(&Received) -> Reply + Send>;

#[derive(Clone)]
pub(crate) struct Log {
    received: Arc<Mutex<Vec<Received>>>,
    decide: Arc<Mutex<Decide>>,
}

pub(crate) struct Receiver {
    pub(crate) addr: SocketAddr,
    log: Log,
    server: JoinHandle<()>,
}

impl Received {
    pub(crate) fn id(&self) -> String {
        self.headers["webhook-id"].to_str().unwrap().to_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }

    pub(crate) fn event_id(&self) -> u64 {
        self.event.unwrap()
    }
}

impl Receiver {
    /// A receiver that answers 204.
    pub(crate) async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// A receiver on this socket.
    pub(crate) fn on(listener: TcpListener) -> Self {
        let decide: Decide = Box::new(|_| Reply::Status(204));
        let log = Log { received: Arc::default(), decide: Arc::new(Mutex::new(decide)) };
        let addr = listener.local_addr().unwrap();
        let app = log.router();
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { addr, log, server }
    }

    /// Decides about each request from now on.
    pub(crate) fn replies(&self, decide: impl FnMut(&Received) -> Reply + Send + 'static) {
        *self.log.decide.lock().unwrap() = Box::new(decide);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hooks?token=canary", self.addr)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.log.received()
    }

    /// The ids of events, each where it first arrived.
    pub(crate) fn first_arrivals(&self) -> Vec<u64> {
        let mut seen = HashSet::new();
        let received = self.log.received.lock().unwrap();
        received.iter().filter_map(|it| it.event).filter(|id| seen.insert(*id)).collect()
    }

    /// Waits until this many different events have arrived.
    pub(crate) async fn has(&self, events: usize) {
        eventually(format!("{events} events"), async || self.first_arrivals().len() >= events)
            .await;
    }

    /// Waits until this many requests have arrived.
    pub(crate) async fn has_requests(&self, requests: usize) {
        let what = format!("{requests} requests");
        eventually(what, async || self.received().len() >= requests).await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Log {
    pub(crate) fn new() -> Self {
        let decide: Decide = Box::new(|_| Reply::Status(204));
        Self { received: Arc::default(), decide: Arc::new(Mutex::new(decide)) }
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub(crate) fn router(&self) -> Router {
        Router::new().fallback(receive).with_state(self.clone())
    }
}

async fn receive(State(log): State<Log>, headers: HeaderMap, body: Bytes) -> Response {
    let event = serde_json::from_slice(&body).ok();
    let event = event.and_then(|event: Value| event["data"]["event_id"].as_u64());
    let received = Received { headers, body, event };
    let reply = (log.decide.lock().unwrap())(&received);
    log.received.lock().unwrap().push(received);
    let response = Response::builder();
    match reply {
        Reply::Status(status) => response.status(status).body("said".into()).unwrap(),
        Reply::Redirect(to) => {
            let response = response.status(StatusCode::PERMANENT_REDIRECT);
            response.header("location", format!("http://{to}/")).body(Body::empty()).unwrap()
        }
        Reply::Hang => std::future::pending().await,
        Reply::EndlessBody => {
            let chunk = || Some((Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1024])), ()));
            let endless = futures_util::stream::unfold((), move |()| async move { chunk() });
            response.body(Body::from_stream(endless)).unwrap()
        }
    }
}

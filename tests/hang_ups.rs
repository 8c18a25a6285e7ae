//! Clients that hang up in the middle of a look-up, over real connections.

#![cfg(test)]
#![cfg(all(feature = "axum", feature = "test-util"))]

#[path = "support/app/mod.rs"]
mod app;
#[path = "support/doubles/mod.rs"]
mod doubles;
#[path = "support/raw_store/mod.rs"]
mod raw_store;
#[path = "support/wait/mod.rs"]
mod wait;

use std::{
    net::SocketAddr,
    panic,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::Request, middleware::Next, response::Response, routing::get};
use http::{StatusCode, header::AUTHORIZATION};
use http_body_util::Empty;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer,
    auth::CachePolicy,
    clock::ManualClock,
    key::KeyHash,
    manage::{Expiry, KeyIssuer, NewKey},
};

use crate::doubles::{FakeStore, Key, format, within};

/// The number of panics in this process: a server hides the panics of its tasks.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            default(info);
        }));
    });
}

/// The number of requests in the service at the moment.
#[derive(Clone, Default)]
struct Present(watch::Sender<usize>);

/// Decrements the count when dropped, which is how a server ends the request of a closed
/// connection.
struct Guest(Present);

impl Present {
    fn enter(&self) -> Guest {
        self.0.send_modify(|present| *present += 1);
        Guest(self.clone())
    }

    async fn until(&self, count: usize) {
        within(self.0.subscribe().wait_for(|present| *present == count)).await.unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.0.send_modify(|present| *present -= 1);
    }
}

/// A server in front of a store that can be held.
struct Server {
    address: SocketAddr,
    store: FakeStore,
    present: Present,
}

impl Server {
    async fn with(max_loads: usize) -> Self {
        count_panics();
        let store = FakeStore::new(&ManualClock::default());
        let patient = CachePolicy::default().load_deadline(Duration::from_secs(30)).unwrap();
        let builder = Authenticator::builder(store.clone(), format());
        let (auth, _) = builder.cache(patient.max_loads(max_loads)).build();
        let present = Present::default();
        let guests = present.clone();
        let watched = axum::middleware::from_fn(move |request: Request, next: Next| {
            let guest = guests.enter();
            async move {
                let response: Response = next.run(request).await;
                drop(guest);
                response
            }
        });
        let whoami = async |consumer: Consumer| consumer.id().to_owned();
        let app = Router::new().route("/", get(whoami));
        let app = app.layer(ApiKeyLayer::new(auth)).layer(watched);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, store, present }
    }

    async fn issue(&self, count: usize) -> Vec<Key> {
        let issuer = KeyIssuer::new(self.store.clone(), format());
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            keys.push(Key::from(issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap()));
        }
        keys
    }

    /// A client that has sent a complete request and waits for the response.
    async fn call(&self, key: &Key) -> TcpStream {
        let mut client = within(TcpStream::connect(self.address)).await.unwrap();
        let request =
            format!("GET / HTTP/1.1\r\nhost: api\r\nauthorization: Bearer {}\r\n\r\n", key.text);
        within(client.write_all(request.as_bytes())).await.unwrap();
        client
    }

    async fn answers(&self, key: &Key) {
        let request = http::Request::get(format!("http://{}/", self.address))
            .header(AUTHORIZATION, format!("Bearer {}", key.text))
            .body(Empty::new())
            .unwrap();
        let answer = app::server::http1(self.address, request).await;
        let answer = app::server::collect(answer).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "acme"));
    }

    /// Clients with a key each call and hang up, every other one with a reset, while the store
    /// keeps all of them waiting.
    async fn hang_up(&self, keys: &[Key], queries: usize) {
        let asked = self.store.queries();
        let mut clients = Vec::with_capacity(keys.len());
        for key in keys {
            clients.push(self.call(key).await);
        }
        self.present.until(keys.len()).await;
        self.store.until(|state| state.queries.len() == asked + queries).await;
        for (number, client) in clients.into_iter().enumerate() {
            if number % 2 == 0 {
                client.set_zero_linger().unwrap();
            }
        }
        self.present.until(0).await;
        assert_eq!(self.store.queries(), asked + queries);
    }

    async fn until_answered(&self, count: usize) {
        self.store.until(|state| state.answered == count).await;
    }
}

fn hash(key: &Key) -> &KeyHash {
    &key.record.key_hash
}

const ROUNDS: usize = 4;
const CLIENTS: usize = 256;
/// The maximum number of waiting look-ups per permit.
const QUEUE: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_look_ups_end_without_those_who_asked_for_them() {
    // Every round takes all permits for unknown keys, which are three quarters: a lost one would be
    // noticed.
    let server = Server::with(CLIENTS * 4 / 3).await;
    let mut keys = Vec::new();
    for round in 1..=ROUNDS {
        let of_round = server.issue(CLIENTS).await;
        server.store.hold();
        server.hang_up(&of_round, CLIENTS).await;
        server.store.release();
        server.until_answered(round * CLIENTS).await;
        keys.extend(of_round);
    }
    for key in &keys {
        server.answers(key).await;
        assert_eq!(server.store.queries_for(hash(key)), 1);
    }
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_take_their_turns_when_everybody_who_waits_has_hung_up() {
    let server = Server::with(1).await;
    let keys = server.issue(QUEUE).await;
    server.store.hold();
    server.hang_up(&keys, 1).await;
    server.store.release();
    server.until_answered(QUEUE).await;

    let [next] = &*server.issue(1).await else { panic!("one key") };
    server.answers(next).await;
    for key in keys.iter().chain([next]) {
        server.answers(key).await;
        assert_eq!(server.store.queries_for(hash(key)), 1);
    }
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stays_is_answered_by_the_look_up_that_others_have_left() {
    let server = Server::with(1).await;
    let keys = server.issue(1).await;
    let key = &keys[0];
    server.store.hold();
    let of_one_key = vec![key.clone(); CLIENTS];
    server.hang_up(&of_one_key, 1).await;
    let mut stays = Box::pin(server.answers(key));
    tokio::select! {
        () = &mut stays => panic!("the store has not answered yet"),
        () = server.present.until(1) => {}
    }
    server.store.release();
    stays.await;
    assert_eq!(server.store.queries_for(hash(key)), 1);
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}

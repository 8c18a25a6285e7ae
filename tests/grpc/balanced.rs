//! A client of tonic that balances its calls over two servers.

use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tower_api_key::{auth::RejectionKind, clock::ManualClock};

use crate::{
    cases::reader,
    doubles::{Answers, DOWN, FakeStore, Said, Service, unknown_key, within},
    orders::{Host, Running, serve},
    raw_store::ByHand as _,
    tonic_client::Client,
};

struct Server {
    service: Service,
    running: Running,
}

impl Server {
    async fn start(store: &FakeStore, clock: &ManualClock) -> Self {
        let (service, _) = Service::around(store.clone(), clock.clone(), |builder| builder);
        Self { running: serve(Host::Axum, &service.auth).await, service }
    }

    fn admitted(&self) -> usize {
        *self.running.totals.borrow()
    }

    fn rejected(&self, kind: RejectionKind) -> usize {
        let is_kind = |said: &Said| matches!(said, Said::Rejected(its, _) if *its == kind);
        self.service.heard.count_by(is_kind)
    }
}

/// Makes `call` until each server has received it.
async fn each_receives(
    servers: &[Server; 2],
    received: impl Fn(&Server) -> usize,
    call: impl AsyncFn(),
) {
    let before = servers.each_ref().map(&received);
    within(async {
        while servers.iter().zip(before).any(|(server, before)| received(server) == before) {
            call().await;
        }
    })
    .await;
}

#[tokio::test]
async fn each_server_rejects_alike_and_receives_the_next_calls() {
    let clock = ManualClock::default();
    let store = FakeStore::new(&clock);
    let servers = [Server::start(&store, &clock).await, Server::start(&store, &clock).await];
    let endpoints = servers
        .each_ref()
        .map(|server| Endpoint::from_shared(format!("http://{}", server.running.address)).unwrap());
    let channel = Channel::balance_list(endpoints.into_iter());
    let with_key =
        |key: &str| Client::over(channel.clone(), &[("authorization", format!("Bearer {key}"))]);
    let key = servers[0].service.issue_new(reader()).await;
    let client = with_key(&key.text);
    let is_admitted = async || {
        let total = async || assert_eq!(client.total(&["1"]).await.unwrap().cents, 1);
        each_receives(&servers, Server::admitted, total).await;
    };
    let is_rejected = async |client: &dyn Fn() -> Client, kind, code| {
        let get = async || assert_eq!(client().get().await.unwrap_err().code(), code);
        each_receives(&servers, |server| server.rejected(kind), get).await;
        is_admitted().await;
    };
    is_admitted().await;

    let without_scope = servers[0].service.issue("acme").await;
    for (key, kind, code) in [
        ("hello", RejectionKind::Malformed, Code::Unauthenticated),
        (&without_scope.text, RejectionKind::InsufficientScope, Code::PermissionDenied),
    ] {
        is_rejected(&|| with_key(key), kind, code).await;
    }
    store.answer(DOWN);
    let kind = RejectionKind::StoreUnavailable;
    is_rejected(&|| with_key(&unknown_key()), kind, Code::Unavailable).await;
    store.answer(Answers::Truthfully);

    // A key that both servers have in their cache.
    let revoked = servers[0].service.issue_new(reader()).await;
    let client = with_key(&revoked.text);
    let total = async || assert_eq!(client.total(&["1"]).await.unwrap().cents, 1);
    each_receives(&servers, Server::admitted, total).await;
    store.revoke(revoked.record.id, None).await.unwrap();
    for server in &servers {
        server.service.auth.invalidate(&revoked.record.key_hash);
    }
    is_rejected(&|| with_key(&revoked.text), RejectionKind::Revoked, Code::Unauthenticated).await;

    for server in &servers {
        assert_eq!(*server.running.connections.borrow(), 1, "no call broke a connection");
    }
}

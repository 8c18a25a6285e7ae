//! Keys that work only from some networks, and publishable keys.

use std::{
    env, io,
    net::IpAddr,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, header::ORIGIN};
use tower::{Layer as _, Service as _};
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    auth::{Event, RejectionKind},
    key::KeyHash,
    layer::{ClientAddress, PeerAddr},
    manage::{Expiry, KeyUpdate, NewKey},
    rate_limit::Quota,
    record::{KeyKind, KeyRecord, Networks, WebOrigins},
    store::{KeyStore, ManageKeys as _, StoreError, port::UsageBatch},
};
use tracing_subscriber::fmt::MakeWriter;

use crate::app::{Answer, App, Handler, Keys, format, text, with_key};

const SHOP: &str = "https://shop.example";

fn from(networks: &[&str]) -> NewKey {
    NewKey::new("acme", Expiry::Never).networks(Networks::parse(networks).unwrap())
}

fn publishable(origins: &[&str]) -> NewKey {
    let origins = WebOrigins::parse(origins.iter().copied()).unwrap();
    NewKey::new("acme", Expiry::Never).publishable(origins)
}

async fn key(keys: &Keys, new: NewKey) -> String {
    text(&keys.issue(new).await)
}

/// A request of a connection from `peer`.
fn from_peer(key: &str, peer: &str) -> Request<Body> {
    let mut request = with_key(key);
    request.extensions_mut().insert(PeerAddr(peer.parse().unwrap()));
    request
}

fn with_headers(key: &str, name: &'static str, lines: &[&str]) -> Request<Body> {
    let mut request = with_key(key);
    for line in lines {
        request.headers_mut().append(name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
    }
    request
}

#[track_caller]
fn is_forbidden(answer: &Answer, kind: RejectionKind, code: &str) {
    assert_eq!(answer.kind(), Some(kind), "{}", answer.wire());
    assert_eq!(answer.status, 403);
    assert_eq!(answer.json()["code"], code);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.challenge(), None, "other credentials are not asked for");
}

#[track_caller]
fn is_of_network(answer: &Answer) {
    is_forbidden(answer, RejectionKind::NetworkNotAllowed, "network_not_allowed");
}

#[track_caller]
fn is_of_origin(answer: &Answer) {
    is_forbidden(answer, RejectionKind::OriginNotAllowed, "origin_not_allowed");
}

#[tokio::test]
async fn a_key_with_networks_works_from_these_alone() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()).client_address(ClientAddress::peer()));
    let key = key(&keys, from(&["192.0.2.0/24", "2001:db8:7::/48", "198.51.100.7"])).await;
    // The first request is a look-up, the second uses the cache, the others the hot table.
    for _ in 0..3 {
        for inside in [
            "192.0.2.0",
            "192.0.2.255",
            "::ffff:192.0.2.1",
            "2001:db8:7::1",
            "198.51.100.7",
            "::ffff:198.51.100.7",
        ] {
            let answer = app.send(from_peer(&key, inside)).await;
            assert_eq!(answer.status, 200, "{inside}: {}", answer.wire());
        }
        for outside in [
            "192.0.3.0",
            "2001:db8:8::1",
            "198.51.100.8",
            "::192.0.2.1",
            "64:ff9b::192.0.2.1",
            "::ffff:198.51.100.8",
            "127.0.0.1",
            "::1",
        ] {
            is_of_network(&app.send(from_peer(&key, outside)).await);
        }
    }
    assert_eq!(app.calls(), 18, "the handler sees the others only");
}

#[tokio::test]
async fn the_first_request_from_elsewhere_is_refused_as_well() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()).client_address(ClientAddress::peer()));
    let key = key(&keys, from(&["192.0.2.0/24"])).await;
    is_of_network(&app.send(from_peer(&key, "198.51.100.1")).await);
    assert_eq!((app.calls(), keys.queries()), (0, 1));
}

/// A store of one's own with one key, which no check of this crate has seen.
struct Lax(KeyRecord);

impl KeyStore for Lax {
    async fn find(&self, _: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        Ok(Some(self.0.clone()))
    }

    async fn record_usage(&self, _: &UsageBatch) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_publishable_key_without_origins_and_a_secret_one_with_origins_are_held_to_them() {
    let keys = Keys::new();
    let issued = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    let key = text(&issued);
    let origins = WebOrigins::parse([SHOP]).unwrap();
    for (kind, origins, works) in [
        (KeyKind::Publishable, WebOrigins::default(), false),
        (KeyKind::Secret, origins.clone(), true),
        (KeyKind::Publishable, origins, true),
    ] {
        let mut record = issued.record.clone();
        (record.kind, record.origins) = (kind, origins);
        let builder = Authenticator::builder(Lax(record), format());
        let app = App::new(ApiKeyLayer::new(builder.clock(keys.clock.clone()).build().0));
        for _ in 0..3 {
            is_of_origin(&app.get(&key).await);
            is_of_origin(&app.send(with_headers(&key, "origin", &["null"])).await);
            let answer = app.send(with_headers(&key, "origin", &[SHOP])).await;
            assert_eq!(answer.status.is_success(), works, "{kind}: {}", answer.wire());
        }
    }
}

#[tokio::test]
async fn behind_proxies_the_address_is_the_one_that_the_outermost_saw() {
    let keys = Keys::new();
    let key = key(&keys, from(&["192.0.2.0/24", "2001:db8:7::/48"])).await;
    let auth = keys.auth();
    let app = |address| App::new(ApiKeyLayer::new(auth.clone()).client_address(address));
    let lists: [(_, &'static str, &[&str], bool); 18] = [
        (ClientAddress::x_forwarded_for(1), "x-forwarded-for", &["192.0.2.9"], true),
        (ClientAddress::x_forwarded_for(1), "x-forwarded-for", &["::ffff:192.0.2.9"], true),
        (ClientAddress::x_forwarded_for(1), "x-forwarded-for", &["[2001:db8:7::9]:1"], true),
        (ClientAddress::x_forwarded_for(1), "x-forwarded-for", &["203.0.113.9"], false),
        (ClientAddress::x_forwarded_for(1), "x-forwarded-for", &["192.0.2.9, 203.0.113.9"], false),
        (ClientAddress::x_forwarded_for(2), "x-forwarded-for", &["192.0.2.9, 203.0.113.9"], true),
        (ClientAddress::x_forwarded_for(2), "x-forwarded-for", &["192.0.2.9", "203.0.113.9"], true),
        (ClientAddress::x_forwarded_for(2), "x-forwarded-for", &["192.0.2.9"], false),
        (
            ClientAddress::x_forwarded_for(2),
            "x-forwarded-for",
            &["192.0.2.9, 198.51.100.1, 203.0.113.9"],
            false,
        ),
        (ClientAddress::forwarded(1), "forwarded", &["for=192.0.2.9;proto=https"], true),
        (ClientAddress::forwarded(1), "forwarded", &["for=\"[2001:db8:7::9]:4711\""], true),
        (ClientAddress::forwarded(1), "forwarded", &["for=\"[::ffff:192.0.2.9]\""], true),
        (ClientAddress::forwarded(1), "forwarded", &["for=192.0.2.9, for=203.0.113.9"], false),
        (ClientAddress::forwarded(2), "forwarded", &["for=192.0.2.9, for=203.0.113.9"], true),
        (ClientAddress::forwarded(2), "forwarded", &["for=192.0.2.9", "for=203.0.113.9"], true),
        (ClientAddress::forwarded(2), "forwarded", &["for=192.0.2.9"], false),
        (ClientAddress::forwarded(1), "forwarded", &["for=unknown"], false),
        // The layer reads the header that it was told of.
        (ClientAddress::forwarded(1), "x-forwarded-for", &["192.0.2.9"], false),
    ];
    for (address, name, lines, is_inside) in lists {
        let answer = app(address).send(with_headers(&key, name, lines)).await;
        if is_inside {
            assert_eq!(answer.status, 200, "{address:?} {lines:?}: {}", answer.wire());
        } else {
            is_of_network(&answer);
        }
    }
}

#[tokio::test]
async fn without_a_known_address_no_key_with_networks_gets_in_and_the_log_says_why() {
    let keys = Keys::new();
    let networked = keys.issue(from(&["0.0.0.0/0", "::/0"])).await;
    let (id, secret) = (networked.record.id.to_string(), text(&networked));
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
    let _guard =
        tracing::subscriber::set_default(subscriber.with_env_filter("tower_api_key=warn").finish());
    let refused = |line: &str| line.contains("WARN") && line.contains("key refused");

    let app = App::new(ApiKeyLayer::new(keys.auth()));
    is_of_network(&app.send(from_peer(&secret, "192.0.2.1")).await);
    let said = log.take();
    assert!(refused(&said) && said.contains(&id), "{said}");
    assert!(said.contains("set `ApiKeyLayer::client_address`"), "{said}");

    let app = App::new(ApiKeyLayer::new(keys.auth()).client_address(ClientAddress::peer()));
    is_of_network(&app.get(&secret).await);
    let said = log.take();
    assert!(refused(&said) && said.contains(&id), "{said}");
    assert!(said.contains("the request has no trusted address"), "{said}");
    assert_eq!(app.send(from_peer(&secret, "192.0.2.1")).await.status, 200);

    let narrow = keys.issue(from(&["10.0.0.0/8"])).await;
    for _ in 0..100 {
        is_of_network(&app.send(from_peer(&text(&narrow), "192.0.2.1")).await);
    }
    let said = log.take();
    assert_eq!(said.lines().count(), 1, "once a minute: {said}");
    assert!(said.contains(&narrow.record.id.to_string()), "{said}");
    assert!(said.contains("192.0.2.1") && said.contains("in none of its networks"), "{said}");
    assert!(!said.contains("10.0.0.0"), "{said}");
    keys.clock.advance(Duration::from_secs(60));
    is_of_network(&app.send(from_peer(&text(&narrow), "198.51.100.1")).await);
    assert!(log.take().contains("repeated=99"));
    // A key without networks works with any of these layers.
    assert_eq!(app.get(&keys.key().await).await.status, 200);
}

#[tokio::test]
async fn a_refused_request_is_neither_charged_nor_a_use_and_is_observed() {
    let keys = Keys::new();
    let observed = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&observed);
    let observer = move |event: &Event<'_>| {
        if let Event::Rejected { kind, key_id, .. } = event {
            seen.lock().unwrap().push((*kind, *key_id));
        }
    };
    let (auth, worker) = keys.builder().observer(observer).build();
    let app = App::new(ApiKeyLayer::new(auth).client_address(ClientAddress::peer()));
    let new = from(&["192.0.2.0/24"]).rate_limits(Quota::per_minute(2).unwrap());
    let issued = keys.issue(new).await;
    let key = text(&issued);
    for _ in 0..20 {
        is_of_network(&app.send(from_peer(&key, "198.51.100.1")).await);
    }
    worker.run(std::future::ready(())).await;
    let last_used = keys.store.memory.last_used_at(issued.record.id).await.unwrap();
    assert_eq!(last_used, None);
    for left in ["1", "0"] {
        let answer = app.send(from_peer(&key, "192.0.2.1")).await;
        assert_eq!(answer.status, 200);
        assert!(answer.header("ratelimit").unwrap().contains(&format!("r={left}")));
    }
    assert_eq!(app.send(from_peer(&key, "192.0.2.1")).await.status, 429);
    let observed = observed.lock().unwrap();
    let expected = (RejectionKind::NetworkNotAllowed, Some(issued.record.id));
    assert_eq!(observed.iter().filter(|seen| **seen == expected).count(), 20);
}

#[tokio::test]
async fn failures_are_throttled_only_where_that_was_asked_for() {
    let keys = Keys::new();
    let key = key(&keys, from(&["192.0.2.0/24"])).await;
    let throttled = ApiKeyLayer::new(keys.auth()).throttle_failures(ClientAddress::peer());
    assert_eq!(App::new(throttled).send(from_peer(&key, "192.0.2.1")).await.status, 200);

    let told = App::new(ApiKeyLayer::new(keys.auth()).client_address(ClientAddress::peer()));
    for _ in 0..200 {
        let answer = told.send(from_peer(&crate::app::unknown_key(), "192.0.2.1")).await;
        assert_ne!(answer.kind(), Some(RejectionKind::TooManyFailures));
    }
}

#[tokio::test]
async fn a_change_of_networks_applies_at_once_where_it_is_made() {
    let keys = Keys::new();
    let auth = keys.auth();
    let issuer = auth.issuer(keys.store.memory.clone());
    let app = App::new(ApiKeyLayer::new(auth).client_address(ClientAddress::peer()));
    let issued = issuer.issue(from(&["192.0.2.0/24"])).await.unwrap();
    let key = text(&issued);
    let statuses = async || {
        let mut statuses = Vec::new();
        for peer in ["192.0.2.1", "198.51.100.1"] {
            statuses.push(app.send(from_peer(&key, peer)).await.status.as_u16());
        }
        statuses
    };
    assert_eq!(statuses().await, [200, 403]);
    for (networks, expected) in
        [(&["198.51.100.0/24"][..], [403, 200]), (&[], [200, 200]), (&["192.0.2.1"], [200, 403])]
    {
        let update = KeyUpdate::new().networks(Networks::parse(networks).unwrap());
        issuer.update(issued.record.id, update).await.unwrap();
        assert_eq!(statuses().await, expected, "{networks:?}");
    }
}

#[tokio::test]
async fn a_check_without_a_layer_is_told_the_address_and_the_origin() {
    let keys = Keys::new();
    let auth = keys.auth();
    let (networked, public) =
        (key(&keys, from(&["192.0.2.0/24"])).await, key(&keys, publishable(&[SHOP])).await);
    let [inside, outside] = ["192.0.2.1", "198.51.100.1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    for _ in 0..3 {
        let check = || auth.check(networked.as_bytes());
        check().address(inside).await.unwrap();
        for refused in [check(), check().address(outside), check().from(inside)] {
            let rejection = refused.await.unwrap_err();
            assert_eq!(rejection.kind(), RejectionKind::NetworkNotAllowed);
            assert_eq!(rejection.retry_after(), None);
        }
        let check = || auth.check(public.as_bytes());
        check().origin(SHOP.as_bytes()).await.unwrap();
        for refused in [check(), check().origin(b"https://other.example"), check().origin(b"")] {
            let rejection = refused.await.unwrap_err();
            assert_eq!(rejection.kind(), RejectionKind::OriginNotAllowed);
        }
    }
}

#[tokio::test]
async fn a_publishable_key_works_for_its_origins_alone() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()));
    let key = key(&keys, publishable(&[SHOP, "http://localhost:3000"])).await;
    let long = format!("https://{}", "a".repeat(10_000));
    for _ in 0..3 {
        for origin in [SHOP, "http://localhost:3000"] {
            let answer = app.send(with_headers(&key, "origin", &[origin])).await;
            assert_eq!(answer.status, 200, "{origin}: {}", answer.wire());
            assert_eq!(vary(&answer.headers), ["Origin", "Authorization"]);
        }
        for origins in [
            &[][..],
            &[""],
            &["null"],
            &["*"],
            &["https://shop.example/"],
            &["HTTPS://SHOP.EXAMPLE"],
            &["https://shop.example.attacker.example"],
            &["https://attacker.example"],
            &["http://shop.example"],
            &["https://shop.example:444"],
            &["http://localhost:3001"],
            &["https://shop.example https://attacker.example"],
            &[SHOP, SHOP],
            &[SHOP, "https://attacker.example"],
            &[&long],
        ] {
            let answer = app.send(with_headers(&key, "origin", origins)).await;
            is_of_origin(&answer);
            assert_eq!(vary(&answer.headers), ["Origin", "Authorization"]);
        }
    }
    // Other headers do not stand in for `Origin`.
    is_of_origin(&app.send(with_headers(&key, "referer", &[SHOP])).await);
    // A secret key works with any origin, and its responses do not depend on it.
    let secret = keys.key().await;
    let answer = app.send(with_headers(&secret, "origin", &["https://attacker.example"])).await;
    assert_eq!((answer.status.as_u16(), vary(&answer.headers)), (200, vec!["Authorization"]));
}

#[tokio::test]
async fn a_publishable_key_with_networks_needs_both() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()).client_address(ClientAddress::peer()));
    let new = publishable(&[SHOP]).networks(Networks::parse(["192.0.2.0/24"]).unwrap());
    let key = key(&keys, new).await;
    let send = async |peer: &str, origin: &'static str| {
        let mut request = from_peer(&key, peer);
        request.headers_mut().insert(ORIGIN, HeaderValue::from_static(origin));
        app.send(request).await
    };
    assert_eq!(send("192.0.2.1", SHOP).await.status, 200);
    is_of_network(&send("198.51.100.1", SHOP).await);
    is_of_origin(&send("192.0.2.1", "https://other.example").await);
    is_of_network(&send("198.51.100.1", "https://other.example").await);
}

fn vary(headers: &HeaderMap) -> Vec<&str> {
    headers.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect()
}

/// What a client writes in front of the addresses of proxies. A fixed sequence.
struct Hostile(u64);

impl Hostile {
    /// splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// A value that HTTP allows, made of what could confuse a parser, and of addresses that the key
    /// works from.
    fn value(&mut self) -> Vec<u8> {
        const PIECES: [&[u8]; 28] = [
            b"192.0.2.1",
            b"192.0.2.1:80",
            b"::ffff:192.0.2.1",
            b"[2001:db8:7::1]",
            b"203.0.113.1",
            b"for=192.0.2.1",
            b"for=\"[2001:db8:7::1]:1\"",
            b"For=\"192.0.2.1",
            b"for=unknown",
            b"by=",
            b",",
            b", ",
            b";",
            b"\"",
            b"\\",
            b"\\\"",
            b"\\\\",
            b"\t",
            b" ",
            b"=",
            b"[",
            b"]",
            b":",
            b"/24",
            b"\x80\xff",
            b"null",
            b"%2C",
            b"for=192.0.2.1,",
        ];
        let mut value = Vec::new();
        for _ in 0..self.below(8) {
            value.extend_from_slice(PIECES[self.below(PIECES.len())]);
        }
        value
    }
}

/// One per request; set `HOSTILE_PREFIXES=10000000` for the large run.
#[tokio::test]
async fn whatever_a_client_writes_into_forwarding_headers_changes_nothing() {
    let count = env::var("HOSTILE_PREFIXES").map_or(20_000, |count| count.parse::<u64>().unwrap());
    let keys = Keys::new();
    let auth: Authenticator = keys.auth();
    let key = key(&keys, from(&["192.0.2.0/24", "2001:db8:7::/48"])).await;
    let warm = auth.check(key.as_bytes()).address("192.0.2.1".parse().unwrap());
    warm.await.unwrap();
    let mut services = [
        ("forwarded", ClientAddress::forwarded(1)),
        ("forwarded", ClientAddress::forwarded(2)),
        ("x-forwarded-for", ClientAddress::x_forwarded_for(1)),
        ("x-forwarded-for", ClientAddress::x_forwarded_for(2)),
    ]
    .map(|(name, address)| {
        let layer = ApiKeyLayer::new(auth.clone()).client_address(address);
        (name, layer.layer(Handler::default()))
    });
    // What the outermost proxy saw, and what the inner one appends.
    let clients = ["192.0.2.200", "203.0.113.7", "2001:db8:7:9::1", "2001:db8:8::1"];
    let mut hostile = Hostile(7);
    for number in 0..count {
        let at = hostile.below(services.len());
        let (name, service) = &mut services[at];
        let client = clients[hostile.below(clients.len())];
        let element = |address: &str| match (*name, address.contains(':')) {
            ("forwarded", true) => format!("for=\"[{address}]\""),
            ("forwarded", false) => format!("for={address}"),
            _ => address.to_owned(),
        };
        let mut added = element(client);
        if at % 2 == 1 {
            // The proxy in between is in the networks of the key: its address must not count.
            added = format!("{added}, {}", element("192.0.2.77"));
        }
        let mut request = with_key(&key);
        for _ in 0..hostile.below(3) {
            let line = HeaderValue::from_bytes(&hostile.value()).unwrap();
            request.headers_mut().append(*name, line);
        }
        let mut last = hostile.value();
        last.extend_from_slice(b", ");
        last.extend_from_slice(added.as_bytes());
        let line = HeaderValue::from_bytes(&last).unwrap();
        request.headers_mut().append(*name, line.clone());
        let mut response = Box::pin(service.call(request));
        let Poll::Ready(Ok(response)) =
            response.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("a cached key is decided at once");
        };
        let is_inside = client == clients[0] || client == clients[2];
        let expected = if is_inside { 200 } else { 403 };
        assert_eq!(response.status(), expected, "{number}: {name} {line:?}");
    }
}

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

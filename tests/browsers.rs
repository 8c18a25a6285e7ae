//! Pages in a real browser: WebSockets, requests to another origin, and event streams.

#![cfg(test)]
#![cfg(all(feature = "axum", feature = "test-util", feature = "ws"))]

#[path = "support/chromium/mod.rs"]
mod chromium;
#[path = "../examples/shared/tickets.rs"]
mod tickets;
#[path = "support/wait/mod.rs"]
mod wait;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, WebSocketUpgrade, ws::WebSocket},
    middleware::{Next, from_fn},
    response::{Html, Response},
    routing::{any, get, post},
};
use http::{HeaderName, Method, StatusCode, header::AUTHORIZATION};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tower_api_key::{
    Consumer,
    clock::{ManualClock, SystemClock},
    key::KeyFormat,
    layer::websocket::until_key_ends,
    rate_limit::Quota,
    record::WebOrigins,
    test_util::TestKeys,
};
use tower_http::cors::{Any, CorsLayer};

use crate::{chromium::Chromium, tickets::Tickets, wait::PATIENCE};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What each script can use. A page says one thing after the other.
const HELPERS: &str = r#"
let last = Promise.resolve();
const say = (...what) =>
    last = last.then(() => fetch("/said", { method: "POST", body: JSON.stringify(what) }));
addEventListener("error", event => say("error", event.message));
addEventListener("unhandledrejection", event => say("error", String(event.reason)));

// What a page sees of an attempt to open a WebSocket: its protocol, or an error and a code.
const attempt = (url, protocols) => new Promise(resolve => {
    const socket = new WebSocket(url, protocols);
    const seen = [];
    socket.onopen = () => { resolve(["open", socket.protocol]); socket.close(); };
    socket.onerror = () => seen.push("error");
    socket.onclose = event => resolve([...seen, event.code]);
});

// What a page sees of a request.
const request = async (url, key, ...names) => {
    try {
        const response = await fetch(url, { headers: { authorization: `Bearer ${key}` } });
        const said = response.ok ? await response.text() : (await response.json()).code;
        return [response.status, said, ...names.map(name => response.headers.get(name))];
    } catch (error) {
        return [error.name];
    }
};
"#;

/// A page in a browser.
struct Page {
    browser: Chromium,
    said: mpsc::UnboundedReceiver<Value>,
}

impl Page {
    /// Serves a page with `script` beside `app`, and opens it.
    async fn open(app: Router, script: &str) -> Self {
        Self::open_on(listen().await, app, script)
    }

    fn open_on(listener: TcpListener, app: Router, script: &str) -> Self {
        let (say, said) = mpsc::unbounded_channel();
        let page = format!("<!doctype html><script type=\"module\">{HELPERS}{script}</script>");
        let hear = async move |body: String| {
            let _ = say.send(serde_json::from_str(&body).unwrap());
        };
        let pages = Router::new()
            .route("/", get(async || Html(page)))
            .route("/said", post(hear))
            .route("/favicon.ico", get(async || StatusCode::NO_CONTENT));
        let address = serve(listener, app.merge(pages));
        Self { browser: Chromium::open(&format!("http://{address}/")), said }
    }

    /// Waits for what the page says next.
    #[track_caller]
    fn says(&mut self, expected: Value) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let said = timeout(2 * PATIENCE, self.said.recv()).await;
            let said = said.unwrap_or_else(|_| {
                panic!("{caller}: the page says nothing: {}", self.browser.log())
            });
            assert_eq!(said, Some(expected), "{caller}");
        }
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn serve(listener: TcpListener, app: Router) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    address
}

/// Echoes until the key ends.
async fn echo(upgrade: WebSocketUpgrade, consumer: Consumer) -> Response {
    upgrade.protocols(["chat.v1"]).on_upgrade(async move |socket| {
        until_key_ends(socket, &consumer, async |socket: &mut WebSocket| {
            while let Some(Ok(message)) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    break;
                }
            }
        })
        .await;
    })
}

#[tokio::test]
async fn a_page_opens_a_websocket_by_its_key_and_sees_it_close_when_the_key_ends() {
    let keys = TestKeys::new();
    let key = keys.issue("acme").await;
    let app = Router::new().route("/echo", any(echo)).layer(keys.layer().also_websocket_protocol());
    let script = r#"
        const socket = new WebSocket(`ws://${location.host}/echo`, ["bearer", "KEY", "chat.v1"]);
        socket.onopen = () => { say("open", socket.protocol); socket.send("hello"); };
        socket.onmessage = event => say("message", event.data);
        socket.onclose = event => say("close", event.code, event.reason, event.wasClean);
    "#;
    let mut page = Page::open(app, &script.replace("KEY", key.expose_secret())).await;
    page.says(json!(["open", "chat.v1"])).await;
    page.says(json!(["message", "hello"])).await;
    keys.revoke(&key).await;
    page.says(json!(["close", 1008, "authorization ended", true])).await;
}

#[tokio::test]
async fn a_page_sees_an_error_where_no_websocket_opens() {
    let keys = TestKeys::new();
    let (key, unknown) = (keys.issue("acme").await, TestKeys::new().issue("acme").await);
    let statuses = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&statuses);
    let note = from_fn(move |request: Request, next: Next| {
        let noted = Arc::clone(&noted);
        async move {
            let response = next.run(request).await;
            noted.lock().unwrap().push(response.status().as_u16());
            response
        }
    });
    let app = Router::new()
        .route("/echo", any(echo))
        .layer(keys.layer().also_websocket_protocol())
        .layer(note);
    let script = r#"
        const url = `ws://${location.host}/echo`;
        for (const protocols of [
            ["bearer", "KEY", "chat.v1"],
            ["bearer", "UNKNOWN", "chat.v1"],
            ["chat.v1"],
            ["chat.v1", "KEY"],
            ["bearer", "KEY"],
            ["bearer", "KEY", "chat.v9"],
        ]) say(...await attempt(url, protocols));
        try { new WebSocket(url, ["bearer", "a/b", "chat.v1"]); } catch (error) { say(error.name); }
        try { new WebSocket(url, ["bearer", "a=", "chat.v1"]); } catch (error) { say(error.name); }
    "#;
    let script = script.replace("UNKNOWN", unknown.expose_secret());
    let mut page = Page::open(app, &script.replace("KEY", key.expose_secret())).await;
    page.says(json!(["open", "chat.v1"])).await;
    for _ in 0..5 {
        page.says(json!(["error", 1006])).await;
    }
    for _ in 0..2 {
        page.says(json!(["SyntaxError"])).await;
    }
    // The handler selects none of the protocols of the last one.
    assert_eq!(*statuses.lock().unwrap(), [101, 401, 401, 400, 400, 101]);
}

#[tokio::test]
async fn a_publishable_key_works_in_pages_of_its_origin() {
    let keys = TestKeys::new();
    let listener = listen().await;
    let origins = WebOrigins::parse([format!("http://{}", listener.local_addr().unwrap())]);
    let origins = origins.unwrap();
    let key = keys.issue("acme").with(|new| new.publishable(origins)).await;
    let preflights = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&preflights);
    let note = from_fn(move |request: Request, next: Next| {
        if request.method() == Method::OPTIONS {
            noted.lock().unwrap().push(request.headers().contains_key(AUTHORIZATION));
        }
        next.run(request)
    });
    let app = Router::new()
        .route("/name", get(name))
        .route("/echo", any(echo))
        .layer(keys.layer().also_websocket_protocol())
        .layer(CorsLayer::new().allow_origin(Any).allow_headers([AUTHORIZATION]))
        .layer(note);
    let api = serve(listen().await, app.clone());
    let script = r#"
        const open = server => attempt(`ws://${server}/echo`, ["bearer", "KEY", "chat.v1"]);
        say(location.hostname, await request("http://API/name", "KEY"), await open("API"));
        say(await request("/name", "KEY"), await open(location.host));
        await last;
        // The same page, of another origin.
        if (location.hostname === "127.0.0.1") location.hostname = "localhost";
    "#;
    let script = script.replace("KEY", key.expose_secret()).replace("API", &api.to_string());
    let mut page = Page::open_on(listener, app, &script);
    page.says(json!(["127.0.0.1", [200, "acme"], ["open", "chat.v1"]])).await;
    assert!(!preflights.lock().unwrap().is_empty());
    // A `GET` to a page's own origin has no `Origin`; a WebSocket handshake always has it.
    page.says(json!([[403, "origin_not_allowed"], ["open", "chat.v1"]])).await;
    page.says(json!(["localhost", [403, "origin_not_allowed"], ["error", 1006]])).await;
    page.says(json!([[403, "origin_not_allowed"], ["error", 1006]])).await;
    assert!(preflights.lock().unwrap().iter().all(|has_key| !has_key));
}

async fn name(consumer: Consumer) -> String {
    consumer.id().to_owned()
}

#[tokio::test]
async fn a_page_of_another_origin_reads_what_cors_around_the_layer_lets_it_read() {
    let quota = Quota::per_minute(600).unwrap();
    let keys = TestKeys::with(|keys| keys.default_rate_limits(quota));
    let key = keys.issue("acme").await;
    let cors = || CorsLayer::new().allow_origin(Any).allow_headers([AUTHORIZATION]);
    let name = || Router::new().route("/", get(name));
    let app = Router::new()
        .nest("/outside", name().layer(keys.layer()).layer(cors()))
        .nest("/inside", name().layer(cors()).layer(keys.layer()))
        .nest("/passed", name().layer(cors()).layer(keys.layer().pass_preflight(true)))
        .nest("/exposed", name().layer(keys.layer()).layer(cors().expose_headers([POLICY])));
    let api = serve(listen().await, app);
    let policy = r#""minute";q=600;w=60"#;
    let script = r#"
        for (const route of ["outside", "inside", "passed", "exposed"])
            for (const key of ["KEY", "wrong"])
                say(route, await request(`http://API/${route}`, key, "ratelimit-policy"));
    "#;
    let script = script.replace("KEY", key.expose_secret()).replace("API", &api.to_string());
    let mut page = Page::open(Router::new(), &script).await;
    for (route, good, wrong) in [
        ("outside", json!([200, "acme", null]), json!([401, "invalid_api_key", null])),
        ("inside", json!(["TypeError"]), json!(["TypeError"])),
        // The preflight passes, and the rejection has no header of the layer inside.
        ("passed", json!([200, "acme", null]), json!(["TypeError"])),
        ("exposed", json!([200, "acme", policy]), json!([401, "invalid_api_key", null])),
    ] {
        page.says(json!([route, good])).await;
        page.says(json!([route, wrong])).await;
    }
}

#[tokio::test]
async fn a_ticket_opens_one_event_stream_which_ends_with_the_key() {
    let keys = TestKeys::new();
    let key = keys.issue("acme").await;
    let app = tickets::routes(
        &keys,
        Tickets::new(KeyFormat::new("ticket_").unwrap(), SystemClock::new()),
    );
    let script = r#"
        const open = url => {
            const events = new EventSource(url);
            events.onmessage = event => { say(event.data); open(url); };
            events.onerror = () => say("error", events.readyState);
        };
        const headers = { authorization: "Bearer KEY" };
        const response = await fetch("/tickets", { method: "POST", headers });
        const url = `/events?ticket=${await response.text()}`;
        open(url);
    "#;
    let mut page = Page::open(app, &script.replace("KEY", key.expose_secret())).await;
    page.says(json!(["hello acme"])).await;
    let (connecting, closed) = (0, 2);
    page.says(json!(["error", closed])).await;
    keys.revoke(&key).await;
    // The browser tries again, with the same ticket.
    page.says(json!(["error", connecting])).await;
    page.says(json!(["error", closed])).await;
}

#[tokio::test]
async fn a_ticket_is_good_once_and_for_30_seconds() {
    let key = TestKeys::new().issue("acme").await;
    let consumer = || Consumer::for_test(key.record().clone());
    let clock = ManualClock::default();
    let tickets = || Tickets::new(KeyFormat::new("ticket_").unwrap(), clock.clone());
    let (here, elsewhere) = (tickets(), tickets());
    let issue = || here.issue(consumer()).map(|ticket| ticket.expose_secret().to_owned());
    let [first, second, third] = [(); 3].map(|()| issue().unwrap());
    assert!(here.redeem("").is_none() && here.redeem(key.expose_secret()).is_none());
    assert!(elsewhere.redeem(&third).is_none());
    clock.advance(Duration::from_millis(29_999));
    assert_eq!(here.redeem(&first).unwrap().id(), "acme");
    assert!(here.redeem(&first).is_none(), "it was good twice");
    clock.advance(Duration::from_millis(1));
    assert!(here.redeem(&second).is_none(), "it was good for too long");

    // The third one is too old, and makes room.
    assert_eq!((0..20_000).filter(|_| issue().is_some()).count(), 10_000);
    clock.advance(Duration::from_millis(29_999));
    assert!(issue().is_none());
    clock.advance(Duration::from_millis(1));
    assert!(issue().is_some());
}

//! "My API keys" behind the login of an application, in two examples: two users attack each other,
//! and so does another site.

#![cfg(test)]
#![cfg(all(feature = "admin", feature = "postgres", feature = "sqlite"))]

#[path = "support/servers/mod.rs"]
mod servers;
#[path = "support/wait/mod.rs"]
mod wait;

use std::{collections::BTreeSet, env, net::SocketAddr, process::Stdio};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
};
use tower_api_key::{
    key::KeyFormat,
    manage::KeyIssuer,
    record::KeyAction,
    store::{EventQuery, PgKeyStore},
};

use crate::servers::postgres::{Database, Server};
use crate::wait::within;

/// An id that no key has.
const NO_KEY: &str = "01900000-0000-7000-8000-000000000000";

/// A running example with its database.
struct Service {
    address: SocketAddr,
    database: Database,
    _stdout: BufReader<ChildStdout>,
    _child: Child,
}

impl Service {
    async fn start(example: &str) -> Self {
        let database = Server::shared().database().await;
        let test = env::current_exe().unwrap();
        let binary = test.ancestors().nth(2).unwrap().join("examples").join(example);
        assert!(binary.is_file(), "`cargo test` without `--test` builds {}", binary.display());
        let mut child = Command::new(binary)
            .env_clear()
            .env("BIND", "127.0.0.1:0")
            .env("DATABASE_URL", database.url())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        within(stdout.read_line(&mut line)).await.unwrap();
        let address = line.trim_end().strip_prefix("listening on http://").expect("its address");
        Self { address: address.parse().unwrap(), database, _stdout: stdout, _child: child }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let stream = within(TcpStream::connect(self.address)).await.unwrap();
        let (mut client, connection) =
            within(hyper::client::conn::http1::handshake(TokioIo::new(stream))).await.unwrap();
        tokio::spawn(connection);
        let (parts, body) = within(client.send_request(request)).await.unwrap().into_parts();
        let body = within(body.collect()).await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONNECTION, "close")
    }

    /// Whom the guarded route takes `key` for.
    async fn whoami(&self, key: &str) -> (u16, Value) {
        let request = self.request("GET", "/v1/whoami");
        let request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        let answer = self.send(request.body(Full::default()).unwrap()).await;
        let consumer = answer.status.is_success().then(|| answer.json()["consumer_id"].clone());
        (answer.status.as_u16(), consumer.unwrap_or_default())
    }

    async fn login(&self, user: &str) -> Answer {
        let request = self
            .request("POST", "/login")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header("sec-fetch-site", "same-origin")
            .header(header::ORIGIN, self.url());
        self.send(request.body(Full::from(format!("user={user}"))).unwrap()).await
    }

    /// The browser of a user who has signed in.
    async fn browser(&self, user: &'static str) -> Browser<'_> {
        let answer = self.login(user).await;
        assert!(answer.status.is_success(), "{answer:?}");
        let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap();
        let attributes = cookie.to_ascii_lowercase();
        assert!(attributes.contains("httponly") && attributes.contains("samesite=lax"), "{cookie}");
        let cookie = cookie.split(';').next().unwrap().to_owned();
        Browser { service: self, user, cookie }
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// All by which two answers could be told apart, except for the time.
    fn wire(&self) -> String {
        let mut headers = self.headers.clone();
        headers.remove(header::DATE);
        format!("{} {headers:?} {:?}", self.status, self.body)
    }

    /// The status, and the code and place of a problem.
    fn problem(&self) -> (u16, Option<String>, Option<String>) {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        (self.status.as_u16(), text("code"), text("field"))
    }
}

#[derive(Clone)]
struct Browser<'s> {
    service: &'s Service,
    user: &'static str,
    cookie: String,
}

impl Browser<'_> {
    fn request(&self, method: &str, path: &str) -> http::request::Builder {
        let path = format!("/settings{path}");
        self.service.request(method, &path).header(header::COOKIE, &self.cookie)
    }

    /// As a script of the settings page sends it.
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.ask_with(method, path, body, None).await
    }

    async fn ask_with(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        idempotency_key: Option<&str>,
    ) -> Answer {
        let mut request = self
            .request(method, path)
            .header("sec-fetch-site", "same-origin")
            .header(header::ORIGIN, self.service.url());
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let body = body.map(|body| {
            request
                .headers_mut()
                .unwrap()
                .insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
            Full::from(body.to_string())
        });
        self.service.send(request.body(body.unwrap_or_default()).unwrap()).await
    }

    /// Issues a key, and returns it with its id.
    async fn issue(&self, scopes: &[&str]) -> (String, String) {
        let body = json!({ "name": "ci", "expires": "90d", "scopes": scopes });
        let answer = self.ask("POST", "/api-keys", Some(&body)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let made = answer.json();
        assert_eq!(made["consumer_id"], json!(self.user));
        assert_eq!(made["created_by"], json!(format!("member:{}", self.user)));
        (made["key"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned())
    }

    async fn list(&self, query: &str) -> Vec<Value> {
        let answer = self.ask("GET", &format!("/api-keys{query}"), None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["keys"].as_array().unwrap().clone()
    }
}

/// Every route with the id of a key, and a body that does something.
fn routes(id: &str) -> Vec<(&'static str, String, Option<Value>)> {
    let at = |path: &str| format!("/api-keys/{id}{path}");
    vec![
        ("GET", at(""), None),
        ("GET", at("/events"), None),
        ("GET", at("/usage"), None),
        ("PATCH", at(""), Some(json!({ "name": "mine" }))),
        ("PATCH", at(""), Some(json!({ "is_active": false }))),
        ("PATCH", at(""), Some(json!({ "scopes": [] }))),
        ("PATCH", at(""), Some(json!({ "expires": "1s" }))),
        ("PATCH", at(""), Some(json!({ "metadata": { "role": "owner" } }))),
        ("POST", at("/rotate"), None),
        ("POST", at("/rotate"), Some(json!({ "grace": "0s" }))),
        ("POST", at("/revoke"), None),
        ("POST", at("/revoke"), Some(json!({ "reason": "mine" }))),
    ]
}

async fn each_manages_only_its_own_keys(example: &str) {
    let service = Service::start(example).await;
    let (one, two) = (service.browser("one").await, service.browser("two").await);
    let (key_of_one, id_of_one) = one.issue(&["orders:read", "orders:write"]).await;
    let (key_of_two, id_of_two) = two.issue(&["orders:read"]).await;
    assert_eq!(service.whoami(&key_of_one).await, (200, json!("one")));
    assert_eq!(service.whoami(&key_of_two).await, (200, json!("two")));

    for (own, id, other_user, other_id) in
        [(&one, &id_of_one, "two", &id_of_two), (&two, &id_of_two, "one", &id_of_one)]
    {
        let seen = own.list("").await;
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0]["id"], json!(id));
        assert!(own.list(&format!("?consumer_id={other_user}")).await.is_empty());
        assert!(
            own.list("?prefix=sk_test_&limit=1000").await.iter().all(|key| key["id"] == json!(id))
        );
        let before = own.list("").await;
        for ((method, path, body), (_, missing, _)) in
            routes(other_id).into_iter().zip(routes(NO_KEY))
        {
            let foreign = own.ask(method, &path, body.as_ref()).await;
            let missing = own.ask(method, &missing, body.as_ref()).await;
            assert_eq!(foreign.status, 404, "{method} {path}");
            assert_eq!(foreign.wire(), missing.wire(), "{method} {path}");
        }
        assert_eq!(own.list("").await, before);
        let answer = own.ask("GET", "/whoami", None).await.json();
        assert_eq!(
            (&answer["member"], &answer["consumers"]),
            (&json!(own.user), &json!([own.user]))
        );
    }
    // The same idempotency key is another one for another member.
    let new = json!({ "expires": "1d" });
    let first = one.ask_with("POST", "/api-keys", Some(&new), Some("order-1")).await;
    let second = two.ask_with("POST", "/api-keys", Some(&new), Some("order-1")).await;
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (201, 201));
    assert_ne!(first.json()["id"], second.json()["id"]);

    // Neither key was touched, and each can rotate and revoke its own.
    assert_eq!(service.whoami(&key_of_one).await.0, 200);
    for (own, key, id) in [(&one, &key_of_one, &id_of_one), (&two, &key_of_two, &id_of_two)] {
        let rotated = own.ask("POST", &format!("/api-keys/{id}/rotate"), None).await;
        assert_eq!(rotated.status, 201, "{rotated:?}");
        let new = rotated.json()["key"].as_str().unwrap().to_owned();
        assert_eq!(service.whoami(&new).await, (200, json!(own.user)));
        let revoked = own.ask("POST", &format!("/api-keys/{id}/revoke"), None).await;
        assert_eq!(revoked.json()["status"], json!("revoked"));
        assert_eq!(service.whoami(key).await.0, 401, "applied at once");
        assert_eq!(service.whoami(&new).await.0, 200);
    }
    the_audit_names_the_members(&service).await;
}

async fn the_audit_names_the_members(service: &Service) {
    let store = PgKeyStore::new(service.database.pool().await);
    let operator = KeyIssuer::new(store, KeyFormat::new("sk_test_").unwrap());
    let events = operator.events(&EventQuery::new().limit(1000)).await.unwrap().events;
    let mut seen = BTreeSet::new();
    for event in &events {
        let entry = &event.entry;
        let consumer = entry.consumer_id.as_deref().unwrap();
        assert_eq!(entry.actor, format!("member:{consumer}"), "{entry:?}");
        assert!(entry.origin.is_none() || entry.origin.as_deref() == Some("127.0.0.1"));
        seen.insert((entry.actor.clone(), entry.action.as_str()));
    }
    for actor in ["member:one", "member:two"] {
        for action in [KeyAction::Issued, KeyAction::Rotated, KeyAction::Revoked, KeyAction::Denied]
        {
            assert!(seen.contains(&(actor.to_owned(), action.as_str())), "{actor} {action}");
        }
    }
}

/// What a user may not set of a new key, of one that it has, of its rotation and revocation: the
/// status and the place in the answer.
async fn nothing_is_set_that_is_not_granted(example: &str) {
    let service = Service::start(example).await;
    let (one, two) = (service.browser("one").await, service.browser("two").await);
    let (_, id_of_one) = one.issue(&["orders:read", "orders:write"]).await;
    let (key, id) = two.issue(&["orders:read"]).await;
    let wide = json!([{ "name": "minute", "limit": 4_000_000_000_u32, "window_ms": 60_000 }]);
    let new = |field: &str, value: Value| {
        let mut body = json!({ "expires": "30d", "scopes": ["orders:read"] });
        body[field] = value;
        body
    };
    let beyond =
        |field: &'static str, value: Value| ("POST", "/api-keys", new(field, value), 403, field);
    let absent =
        |field: &'static str, value: Value| ("POST", "/api-keys", new(field, value), 404, "");
    let unknown =
        |field: &'static str, value: Value| ("POST", "/api-keys", new(field, value), 400, field);
    let own = format!("/api-keys/{id}");
    let (rotate, revoke) = (format!("{own}/rotate"), format!("{own}/revoke"));
    let mut attempts = vec![
        absent("consumer_id", json!("one")),
        absent("consumer_id", json!("three")),
        unknown("consumer_id", json!(["one", "two"])),
        beyond("scopes", json!(["orders:write"])),
        beyond("scopes", json!(["orders:read", "orders:write"])),
        beyond("scopes", json!(["api-keys:write"])),
        beyond("scopes", json!(["api-keys:all-consumers"])),
        beyond("expires", json!("never")),
        beyond("expires", json!("91d")),
        beyond("expires", json!("9999-12-01T00:00:00Z")),
        beyond("plan", json!("pro")),
        beyond("rate_limits", json!([])),
        beyond("rate_limits", wide.clone()),
        beyond("metadata", json!({ "role": "owner" })),
        beyond("created_by", json!("one")),
        beyond("created_by", json!("member:one")),
    ];
    for (field, value) in [
        ("id", json!(id_of_one)),
        ("key", json!("sk_test_chosen")),
        ("key_hash", json!("00")),
        ("prefix", json!("sk_live_")),
        ("hint", json!("x")),
        ("is_active", json!(true)),
        ("status", json!("active")),
        ("expires_at", json!(null)),
        ("created_at", json!("2020-01-01T00:00:00Z")),
        ("revoked_at", json!(null)),
        ("rotated_from", json!(id_of_one)),
        ("root_id", json!(id_of_one)),
        ("version", json!(7)),
        ("member", json!("one")),
        ("consumers", json!(["one"])),
        ("grant", json!({ "scopes": null })),
        ("actor", json!("operator")),
    ] {
        attempts.push(unknown(field, value.clone()));
        // A member may switch its key off and on.
        if field != "is_active" {
            attempts.push(("PATCH", &own, json!({ field: value }), 400, field));
        }
    }
    attempts.extend([
        ("PATCH", own.as_str(), json!({ "consumer_id": "one" }), 400, "consumer_id"),
        ("PATCH", &own, json!({ "created_by": "one" }), 400, "created_by"),
        ("PATCH", &own, json!({ "scopes": ["orders:read", "orders:write"] }), 403, "scopes"),
        ("PATCH", &own, json!({ "expires": "never" }), 403, "expires"),
        ("PATCH", &own, json!({ "expires": "91d" }), 403, "expires"),
        ("PATCH", &own, json!({ "plan": "pro" }), 403, "plan"),
        ("PATCH", &own, json!({ "rate_limits": wide }), 403, "rate_limits"),
        ("PATCH", &own, json!({ "metadata": { "role": "owner" } }), 403, "metadata"),
        ("POST", &rotate, json!({ "expires": "never" }), 403, "expires"),
        ("POST", &rotate, json!({ "expires": "91d" }), 403, "expires"),
        ("POST", &rotate, json!({ "consumer_id": "one" }), 400, "consumer_id"),
        ("POST", &rotate, json!({ "scopes": ["orders:write"] }), 400, "scopes"),
        ("POST", &revoke, json!({ "consumer_id": "one" }), 400, "consumer_id"),
        // Not here: these are for operators and staff.
        ("POST", "/api-keys/revoke", json!({ "consumer_id": "one" }), 405, ""),
        ("POST", "/api-keys/revoke", json!({ "prefix": "sk_test_" }), 405, ""),
    ]);
    assert!(attempts.len() >= 17);
    let before = (one.list("").await, two.list("").await);
    for (method, path, body, status, field) in attempts {
        let answer = two.ask(method, path, Some(&body)).await;
        let (found, _, place) = answer.problem();
        assert_eq!(found, status, "{method} {path} {body}: {answer:?}");
        // A member that is unknown is named by its object.
        let place = place.unwrap_or_default();
        if status == 403 {
            assert_eq!(place, format!("/{field}"), "{method} {path} {body}: {answer:?}");
        }
        // Fresh: at most four denied requests wait at once, and none is counted as the next.
        assert_eq!((one.list("").await, two.list("").await), before, "{method} {path} {body}");
    }
    assert_eq!(service.whoami(&key).await, (200, json!("two")));
}

async fn without_a_session_every_request_is_refused(example: &str) {
    let service = Service::start(example).await;
    let one = service.browser("one").await;
    let (_, id) = one.issue(&[]).await;
    for user in ["", "three", "ONE", "one%00"] {
        let answer = service.login(user).await;
        assert_eq!(answer.status, 401, "{user:?}");
        assert!(!answer.headers.contains_key(header::SET_COOKIE));
    }
    let (name, value) = one.cookie.split_once('=').unwrap();
    let mut other = value.to_owned();
    let last = other.pop().unwrap();
    other.push(if last == 'A' { 'B' } else { 'A' });
    let forged = [
        String::new(),
        format!("{name}="),
        format!("{name}=one"),
        format!("{name}={other}"),
        format!("{name}={}two", value.strip_suffix("one").unwrap_or(value)),
        format!("other={value}"),
    ];
    for cookie in forged {
        let visitor = Browser { cookie: cookie.clone(), ..one.clone() };
        let paths = routes(&id).into_iter().chain([
            ("GET", "/api-keys".to_owned(), None),
            ("GET", "/whoami".to_owned(), None),
            ("GET", "/nothing".to_owned(), None),
            ("POST", "/api-keys".to_owned(), Some(json!({ "expires": "1d" }))),
        ]);
        for (method, path, body) in paths {
            let answer = visitor.ask(method, &path, body.as_ref()).await;
            assert_eq!(answer.status, 401, "{cookie} {method} {path}");
        }
    }
    let keys = one.list("").await;
    assert_eq!((keys.len(), &keys[0]["version"]), (1, &json!(1)));
}

/// The requests that a page of another site can make a visitor's browser send.
async fn another_site_changes_nothing(example: &str) {
    let service = Service::start(example).await;
    let one = service.browser("one").await;
    let (_, id) = one.issue(&[]).await;
    let paths = [
        "/api-keys".to_owned(),
        format!("/api-keys/{id}/rotate"),
        format!("/api-keys/{id}/revoke"),
    ];
    let forms =
        ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"];
    let origins = ["https://evil.example", "null", "http://127.0.0.1:1"];
    for path in &paths {
        let foreign = |origin: &str, site: Option<&str>, kind: Option<&str>, body: &'static str| {
            let mut request = one.request("POST", path).header(header::ORIGIN, origin);
            if let Some(site) = site {
                request = request.header("sec-fetch-site", site);
            }
            if let Some(kind) = kind {
                request = request.header(header::CONTENT_TYPE, kind);
            }
            request.body(Full::from(body)).unwrap()
        };
        for origin in origins {
            for site in [Some("cross-site"), Some("same-site"), None] {
                let mut requests = vec![
                    // A fetch with JSON, as if a preflight had been answered, and one without a body.
                    foreign(origin, site, Some("application/json"), r#"{"expires":"1d"}"#),
                    foreign(origin, site, None, ""),
                ];
                for form in forms {
                    requests.push(foreign(origin, site, Some(form), r#"{"expires":"1d"}"#));
                }
                for request in requests {
                    let answer = service.send(request).await;
                    let problem = answer.problem();
                    assert_eq!(problem.1.as_deref(), Some("cross_site_request"), "{answer:?}");
                    assert_eq!(problem.0, 403);
                }
            }
        }
        // A browser so old that it sends neither header: its forms are not JSON.
        for form in forms {
            let request = one.request("POST", path).header(header::CONTENT_TYPE, form);
            let answer = service.send(request.body(Full::default()).unwrap()).await;
            assert_eq!(answer.status, 415, "{path} {form}");
        }
    }
    // A preflight is not answered with leave.
    let preflight = one
        .request("OPTIONS", "/api-keys")
        .header(header::ORIGIN, "https://evil.example")
        .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST");
    let answer = service.send(preflight.body(Full::default()).unwrap()).await;
    assert!(!answer.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    // Nor does it sign its visitor in as another user.
    let login = service
        .request("POST", "/login")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header("sec-fetch-site", "cross-site")
        .header(header::ORIGIN, "https://evil.example");
    let answer = service.send(login.body(Full::from("user=two")).unwrap()).await;
    assert_eq!(answer.status, 403);

    let keys = one.list("").await;
    assert_eq!((keys.len(), &keys[0]["version"]), (1, &json!(1)), "{keys:?}");
}

mod signed_cookie {
    const EXAMPLE: &str = "signed_in";

    #[tokio::test]
    async fn two_users_see_issue_rotate_and_revoke_only_their_own_keys() {
        super::each_manages_only_its_own_keys(EXAMPLE).await;
    }

    #[tokio::test]
    async fn a_user_sets_nothing_of_a_key_that_it_may_not_give() {
        super::nothing_is_set_that_is_not_granted(EXAMPLE).await;
    }

    #[tokio::test]
    async fn without_a_session_every_request_is_refused() {
        super::without_a_session_every_request_is_refused(EXAMPLE).await;
    }

    #[tokio::test]
    async fn a_form_and_a_fetch_of_another_site_are_refused() {
        super::another_site_changes_nothing(EXAMPLE).await;
    }
}

mod axum_login {
    use super::{Full, Service, StatusCode, header};

    const EXAMPLE: &str = "axum_login";

    #[tokio::test]
    async fn two_users_see_issue_rotate_and_revoke_only_their_own_keys() {
        super::each_manages_only_its_own_keys(EXAMPLE).await;
    }

    #[tokio::test]
    async fn a_user_sets_nothing_of_a_key_that_it_may_not_give() {
        super::nothing_is_set_that_is_not_granted(EXAMPLE).await;
    }

    #[tokio::test]
    async fn without_a_session_every_request_is_refused() {
        super::without_a_session_every_request_is_refused(EXAMPLE).await;
    }

    #[tokio::test]
    async fn a_form_and_a_fetch_of_another_site_are_refused() {
        super::another_site_changes_nothing(EXAMPLE).await;
    }

    #[tokio::test]
    async fn a_user_who_has_signed_out_is_refused() {
        let service = Service::start(EXAMPLE).await;
        let one = service.browser("one").await;
        one.issue(&[]).await;
        let logout = service.request("POST", "/logout").header(header::COOKIE, &one.cookie);
        let answer = service.send(logout.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        assert_eq!(one.ask("GET", "/api-keys", None).await.status, StatusCode::UNAUTHORIZED);
    }
}

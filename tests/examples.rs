//! The examples do what they print and what their comments say, as separate processes.

#![cfg(test)]
#![cfg(all(
    feature = "axum",
    feature = "metrics",
    feature = "postgres",
    feature = "sqlite",
    feature = "tracing"
))]

#[path = "support/servers/mod.rs"]
mod servers;
#[path = "support/wait/mod.rs"]
mod wait;

use std::{env, fs, net::SocketAddr, path::PathBuf, process::Stdio};

use sqlx::{query_scalar, raw_sql};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    task::yield_now,
};
use tower_api_key::{
    record::KeyId,
    store::{ManageKeys, PgKeyStore, SqliteKeyStore},
};

use crate::servers::postgres::{Database, Server};
use crate::wait::within;

/// A folder for an example to run in, and its complete environment.
struct Place {
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Place {
    fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    fn new() -> Self {
        Self::empty().with("BIND", "127.0.0.1:0")
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    fn with_dotenv(self, lines: &str) -> Self {
        fs::write(self.folder.path().join(".env"), lines).unwrap();
        self
    }

    /// The stderr of the examples that ran here.
    fn stderr(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap()
    }

    fn spawn(&self, example: &str) -> Child {
        let stderr = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("stderr"))
            .unwrap();
        Command::new(binary(example))
            .current_dir(self.folder.path())
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn start(&self, example: &str) -> Running<'_> {
        let mut child = self.spawn(example);
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        // The first line contains the address.
        let mut running = Running { place: self, child, stdout, address: ([0; 4], 0).into() };
        let first = running.line().await;
        let address = first.strip_prefix("listening on http://").expect("where it listens");
        running.address = address.parse().unwrap();
        running
    }

    /// The stderr of an example that must not start.
    async fn refuses(&self, example: &str) -> String {
        let output = within(self.spawn(example).wait_with_output()).await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", self.stderr());
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        self.stderr()
    }
}

/// `cargo test` builds examples beside the tests, but does not say where. With `--test` it does not
/// rebuild them.
fn binary(example: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let target = test.ancestors().nth(2).unwrap();
    let binary = target.join("examples").join(example).with_extension(env::consts::EXE_EXTENSION);
    assert!(
        binary.is_file(),
        "{} is not there. `cargo test` without `--test` builds it, and so does \
         `cargo build --examples --all-features`",
        binary.display(),
    );
    binary
}

/// A running example.
struct Running<'a> {
    place: &'a Place,
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Running<'_> {
    async fn line(&mut self) -> String {
        let line = within(self.stdout.next_line()).await.unwrap();
        line.unwrap_or_else(|| panic!("stdout ended early. stderr:\n{}", self.place.stderr()))
    }

    async fn key(&mut self) -> String {
        let line = self.line().await;
        line.strip_prefix("key: ").expect("the key").to_owned()
    }

    async fn get(&self, path: &str, headers: &[&str]) -> Answer {
        send("GET", self.address, path, headers).await
    }

    /// Sends a request with a valid key, and returns the key's id.
    async fn knows(&self, key: &str) -> KeyId {
        let answer = self.get("/v1/whoami", &[&authorization(key)]).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let consumer: serde_json::Value = serde_json::from_str(answer.body()).unwrap();
        assert_eq!(consumer["consumer_id"], "acme");
        consumer["key_id"].as_str().unwrap().parse().unwrap()
    }

    /// Stops it, and returns its further stdout.
    async fn ends_well_by(mut self, signal: &str) -> Vec<String> {
        let id = self.child.id().expect("it runs").to_string();
        // The shell's `kill`, because not every system has the program.
        let mut kill = std::process::Command::new("sh");
        let killed = kill.args(["-c", r#"kill -s "$0" "$1""#, signal, &id]).status().unwrap();
        assert!(killed.success());
        let mut said = Vec::new();
        while let Some(line) = within(self.stdout.next_line()).await.unwrap() {
            said.push(line);
        }
        let status = within(self.child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.place.stderr());
        said
    }
}

fn authorization(key: &str) -> String {
    format!("Authorization: Bearer {key}")
}

struct Answer {
    status: u16,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let (head, _) = self.text.split_once("\r\n\r\n").unwrap();
        let headers = head.lines().filter_map(|line| line.split_once(": "));
        let mut named = headers.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value)
    }

    fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").unwrap().1
    }
}

async fn send(method: &str, address: SocketAddr, path: &str, headers: &[&str]) -> Answer {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"
    );
    let mut text = String::new();
    within(async {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        connection.read_to_string(&mut text).await.unwrap();
    })
    .await;
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    Answer { status: status.expect("a status").parse().unwrap(), text }
}

/// A printed `curl` line.
#[derive(Debug, PartialEq)]
struct Curl {
    times: usize,
    header: Option<String>,
    address: SocketAddr,
    path: String,
}

impl Curl {
    fn parse(line: &str) -> Self {
        let (times, curl) = match line.strip_prefix("for n in ") {
            Some(repeated) => {
                let (numbers, rest) = repeated.split_once("; do ").expect("the start of a loop");
                let curl = rest.strip_suffix("; echo; done").expect("the end of a loop");
                (numbers.split(' ').count(), curl)
            }
            None => (1, line),
        };
        let rest = curl.strip_prefix("curl -i ").expect("a curl line");
        let (header, url) = match rest.strip_prefix("-H '") {
            Some(rest) => {
                let (header, url) = rest.split_once("' ").expect("the end of a quotation");
                (Some(header.to_owned()), url)
            }
            None => (None, rest),
        };
        let url = url.strip_prefix("http://").expect("a URL");
        let (address, path) = url.split_at(url.find('/').expect("a path"));
        Self { times, header, address: address.parse().unwrap(), path: path.to_owned() }
    }

    /// Sends its requests, and returns the last response.
    async fn run(&self) -> Answer {
        let headers: Vec<_> = self.header.iter().map(String::as_str).collect();
        for _ in 1..self.times {
            send("GET", self.address, &self.path, &headers).await;
        }
        send("GET", self.address, &self.path, &headers).await
    }
}

/// Follows the printed instructions of the quickstart, from the blank line on, and checks the
/// responses.
async fn follow(quickstart: &mut Running<'_>, key: &str) {
    assert_eq!(quickstart.line().await, "");
    for status in [200, 401, 403, 429] {
        let promise = quickstart.line().await;
        assert!(promise.starts_with(&format!("# {status}: ")), "{promise}");
        let curl = Curl::parse(&quickstart.line().await);
        assert_eq!(curl.address, quickstart.address);
        assert!(curl.header.as_ref().is_none_or(|header| *header == authorization(key)));

        let answer = curl.run().await;
        assert_eq!(answer.status, status, "{curl:?}\n{}", answer.text);
        let retry_after = answer.header("retry-after").map(|seconds| seconds.parse().unwrap());
        assert_eq!(retry_after.is_some_and(|seconds: u32| seconds > 0), status == 429);
    }
}

async fn is_open(example: &Running<'_>) {
    let answer = example.get("/healthz", &[]).await;
    assert_eq!((answer.status, answer.body()), (200, "ok"));
}

#[test]
fn a_curl_line_is_understood() {
    let (header, address) = (Some("A: b c".to_owned()), ([127, 0, 0, 1], 80).into());
    let curl = Curl::parse("curl -i -H 'A: b c' http://127.0.0.1:80/v1/x");
    assert_eq!(curl, Curl { times: 1, header: header.clone(), address, path: "/v1/x".into() });
    let curl = Curl::parse("curl -i http://127.0.0.1:80/");
    assert_eq!(curl, Curl { times: 1, header: None, address, path: "/".into() });
    let curl =
        Curl::parse("for n in 1 2 3; do curl -i -H 'A: b c' http://127.0.0.1:80/; echo; done");
    assert_eq!(curl, Curl { times: 3, header, address, path: "/".into() });
}

mod quickstart {
    use super::*;

    const NAME: &str = "quickstart";

    #[tokio::test]
    async fn needs_nothing_and_answers_as_it_promises() {
        let place = Place::new();
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        follow(&mut example, &key).await;
        is_open(&example).await;
        assert_eq!(place.stderr(), "");
    }

    #[tokio::test]
    async fn a_key_in_a_file_is_known_to_the_next_process() {
        let place = Place::new().with("DATABASE_URL", "sqlite:keys.db");
        let mut first = place.start(NAME).await;
        let key = first.key().await;
        follow(&mut first, &key).await;
        first.ends_well_by("TERM").await;

        let mut second = place.start(NAME).await;
        assert_ne!(second.key().await, key, "each start issues a key");
        second.knows(&key).await;
    }

    #[tokio::test]
    async fn writes_last_uses_before_it_ends() {
        for signal in ["TERM", "INT"] {
            let place = Place::new().with("DATABASE_URL", "sqlite:keys.db");
            let mut example = place.start(NAME).await;
            let key = example.key().await;
            let id = example.knows(&key).await;
            example.ends_well_by(signal).await;

            let url = format!("sqlite:{}", place.folder.path().join("keys.db").display());
            let store = SqliteKeyStore::connect(&url).await.unwrap();
            assert!(store.last_used_at(id).await.unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn takes_a_postgres_url() {
        let database = Server::shared().database().await;
        let place = Place::new().with("DATABASE_URL", database.url());
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        follow(&mut example, &key).await;
        let keys = query_scalar::<_, i64>("select count(*) from api_keys");
        assert_eq!(keys.fetch_one(&database.pool().await).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn settings_may_be_in_a_dotenv_file() {
        let dotenv = "BIND=127.0.0.1:0\nDATABASE_URL=sqlite:from-dotenv.db\n";
        let place = Place::empty().with_dotenv(dotenv);
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        example.knows(&key).await;
        assert!(place.folder.path().join("from-dotenv.db").is_file());
    }

    #[tokio::test]
    async fn the_environment_wins_over_a_dotenv_file() {
        let place = Place::new()
            .with("DATABASE_URL", "sqlite:environment.db")
            .with_dotenv("BIND=nowhere\nDATABASE_URL=sqlite:dotenv.db\n");
        place.start(NAME).await;
        assert!(place.folder.path().join("environment.db").is_file());
        assert!(!place.folder.path().join("dotenv.db").exists());
    }

    #[tokio::test]
    async fn a_broken_dotenv_file_is_an_error_that_does_not_quote_it() {
        let place =
            Place::new().with_dotenv("DATABASE_URL=postgres://app:hunter2 @localhost/app\n");
        let said = place.refuses(NAME).await;
        assert!(said.contains(".env cannot be parsed"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

mod hyper {
    use super::*;

    const NAME: &str = "hyper";

    #[tokio::test]
    async fn needs_nothing_and_answers_as_it_promises() {
        let place = Place::new();
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        follow(&mut example, &key).await;
        is_open(&example).await;
        assert_eq!(example.get("/v1/none", &[]).await.status, 401);
        assert_eq!(place.stderr(), "");
    }

    /// Over a connection that is open when the example is told to end.
    #[tokio::test]
    async fn serves_http2_on_the_same_port_and_writes_last_uses_before_it_ends() {
        let place = Place::new().with("DATABASE_URL", "sqlite:keys.db");
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        let url = format!("http://{}/v1/whoami", example.address);
        for (header, expected) in [(&*authorization(&key), "HTTP/2 200"), ("a: b", "HTTP/2 401")] {
            let mut curl = Command::new("curl");
            let curl = curl.args(["--silent", "--include", "--http2-prior-knowledge", "--header"]);
            let answer = within(curl.args([header, &url]).output()).await.unwrap().stdout;
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.starts_with(expected), "{answer}");
            assert_eq!(answer.contains("\"consumer_id\":\"acme\""), expected.ends_with("200"));
        }
        let id = example.knows(&key).await;
        let idle = TcpStream::connect(example.address).await.unwrap();
        example.ends_well_by("TERM").await;
        drop(idle);

        let url = format!("sqlite:{}", place.folder.path().join("keys.db").display());
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        assert!(store.last_used_at(id).await.unwrap().is_some());
    }
}

mod postgres {
    use super::*;

    const NAME: &str = "postgres";

    struct Node {
        place: Place,
        database: Database,
    }

    impl Node {
        async fn new() -> Self {
            let database = Server::shared().database().await;
            let place = Place::new().with("DATABASE_URL", database.url());
            Self { place, database }
        }

        async fn issuing() -> Self {
            let Self { place, database } = Self::new().await;
            Self { place: place.with("ISSUE_DEMO_KEY", "1"), database }
        }

        async fn count(&self, query: &'static str) -> i64 {
            query_scalar(query).fetch_one(&self.database.pool().await).await.unwrap()
        }
    }

    #[tokio::test]
    async fn without_a_database_it_says_what_to_set() {
        let said = Place::new().refuses(NAME).await;
        assert!(said.contains("DATABASE_URL"), "{said}");
    }

    #[tokio::test]
    async fn a_broken_dotenv_file_is_an_error() {
        let node = Node::new().await;
        let said = node.place.with_dotenv("ISSUE_DEMO_KEY=1\nRUST_LOG debug\n").refuses(NAME).await;
        assert!(said.contains(".env cannot be parsed"), "{said}");
    }

    #[tokio::test]
    async fn issues_nothing_unless_told_to() {
        let node = Node::new().await;
        let example = node.place.start(NAME).await;
        is_open(&example).await;
        assert_eq!(example.get("/v1/whoami", &[]).await.status, 401);
        assert!(example.ends_well_by("TERM").await.is_empty());
        assert_eq!(node.count("select count(*) from api_keys").await, 0);
    }

    #[tokio::test]
    async fn serves_the_routes() {
        let node = Node::issuing().await;
        let mut example = node.place.start(NAME).await;
        let key = example.key().await;
        is_open(&example).await;
        example.knows(&key).await;
        assert_eq!(example.get("/v1/whoami", &[]).await.status, 401);
        let reports = example.get("/v1/reports", &[&authorization(&key)]).await;
        assert_eq!(reports.status, 403);
        let whoami = Curl {
            times: 6,
            header: Some(authorization(&key)),
            address: example.address,
            path: "/v1/whoami".into(),
        };
        let limited = whoami.run().await;
        assert_eq!(limited.status, 429);
        assert!(limited.header("retry-after").is_some());
    }

    /// Waits until the feed of `example` is live.
    async fn hears(example: &Running<'_>) {
        within(async {
            loop {
                let ready = example.get("/readyz", &[]).await;
                if ready.body().starts_with("store: Up, feed: Live") {
                    return assert_eq!(ready.status, 200);
                }
                yield_now().await;
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_key_revoked_by_hand_is_refused_while_it_is_cached() {
        let node = Node::issuing().await;
        let mut example = node.place.start(NAME).await;
        let key = example.key().await;
        hears(&example).await;
        example.knows(&key).await;
        // Without limits, so that the loop is not rate limited.
        let revoke = "update api_keys set rate_limits = '[]', revoked_at = clock_timestamp()";
        raw_sql(revoke).execute(&node.database.pool().await).await.unwrap();
        within(async {
            while example.get("/v1/whoami", &[&authorization(&key)]).await.status != 401 {
                yield_now().await;
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_browser_may_ask_and_may_read_a_refusal() {
        let node = Node::new().await;
        let example = node.place.start(NAME).await;
        let origin = "Origin: https://app.example";
        let asked = [
            origin,
            "Access-Control-Request-Method: GET",
            "Access-Control-Request-Headers: authorization",
        ];
        let preflight = send("OPTIONS", example.address, "/v1/whoami", &asked).await;
        assert_eq!(preflight.status, 200);
        assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization"));

        let refusal = example.get("/v1/whoami", &[origin]).await;
        assert_eq!(refusal.status, 401);
        assert_eq!(refusal.header("access-control-allow-origin"), Some("*"));
        assert_eq!(
            refusal.header("access-control-expose-headers"),
            Some("ratelimit,ratelimit-policy,retry-after,x-request-id"),
        );
        assert!(refusal.header("x-request-id").is_some());
    }

    #[tokio::test]
    async fn logs_each_request_with_its_id_unless_told_otherwise() {
        let node = Node::issuing().await;
        let mut example = node.place.start(NAME).await;
        let key = example.key().await;
        let answer = example.get("/v1/whoami?secret", &[&authorization(&key)]).await;
        let id = answer.header("x-request-id").expect("an id");
        example.ends_well_by("TERM").await;
        let said = node.place.stderr();
        let line = said.lines().find(|line| line.contains(id)).expect("the request");
        assert!(line.contains("INFO") && line.contains("/v1/whoami"), "{line}");
        assert!(!said.contains("secret") && !said.contains(&key), "{said}");
    }

    #[tokio::test]
    async fn the_filter_may_be_in_a_dotenv_file() {
        let Node { place, database: _database } = Node::issuing().await;
        let place = place.with_dotenv("RUST_LOG=error\n");
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        example.knows(&key).await;
        example.ends_well_by("TERM").await;
        assert_eq!(place.stderr(), "");
    }

    #[tokio::test]
    async fn a_key_is_not_logged_however_much_is() {
        let Node { place, database: _database } = Node::issuing().await;
        let place = place.with("RUST_LOG", "trace");
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        example.knows(&key).await;
        example.get("/v1/reports", &[&authorization(&key)]).await;
        example.ends_well_by("TERM").await;
        let said = place.stderr();
        // No part of the example logs at a lower level.
        assert!(said.contains("DEBUG") && said.contains("/v1/whoami"), "{said}");
        assert!(!said.contains(&key), "{said}");
    }

    #[tokio::test]
    async fn writes_last_uses_before_it_ends() {
        let node = Node::issuing().await;
        let mut example = node.place.start(NAME).await;
        let key = example.key().await;
        let id = example.knows(&key).await;
        example.ends_well_by("TERM").await;
        let store = PgKeyStore::new(node.database.pool().await);
        assert!(store.last_used_at(id).await.unwrap().is_some());
        assert_eq!(node.count("select count(*) from api_key_usage").await, 1);
    }
}

mod observability {
    use std::{
        collections::{BTreeMap, BTreeSet},
        time::Duration,
    };

    use regex::Regex;
    use serde_json::Value;
    use tokio::{task::JoinSet, time::interval};
    use tower_api_key::key::KeyFormat;

    use super::*;

    const NAME: &str = "observability";
    const DASHBOARD: &str = include_str!("../docs/grafana.json");
    const ALERTS: &str = include_str!("../docs/alerts.yml");
    /// Without a limiter that a fleet shares, the example has no such metric.
    const OF_A_FLEET: &str = "api_key_limiter_shared";

    fn key_format() -> KeyFormat {
        KeyFormat::new("sk_test_").unwrap()
    }

    fn unknown_key() -> String {
        key_format().generate().unwrap().expose_secret().to_owned()
    }

    /// The samples of `/metrics`, by name and labels.
    async fn metrics(example: &Running<'_>) -> BTreeMap<String, f64> {
        let answer = example.get("/metrics", &[]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
        let lines = answer.body().lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            (name.to_owned(), value.parse().expect("a number"))
        };
        lines.map(sample).collect()
    }

    fn sum(metrics: &BTreeMap<String, f64>, name: &str) -> f64 {
        let named = metrics.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        named.map(|(_, value)| value).sum()
    }

    /// What the client saw, in the words of the metrics.
    fn outcome(status: u16) -> &'static str {
        match status {
            200 => "admitted",
            429 => "limited",
            403 => "forbidden",
            400 | 401 => "rejected",
            503 => "unavailable",
            other => panic!("{other}"),
        }
    }

    #[derive(Default)]
    struct Counts {
        outcomes: BTreeMap<&'static str, u64>,
        /// Requests with a well-formed key, which the cache or the store decided.
        checked: u64,
    }

    impl Counts {
        /// Sends all of `requests` at once, and counts the answers.
        async fn send(&mut self, address: SocketAddr, requests: &[(&str, Option<String>)]) {
            let mut sent = JoinSet::new();
            for (path, key) in requests {
                let (path, key) = ((*path).to_owned(), key.clone());
                self.checked += u64::from(key.as_ref().is_some_and(|key| key.len() > 50));
                sent.spawn(async move {
                    let header = key.as_deref().map(authorization);
                    let headers: Vec<_> = header.iter().map(String::as_str).collect();
                    send("GET", address, &path, &headers).await.status
                });
            }
            for status in sent.join_all().await {
                *self.outcomes.entry(outcome(status)).or_default() += 1;
            }
        }
    }

    #[tokio::test]
    async fn its_counters_are_what_the_client_counted() {
        let place = Place::new().with("DATABASE_URL", "sqlite:keys.db");
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        let (address, valid) = (example.address, || Some(key.clone()));
        let mut counts = Counts::default();
        let before = metrics(&example).await;
        assert_eq!(sum(&before, "api_key_requests_total"), 0.0);

        counts.send(address, &[("/v1/reports", valid()), ("/v1/whoami", valid())]).await;
        for _ in 0..20 {
            let mixed = [
                ("/v1/whoami", valid()),
                ("/v1/whoami", None),
                ("/v1/reports", valid()),
                ("/v1/reports", Some("junk".to_owned())),
                ("/v1/whoami", Some(unknown_key())),
                ("/v1/none", None),
                ("/healthz", None),
            ];
            counts.send(address, &mixed[..5]).await;
            // Not behind the layer.
            let (none, open) =
                (example.get("/v1/none", &[]).await, example.get("/healthz", &[]).await);
            assert_eq!((none.status, open.status), (404, 200));
        }
        let url = format!("sqlite:{}", place.folder.path().join("keys.db").display());
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        raw_sql("drop table api_keys").execute(store.pool()).await.unwrap();
        let unknown: Vec<_> = (0..30).map(|_| ("/v1/whoami", Some(unknown_key()))).collect();
        counts.send(address, &unknown).await;

        let metrics = metrics(&example).await;
        assert_eq!(counts.outcomes.len(), 5, "{:?}", counts.outcomes);
        for (outcome, count) in &counts.outcomes {
            let sample = format!("api_key_requests_total{{outcome=\"{outcome}\"}}");
            assert_eq!(metrics[&sample], *count as f64, "{sample}: {metrics:#?}");
        }
        let all: u64 = counts.outcomes.values().sum();
        assert_eq!(sum(&metrics, "api_key_requests_total"), all as f64);
        let rejected = all - counts.outcomes["admitted"];
        assert_eq!(sum(&metrics, "api_key_rejections_total"), rejected as f64);
        let (hits, misses) =
            (metrics["api_key_cache_hits_total"], metrics["api_key_cache_misses_total"]);
        assert_eq!(hits + misses, counts.checked as f64, "{metrics:#?}");
    }

    #[tokio::test]
    async fn its_metrics_say_how_it_is() {
        let place = Place::new().with("DATABASE_URL", "sqlite:keys.db");
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        example.knows(&key).await;
        within(async {
            while metrics(&example).await.get("api_key_feed_connected") != Some(&1.0) {
                yield_now().await;
            }
        })
        .await;
        let metrics = metrics(&example).await;
        assert_eq!(metrics["api_key_store_up"], 1.0);
        assert_eq!(metrics["api_key_cache_entries"], 1.0);
        assert_eq!(metrics["api_key_expiring_keys"], 0.0);
        assert!(metrics["api_key_lookup_seconds_count"] >= 1.0);
        let text = example.get("/metrics", &[]).await;
        assert!(!text.body().contains(&key) && !text.body().contains("acme"), "{}", text.body());
    }

    #[tokio::test]
    async fn it_keeps_its_promises_and_no_key_is_in_its_log() {
        let place = Place::new().with("RUST_LOG", "debug");
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        follow(&mut example, &key).await;
        assert_eq!(example.line().await, "# 200: what Prometheus reads");
        assert_eq!(Curl::parse(&example.line().await).run().await.status, 200);
        is_open(&example).await;
        example.get(&format!("/v1/keys/{key}"), &[&authorization(&key)]).await;
        example.ends_well_by("TERM").await;
        let log = place.stderr();
        assert!(!log.contains(&key), "{log}");
        let last4 = &key[key.len() - 4..];
        assert!(log.contains(&format!("/v1/keys/sk_test_…{last4}")), "{log}");
        let lines: Vec<Value> =
            log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let spans = || lines.iter().filter_map(|line| line.get("span"));
        for outcome in ["admitted", "rejected", "forbidden", "limited"] {
            let span = spans().find(|span| span["api_key.outcome"] == outcome);
            let span = span.unwrap_or_else(|| panic!("{outcome}: {log}"));
            let has_consumer = span.get("api_key.consumer").is_some_and(|id| id == "acme");
            assert_eq!(has_consumer, matches!(outcome, "admitted" | "forbidden"), "{span}");
        }
    }

    #[test]
    fn prometheus_accepts_the_alert_rules() {
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/alerts.yml");
        let checked =
            std::process::Command::new("promtool").args(["check", "rules", rules]).output();
        let checked = checked.expect("promtool, of Debian's package prometheus");
        let said = String::from_utf8_lossy(&checked.stdout).into_owned()
            + &String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && said.contains("rules found"), "{said}");
        for alert in [
            "ApiKeyStoreDown",
            "ApiKeyFeedLost",
            "ApiKeyRevokedKeyUsed",
            "ApiKeyLimiterNotShared",
            "ApiKeyRejectionsSurge",
            "ApiKeysExpireSoon",
        ] {
            assert!(ALERTS.contains(&format!("alert: {alert}\n")), "{alert}");
        }
    }

    #[tokio::test]
    async fn every_metric_of_the_dashboard_and_the_alerts_is_exported() {
        let place = Place::new().with("DATABASE_URL", "sqlite:keys.db");
        let mut example = place.start(NAME).await;
        let key = example.key().await;
        example.knows(&key).await;
        let mut exported = BTreeSet::new();
        let mut scrapes = interval(Duration::from_millis(100));
        within(async {
            // The lag is measured, and uses are written, some time after the start.
            while !["api_key_feed_lag_seconds", "api_key_usage_flush_seconds_count"]
                .iter()
                .all(|late| exported.contains(*late))
            {
                let samples = metrics(&example).await.into_keys();
                let name = |sample: String| sample.split('{').next().map(str::to_owned);
                exported.extend(samples.filter_map(name));
                scrapes.tick().await;
            }
        })
        .await;
        exported.insert(OF_A_FLEET.to_owned());
        let names = Regex::new(r"\bapi_key_[a-z_]+\b").unwrap();
        let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
        let queries = dashboard["panels"].as_array().unwrap().iter();
        let queries = queries.flat_map(|panel| panel["targets"].as_array().unwrap());
        let queries: String =
            queries.map(|target| target["expr"].as_str().unwrap().to_owned() + "\n").collect();
        for text in [queries.as_str(), DASHBOARD, ALERTS] {
            let used: BTreeSet<_> = names.find_iter(text).map(|name| name.as_str()).collect();
            assert!(used.len() >= 8, "{used:?}");
            for name in used {
                assert!(exported.contains(name), "{name} is not among {exported:?}");
            }
        }
    }
}

//! How many instructions a request takes: the same figure whatever else the machine is doing.
//!
//! `cargo bench --bench instructions` runs itself under callgrind and compares with
//! `benches/instructions.txt`; with `-- --write` it writes that file instead. What differs by more
//! than the tolerance, in either direction, is an error: a gain is to be written down, too.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a measurement that fails ends"
)]

use std::{
    env, fs,
    future::Future,
    pin::pin,
    process::{Command, ExitCode},
    task::{Context, Poll, Waker},
};

use axum::{Router, body::Body, routing::get};
use http::{HeaderValue, Request, StatusCode, header};
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    key::KeyFormat,
    layer::RateLimitHeaders,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::Quota,
    store::MemoryKeyStore,
};

/// What a compiler of another version, or another allocator, may make of it.
const TOLERANCE: f64 = 0.03;
const FEW: u32 = 200;
const MANY: u32 = 1_200;
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

#[derive(Clone, Copy)]
enum Scenario {
    Bare,
    Hit,
    HitWithoutHeaders,
    Malformed,
    RateLimited,
}

const SCENARIOS: [(&str, Scenario); 5] = [
    ("bare router", Scenario::Bare),
    ("hit", Scenario::Hit),
    ("hit, headers off", Scenario::HitWithoutHeaders),
    ("malformed key", Scenario::Malformed),
    ("429", Scenario::RateLimited),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [run, scenario, turns] if run == "run" => {
            let (_, scenario) = SCENARIOS[scenario.parse::<usize>().unwrap()];
            serve(scenario, turns.parse().unwrap());
            ExitCode::SUCCESS
        }
        // As `cargo test --benches` calls it.
        arguments if arguments.iter().any(|argument| argument == "--test") => ExitCode::SUCCESS,
        arguments => measure(arguments.iter().any(|argument| argument == "--write")),
    }
}

fn measure(write: bool) -> ExitCode {
    let figures: Vec<_> = (0..SCENARIOS.len())
        .map(|scenario| {
            let (few, many) = (instructions(scenario, FEW), instructions(scenario, MANY));
            (many - few) / u64::from(MANY - FEW)
        })
        .collect();
    let table: String = SCENARIOS
        .iter()
        .zip(&figures)
        .map(|((name, _), figure)| format!("{name}: {figure}\n"))
        .collect();
    print!("{table}");
    if write {
        fs::write(COMMITTED, table).unwrap();
        return ExitCode::SUCCESS;
    }
    let committed = fs::read_to_string(COMMITTED).unwrap();
    let mut code = ExitCode::SUCCESS;
    for ((name, _), figure) in SCENARIOS.iter().zip(figures) {
        let before = committed.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        let before: f64 = before.unwrap_or_else(|| panic!("no figure for {name}")).parse().unwrap();
        let change = figure as f64 / before - 1.0;
        if change.abs() > TOLERANCE {
            eprintln!("{name}: {before} before, {figure} now ({:+.1} %)", change * 100.0);
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn instructions(scenario: usize, turns: u32) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().unwrap())
        .args(["run", &scenario.to_string(), &turns.to_string()])
        .output()
        .expect("valgrind");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let collected = text.lines().find_map(|line| line.split("Collected : ").nth(1));
    collected.unwrap_or_else(|| panic!("{text}")).trim().parse().unwrap()
}

fn serve(scenario: Scenario, turns: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = match scenario {
        Scenario::RateLimited => Quota::per(1, std::time::Duration::from_secs(86_400)).unwrap(),
        _ => Quota::per_second(50_000_000).unwrap(),
    };
    let (auth, key) = runtime.block_on(async {
        let (store, format) = (MemoryKeyStore::new(), KeyFormat::new("sk_live_").unwrap());
        let (auth, worker) = Authenticator::builder(store.clone(), format.clone())
            .default_rate_limits(limit)
            .build();
        drop(worker);
        let issuer = KeyIssuer::new(store, format);
        let issued = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        let key = issued.key.expose_secret().to_owned();
        auth.authenticate(key.as_bytes()).await.unwrap();
        (auth, key)
    });
    let mut value = format!("Bearer {key}");
    let mut status = StatusCode::OK;
    let routes = Router::new().route("/", get(|| async { "ok" }));
    let layer = ApiKeyLayer::new(auth);
    let router: Router = match scenario {
        Scenario::Bare => routes,
        Scenario::Hit => routes.layer(layer),
        Scenario::HitWithoutHeaders => {
            routes.layer(layer.rate_limit_headers(RateLimitHeaders::Off))
        }
        Scenario::Malformed => {
            let last = if value.ends_with('A') { 'B' } else { 'A' };
            value.pop();
            value.push(last);
            status = StatusCode::UNAUTHORIZED;
            routes.layer(layer)
        }
        Scenario::RateLimited => {
            status = StatusCode::TOO_MANY_REQUESTS;
            routes.layer(layer)
        }
    };
    let value = HeaderValue::try_from(value).unwrap();
    for _ in 0..turns {
        let mut request = Request::new(Body::empty());
        request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        let mut response = pin!(router.clone().oneshot(request));
        match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(response)) => assert_eq!(response.status(), status),
            Poll::Pending => panic!("it waits"),
        }
    }
}

//! Whether the time of a refusal reveals why the key was refused.
//!
//! ```text
//! cargo bench --bench timing [-- --pairs N] [--json FILE]
//! ```
//!
//! `benches/README.md` explains what it measures and how to read it.

#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]

#[path = "../support/machine.rs"]
#[allow(dead_code, reason = "memory is not measured here")]
mod machine;

use std::{
    env, fs,
    net::SocketAddr,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::Request, middleware::Next, routing::get};
use http::header;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::json;
use tokio::{net::TcpListener, net::TcpStream, runtime::Builder};
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    key::KeyFormat,
    manage::{Expiry, KeyIssuer, NewKey},
    store::MemoryKeyStore,
};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const USAGE: &str = "\
cargo bench --bench timing -- [OPTIONS]

  --pairs N      pairs of requests for each comparison; 100000
  --json FILE    writes the figures to this file";

/// The slowest responses, one in this many, are noise of the machine, equally in both classes.
const DROPPED: usize = 10;
/// |t| beyond which two classes can be told apart.
const TOLD_APART: f64 = 5.0;
/// How much longer the control takes for one of its classes.
const LEAK: Duration = Duration::from_micros(5);

struct Options {
    pairs: usize,
    json: Option<String>,
}

#[derive(Serialize)]
struct Row {
    classes: String,
    /// Welch's t of the faster 90 % of both.
    t: f64,
    medians_us: [f64; 2],
}

/// Refused keys, each for a different reason, all with the same response bytes.
struct Classes {
    unknown: String,
    revoked: String,
    expired: String,
    inactive: String,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // As `cargo test --benches` calls it.
    if arguments.iter().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    match Options::parse(&arguments).and_then(|options| measure(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self { pairs: 100_000, json: None };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--pairs" => options.pairs = value()?.parse::<usize>()?.max(100),
                "--json" => options.json = Some(value()?.clone()),
                // Cargo passes it to every benchmark.
                "--bench" => {}
                _ => return Err(format!("unknown option {argument}\n{USAGE}").into()),
            }
        }
        Ok(options)
    }
}

fn measure(options: &Options) -> Result<bool> {
    let machine = machine::Machine::this().map_err(|error| error.to_string())?;
    let versions = machine::versions(&["axum", "hyper", "tokio"]);
    let versions = versions.map_err(|error| error.to_string())?;
    let (tell, told) = std::sync::mpsc::channel();
    // The server has a thread of its own, as it would have a machine of its own.
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(&tell))
    });
    let (address, classes) = told.recv()?;
    let clients = Builder::new_current_thread().enable_all().build()?;
    let (rows, control) = clients.block_on(compare(address, &classes, options.pairs))?;
    let is_quiet = rows.iter().all(|row| row.t.abs() < TOLD_APART);
    let is_sharp = control.t.abs() > TOLD_APART;
    for row in rows.iter().chain([&control]) {
        let [first, second] = row.medians_us;
        println!("{:<24} t {:>8.2}   medians {first:.1} and {second:.1} us", row.classes, row.t);
    }
    println!("no two classes can be told apart: {is_quiet}; the control can: {is_sharp}");
    if let Some(file) = &options.json {
        let report = json!({
            "date": jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            "machine": machine,
            "versions": versions,
            "pairs": options.pairs,
            "rows": rows,
            "control": control,
        });
        fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(is_quiet && is_sharp)
}

async fn serve(tell: &std::sync::mpsc::Sender<(SocketAddr, Classes)>) -> Result<()> {
    let store = MemoryKeyStore::new();
    let format = KeyFormat::new("sk_live_")?;
    let issuer = KeyIssuer::new(store.clone(), format.clone());
    let issue = async |expiry| -> Result<_> {
        let issued = issuer.issue(NewKey::new("acme", expiry)).await?;
        Ok((issued.key.expose_secret().to_owned(), issued.record.id))
    };
    let (revoked, id) = issue(Expiry::Never).await?;
    issuer.revoke(id, None).await?;
    let (inactive, id) = issue(Expiry::Never).await?;
    let update = tower_api_key::manage::KeyUpdate::new().is_active(false);
    issuer.update(id, update).await?;
    let (expired, _) = issue(Expiry::In(Duration::from_millis(1))).await?;
    let unknown = format.generate()?.expose_secret().to_owned();
    let leaking = revoked.clone();

    let (auth, _worker) = Authenticator::builder(store, format).build();
    let keyed = Router::new().route("/", get(async || "ok")).layer(ApiKeyLayer::new(auth));
    let leak = move |request: Request, next: Next| {
        let is_slow = request
            .headers()
            .get(header::AUTHORIZATION)
            .is_some_and(|value| value.as_bytes().ends_with(leaking.as_bytes()));
        async move {
            let begun = Instant::now();
            while is_slow && begun.elapsed() < LEAK {}
            next.run(request).await
        }
    };
    let app = Router::new()
        .nest("/control", keyed.clone().layer(axum::middleware::from_fn(leak)))
        .merge(keyed);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let classes = Classes { unknown, revoked, expired, inactive };
    tell.send((listener.local_addr()?, classes))?;
    axum::serve(listener, app).await?;
    Ok(())
}

async fn compare(address: SocketAddr, classes: &Classes, pairs: usize) -> Result<(Vec<Row>, Row)> {
    let Classes { unknown, revoked, expired, inactive } = classes;
    let mut client = Client::connect(address).await?;
    let mut rows = Vec::new();
    let others = [("revoked", revoked), ("expired", expired), ("inactive", inactive)];
    for (name, other) in others {
        let times = client.times("/", [unknown, other], pairs).await?;
        rows.push(Row::of(format!("unknown and {name}"), times));
    }
    let times = client.times("/control", [unknown, revoked], pairs).await?;
    Ok((rows, Row::of("control, which leaks".to_owned(), times)))
}

struct Client(SendRequest<Body>);

impl Client {
    async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Sends both keys in turn, in an order that changes from pair to pair.
    async fn times(
        &mut self,
        path: &str,
        keys: [&String; 2],
        pairs: usize,
    ) -> Result<[Vec<f64>; 2]> {
        for key in keys {
            // Until both are cached.
            self.time(path, key).await?;
        }
        let mut times = [Vec::with_capacity(pairs), Vec::with_capacity(pairs)];
        let mut order = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..pairs {
            order ^= order << 13;
            order ^= order >> 7;
            order ^= order << 17;
            let [first, second] = &mut times;
            let mut pair = [(keys[0], first), (keys[1], second)];
            if order & 1 == 1 {
                pair.reverse();
            }
            for (key, times) in pair {
                times.push(self.time(path, key).await?);
            }
        }
        Ok(times)
    }

    /// In microseconds.
    async fn time(&mut self, path: &str, key: &str) -> Result<f64> {
        let request = Request::get(path)
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {key}"))
            .body(Body::empty())?;
        self.0.ready().await?;
        let begun = Instant::now();
        let response = self.0.send_request(request).await?;
        let time = begun.elapsed().as_secs_f64() * 1e6;
        if response.status() != 401 {
            return Err(format!("{} instead of 401", response.status()).into());
        }
        response.into_body().collect().await?;
        Ok(time)
    }
}

impl Row {
    fn of(classes: String, mut times: [Vec<f64>; 2]) -> Self {
        let mut all = times.concat();
        all.sort_by(f64::total_cmp);
        let kept = all.len() - all.len() / DROPPED;
        let slowest = all.get(kept.saturating_sub(1)).copied().unwrap_or(f64::INFINITY);
        for times in &mut times {
            times.retain(|time| *time <= slowest);
            times.sort_by(f64::total_cmp);
        }
        let [first, second] = &times;
        let (a, b) = (Moments::of(first), Moments::of(second));
        let t = (a.mean - b.mean) / (a.variance / a.count + b.variance / b.count).sqrt();
        let middle = |times: &[f64]| times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        Self { classes, t, medians_us: [middle(first), middle(second)] }
    }
}

struct Moments {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Moments {
    fn of(times: &[f64]) -> Self {
        let count = times.len() as f64;
        let mean = times.iter().sum::<f64>() / count;
        let squares: f64 = times.iter().map(|time| (time - mean).powi(2)).sum();
        Self { count, mean, variance: squares / (count - 1.0) }
    }
}

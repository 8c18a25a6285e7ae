//! The latency of a client with a known key while ten thousand changes a second are announced.

use std::{
    cell::Cell,
    error::Error,
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use sqlx::{Connection, PgConnection, postgres::PgListener, raw_sql};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval, sleep},
};
use tower_api_key::{ApiKeyLayer, Authenticator, Consumer, auth::FeedHealth};

use crate::{Result, setting::Setting, stats::median};

/// One per millisecond, if the machine keeps up.
const STATEMENTS: u32 = 1_000;
const STATEMENT_EVERY: Duration = Duration::from_millis(1);

/// Announces ten changes of keys that do not exist, on the channel of the service.
const ANNOUNCED: &str = "do $$ begin perform \
    api_key_announce('changed:' || gen_random_uuid()) \
    from generate_series(1, 10); end $$";
/// The same work for the database and for a listener, but none for the service.
const ELSEWHERE: &str = "do $$ begin perform elsewhere_announce('changed:' || gen_random_uuid()) \
    from generate_series(1, 10); end $$";
/// The same as `api_key_announce`, on another channel.
const MAKE_ELSEWHERE: &str = "create function elsewhere_announce(message text) returns void
    language sql
    begin atomic
        select pg_notify(
            (select 'elsewhere' || left(channel, 0) from api_key_feed),
            signed.text || ':' || left(
                encode(
                    sha256(
                        int8send(octet_length((select secret from api_key_feed))::bigint)
                        || (select secret from api_key_feed)
                        || int8send(octet_length(signed.text)::bigint)
                        || convert_to(signed.text, 'UTF8')
                    ),
                    'hex'
                ),
                32
            )
        )
        from (select 'v2:' || message || ':' || pg_current_xact_id()::text as text) as signed;
    end";

/// Medians over the rounds, in microseconds.
#[derive(Serialize)]
pub(crate) struct Changes {
    changes_per_second: f64,
    quiet_p99_us: f64,
    /// While the database announces as many changes to another listener.
    elsewhere_p99_us: f64,
    announced_p99_us: f64,
    /// The median of the ratios of each round.
    announced_of_elsewhere: f64,
}

pub(crate) async fn measure(setting: &Setting, rounds: usize) -> Result<Changes> {
    let key = setting.known.first().ok_or("there are no keys")?.expose_secret();
    let service = Service::start(setting).await?;
    let mut client = Client::connect(service.address, key).await?;
    client.get().await?;

    let mut listener = PgListener::connect(setting.url()).await?;
    listener.listen("elsewhere").await?;
    tokio::spawn(async move { while listener.recv().await.is_ok() {} });
    let mut database = PgConnection::connect(setting.url()).await?;
    raw_sql(MAKE_ELSEWHERE).execute(&mut database).await?;

    let (mut quiet, mut elsewhere, mut announced) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        quiet.push(p99_during(&mut client, sleep(STATEMENT_EVERY * STATEMENTS)).await?);
        let other = p99_during(&mut client, announce(&mut database, ELSEWHERE)).await?;
        let begin = Instant::now();
        let own = p99_during(&mut client, announce(&mut database, ANNOUNCED)).await?;
        rates.push(10.0 * f64::from(STATEMENTS) / begin.elapsed().as_secs_f64());
        ratios.push(own / other);
        elsewhere.push(other);
        announced.push(own);
    }
    let changes = Changes {
        changes_per_second: median(rates),
        quiet_p99_us: median(quiet),
        elsewhere_p99_us: median(elsewhere),
        announced_p99_us: median(announced),
        announced_of_elsewhere: median(ratios),
    };
    println!("\n# A known key while changes are announced\n");
    println!("changes a second: {:.0}", changes.changes_per_second);
    println!(
        "p99: {:.0} us, {:.0} us with as many elsewhere, {:.0} us with changes of keys: {:.2} times",
        changes.quiet_p99_us,
        changes.elsewhere_p99_us,
        changes.announced_p99_us,
        changes.announced_of_elsewhere
    );
    Ok(changes)
}

async fn announce(database: &mut PgConnection, statement: &'static str) {
    let mut turns = interval(STATEMENT_EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for _ in 0..STATEMENTS {
        turns.tick().await;
        if let Err(error) = raw_sql(statement).execute(&mut *database).await {
            eprintln!("not announced: {error}");
        }
    }
}

/// Latencies in microseconds of requests one after another until `phase` is over.
async fn p99_during(client: &mut Client, phase: impl Future<Output = ()>) -> Result<f64> {
    let (mut times, is_over) = (Vec::new(), Cell::new(false));
    // Dropping a request would close its connection.
    let requests = async {
        while !is_over.get() {
            let begin = Instant::now();
            client.get().await?;
            times.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        Ok::<_, Box<dyn Error>>(())
    };
    let phase = async {
        phase.await;
        is_over.set(true);
    };
    let (asked, ()) = tokio::join!(requests, phase);
    asked?;
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() * 99 / 100).copied().unwrap_or(f64::NAN))
}

/// Follows changes, and serves on a port of its own.
struct Service {
    address: SocketAddr,
}

impl Service {
    async fn start(setting: &Setting) -> Result<Self> {
        let (auth, worker) = Authenticator::builder(setting.store.clone(), setting.format.clone())
            .change_feed(setting.store.change_feed())
            .build();
        tokio::spawn(worker.run(std::future::pending::<()>()));
        while !matches!(auth.health().feed, FeedHealth::Live { .. }) {
            sleep(STATEMENT_EVERY).await;
        }
        let app = Router::new()
            .route("/", get(async |consumer: Consumer| consumer.id().to_owned()))
            .layer(ApiKeyLayer::new(auth));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address })
    }
}

struct Client {
    sender: SendRequest<Empty<Bytes>>,
    authorization: String,
}

impl Client {
    async fn connect(address: SocketAddr, key: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, authorization: format!("Bearer {key}") })
    }

    async fn get(&mut self) -> Result<()> {
        let request = Request::get("/")
            .header("host", "localhost")
            .header(AUTHORIZATION, &self.authorization);
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Empty::new())?).await?;
        let status = response.status();
        response.into_body().collect().await?;
        if status == StatusCode::OK { Ok(()) } else { Err(format!("answered {status}").into()) }
    }
}

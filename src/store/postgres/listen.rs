use std::{error::Error, fmt, panic::catch_unwind, time::Duration};

use sqlx::{
    ConnectOptions, Connection, PgPool, Row,
    postgres::{PgConnectOptions, PgListener, PgNotification, PgPoolOptions, PgRow},
    raw_sql,
};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout, timeout_at},
};

use super::error::failed;
use crate::{
    record::KeyId,
    store::{Change, ChangeFeed, StoreError, StoreErrorKind, migrate::no_changes},
};

/// One for all schemas of a database. Of a key of another schema nothing is cached, so that hearing
/// of it costs nothing.
const CHANNEL: &str = "tower_api_key";

const HEARTBEAT: Duration = Duration::from_secs(15);
const MIN_HEARTBEAT: Duration = Duration::from_millis(10);
const MAX_HEARTBEAT: Duration = Duration::from_secs(300);
/// How long connecting may take in all.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the first notification may take. Where nothing is in between, it takes a millisecond.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);

/// Listens to PostgreSQL: the triggers on `api_keys` tell each change, whoever makes it, as soon as
/// it is committed.
///
/// It takes a connection of its own to the database of `pool`, which it leaves alone: a pool of one
/// connection still serves look-ups, and closing the pool ends the feed. One feed for each process
/// is enough, and what PostgreSQL should be asked for: each commit of a change wakes all who
/// listen.
///
/// Where notifications do not arrive, it fails to connect rather than stay silent. Take a
/// [`PollingChangeFeed`](crate::store::PollingChangeFeed) there:
///
/// 1. behind PgBouncer in transaction mode, where connections take turns on those to the server. A
///    pool that bypasses it, just for the feed, does as well;
/// 2. on a standby, which cannot LISTEN.
///
/// Triggers cost what they do: a transaction that changes keys cannot be prepared for two-phase
/// commit, and what logical replication brings is not told.
///
/// # Cancellation
///
/// Both futures, and the feed itself, may be dropped at any time, outside of the runtime as well.
pub struct PgChangeFeed {
    pool: PgPool,
    heartbeat: Duration,
    listening: Option<Listening>,
}

impl PgChangeFeed {
    /// Changes in the database behind `pool`, with the options that the pool then has: a password
    /// that was replaced by `set_connect_options` is taken up.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, heartbeat: HEARTBEAT, listening: None }
    }

    /// How often the connection is tried. One that went dead without a word, which looks idle, is
    /// noticed within two intervals.
    ///
    /// Default: 15 s, so that it takes half a minute at most, for one `select 1` every 15 s and
    /// node; at least 10 ms, which no database should be asked to go below, and at most 5 min,
    /// after which many a network forgets a connection that nobody uses.
    #[must_use]
    pub fn heartbeat(self, interval: Duration) -> Self {
        Self { heartbeat: interval.clamp(MIN_HEARTBEAT, MAX_HEARTBEAT), ..self }
    }
}

impl ChangeFeed for PgChangeFeed {
    async fn connect(&mut self) -> Result<(), StoreError> {
        self.listening = None;
        let options = self.pool.connect_options();
        let beginning = timeout(DEADLINE, Listening::begin(&options, self.heartbeat));
        let begun = self.pool.close_event().do_until(beginning).await.map_err(failed)?;
        let late = || unavailable("connecting took too long");
        self.listening = Some(begun.map_err(|_| late())??);
        Ok(())
    }

    async fn next(&mut self) -> Result<Change, StoreError> {
        // Put back when all went well: used after an error, sqlx's listener reconnects without a
        // word, and tells nothing any more if that is interrupted.
        let listening = self.listening.take();
        let mut listening = listening.ok_or_else(|| unavailable("`connect` comes first"))?;
        let next = self.pool.close_event().do_until(listening.next(self.heartbeat)).await;
        let change = next.map_err(failed)??;
        self.listening = Some(listening);
        Ok(change)
    }
}

impl fmt::Debug for PgChangeFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The pool's options may hold a password.
        f.debug_struct("PgChangeFeed")
            .field("heartbeat", &self.heartbeat)
            .field("connected", &self.listening.is_some())
            .finish_non_exhaustive()
    }
}

/// A connection that notifications have been seen to arrive on.
struct Listening {
    listener: Option<PgListener>,
    /// sqlx's listener spawns a task when it is dropped, and panics where it cannot.
    runtime: Handle,
    heartbeat_at: Instant,
}

impl Listening {
    async fn begin(options: &PgConnectOptions, heartbeat: Duration) -> Result<Self, StoreError> {
        let runtime = Handle::try_current().map_err(unavailable)?;
        // Says hello, and is gone. By itself first: all that a pool says of a failure is that time
        // was up.
        let mut herald = options.connect().await.map_err(failed)?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(DEADLINE)
            .connect_lazy_with(options.clone());
        // Nothing is awaited before it is in the hands of who may drop it anywhere.
        let mut listener = PgListener::connect_with(&pool).await.map_err(failed)?;
        listener.eager_reconnect(false);
        let heartbeat_at = Instant::now() + heartbeat;
        let mut listening = Self { listener: Some(listener), runtime, heartbeat_at };

        let own = raw_sql(WHO_ARE_YOU).fetch_one(listening.listener()?).await.map_err(failed)?;
        let other = raw_sql(WHO_ARE_YOU).fetch_one(&mut herald).await.map_err(failed)?;
        if !own.try_get("is_migrated").map_err(failed)? {
            return Err(no_changes());
        }
        let backend = |row: &PgRow| row.try_get::<i32, _>("backend").map_err(failed);
        if backend(&own)? == backend(&other)? {
            return Err(pooled(SHARED));
        }

        listening.listener()?.listen(CHANNEL).await.map_err(failed)?;
        let hello = raw_sql(SAY_HELLO).fetch_one(&mut herald).await.map_err(astray)?;
        let hello: String = hello.try_get("payload").map_err(failed)?;
        let heard = timeout(HELLO_DEADLINE, listening.hear(&hello)).await;
        heard.map_err(|_| pooled(UNHEARD))??;
        herald.close().await.map_err(failed)?;
        Ok(listening)
    }

    /// Until `hello` arrives. Whatever else does is confirmed once this is connected.
    async fn hear(&mut self, hello: &str) -> Result<(), StoreError> {
        while payload(&self.notification().await?) != Some(hello) {}
        Ok(())
    }

    async fn next(&mut self, heartbeat: Duration) -> Result<Change, StoreError> {
        // Before what has arrived meanwhile: with a backlog, the answer tells how long it is.
        while Instant::now() < self.heartbeat_at {
            let heartbeat_at = self.heartbeat_at;
            // Given up while it merely waits, a listener loses nothing.
            if let Ok(notification) = timeout_at(heartbeat_at, self.notification()).await {
                match payload(&notification?).map_or(JUNK, parse) {
                    Message::Hello => {}
                    Message::Told(change) => return Ok(change),
                }
            }
        }
        self.beat(heartbeat).await
    }

    /// Tries the connection. A dead one may look as an idle one does, for ever.
    async fn beat(&mut self, interval: Duration) -> Result<Change, StoreError> {
        let asked = Instant::now();
        let answer = timeout(interval, raw_sql("select 1").execute(self.listener()?)).await;
        answer.map_err(|_| unavailable("a heartbeat was not answered"))?.map_err(failed)?;
        self.heartbeat_at = asked + interval;
        Ok(Change::Nothing { lag: asked.elapsed() })
    }

    async fn notification(&mut self) -> Result<PgNotification, StoreError> {
        let notification = self.listener()?.try_recv().await.map_err(failed)?;
        notification.ok_or_else(|| unavailable("the connection was lost"))
    }

    fn listener(&mut self) -> Result<&mut PgListener, StoreError> {
        self.listener.as_mut().ok_or_else(|| unavailable("the connection was lost"))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _entered = self.runtime.enter();
        self.listener = None;
    }
}

// None of these have parameters: a pooler that mixes up prepared statements is to be found out.
//
// Two connections that share a backend take turns on it, and a LISTEN would be left behind there,
// for its notifications to arrive in the middle of somebody else's query.
const WHO_ARE_YOU: &str = "
select
    pg_backend_pid() as backend,
    exists (
        select from pg_trigger where tgname = 'api_keys_tell_update' and tgenabled in ('O', 'A')
    ) as is_migrated";

// The number of a transaction is nobody else's.
const SAY_HELLO: &str = "
select payload, pg_notify('tower_api_key', payload)
from (select 'v1:hello:' || pg_current_xact_id()) as hello (payload)";

const SHARED: &str = "two connections share a backend, as behind PgBouncer in transaction mode: \
    take a `PollingChangeFeed` there";

const UNHEARD: &str = "notifications do not arrive, as behind PgBouncer in transaction mode: \
    take a `PollingChangeFeed` there";

/// sqlx cannot make sense of a notification that somebody else has listened for.
fn astray(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Protocol(_) => pooled(UNHEARD),
        error => failed(error),
    }
}

/// Trying again will not help.
fn pooled(problem: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Other).because(problem)
}

/// What a payload says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Told(Change),
    /// Somebody tries whether notifications arrive.
    Hello,
}

const JUNK: Message = Message::Told(Change::Junk);

/// The payload of a notification on our channel.
///
/// sqlx panics where it is not UTF-8. PostgreSQL rather ends the connection than send that, from a
/// database that holds any bytes.
fn payload(notification: &PgNotification) -> Option<&str> {
    let (channel, payload) =
        catch_unwind(|| (notification.channel(), notification.payload())).ok()?;
    (channel == CHANNEL).then_some(payload)
}

/// Takes one spelling of each message only. Any role may send anything.
fn parse(payload: &str) -> Message {
    let message = || {
        let (word, rest) = match payload.strip_prefix("v1:")? {
            "everything" => return Some(Message::Told(Change::Everything)),
            message => message.split_once(':')?,
        };
        match word {
            "created" => Some(Message::Told(Change::Created(key_id(rest)?))),
            "changed" => Some(Message::Told(Change::Changed(key_id(rest)?))),
            "hello" => Some(Message::Hello),
            _ => None,
        }
    };
    message().unwrap_or(JUNK)
}

/// An id as PostgreSQL writes it.
fn key_id(text: &str) -> Option<KeyId> {
    let id: KeyId = text.parse().ok()?;
    (id.to_string() == text).then_some(id)
}

fn unavailable(problem: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable).because(problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0191e0a0-7c4b-7def-8123-456789abcdef";

    fn id() -> KeyId {
        ID.parse().unwrap()
    }

    #[test]
    fn every_message_is_understood() {
        assert_eq!(parse(&format!("v1:created:{ID}")), Message::Told(Change::Created(id())));
        assert_eq!(parse(&format!("v1:changed:{ID}")), Message::Told(Change::Changed(id())));
        assert_eq!(parse("v1:everything"), Message::Told(Change::Everything));
        assert_eq!(parse("v1:hello:4711"), Message::Hello);
    }

    #[test]
    fn anything_else_is_junk() {
        let spellings = [
            ID.to_uppercase(),
            format!("{{{ID}}}"),
            format!("urn:uuid:{ID}"),
            ID.replace('-', ""),
            format!(" {ID}"),
            format!("{ID}\n"),
            format!("{ID}:"),
            format!("{ID}0"),
            ID[1..].to_owned(),
            String::new(),
        ];
        for spelling in spellings {
            assert_eq!(parse(&format!("v1:changed:{spelling}")), JUNK, "{spelling:?}");
        }
        for payload in [
            "",
            ":",
            "v1",
            "v1:",
            "v1:everything:",
            "v1:everything ",
            "v1:Everything",
            "v1:created",
            "v1:hello",
            "v2:everything",
            "V1:everything",
            " v1:everything",
            &format!("v1:deleted:{ID}"),
            &format!("v2:changed:{ID}"),
            &format!("changed:{ID}"),
            &"v".repeat(7999),
            &format!("v1:changed:{ID}{}", "0".repeat(7900)),
        ] {
            assert_eq!(parse(payload), JUNK, "{payload:?}");
        }
    }

    proptest! {
        #[test]
        fn no_payload_is_too_odd(payload in "\\PC*", message in "(v1:)?[a-z]*:\\PC*") {
            parse(&payload);
            parse(&message);
        }

        #[test]
        fn ids_are_read_as_they_are_written(bytes: [u8; 16]) {
            let id = KeyId::from_bytes(bytes);
            let told = |word| parse(&format!("v1:{word}:{id}"));
            prop_assert_eq!(told("created"), Message::Told(Change::Created(id)));
            prop_assert_eq!(told("changed"), Message::Told(Change::Changed(id)));
        }
    }
}

use std::{
    collections::HashSet, error::Error, fmt, panic::catch_unwind, sync::Arc, time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, PgExecutor, PgPool, Row,
    postgres::{PgConnectOptions, PgListener, PgNotification, PgPoolOptions, PgRow},
    raw_sql,
};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout, timeout_at},
};

use super::{
    error::{UNDEFINED_TABLE, failed},
    schema::{SchemaCell, Statements, Timeouts},
};
use crate::{
    key::digest,
    record::KeyId,
    store::{Change, ChangeFeed, StoreError, StoreErrorKind, migrate},
};

const HEARTBEAT: Duration = Duration::from_secs(15);
const MIN_HEARTBEAT: Duration = Duration::from_millis(10);
const MAX_HEARTBEAT: Duration = Duration::from_secs(300);
/// How long connecting may take in all.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the first notification may take. Where nothing is in between, it takes a millisecond.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Ours are shorter.
const MAX_PAYLOAD: usize = 256;
/// Hexadecimal digits of the digest in a payload: 128 bits.
const DIGEST_LEN: usize = 32;
/// Transactions with changes between two heartbeats whose announcements are remembered. Beyond
/// these, connecting again is less work: some 4 MB.
const MAX_TAKEN: usize = 100_000;

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
/// It takes the right to read `api_key_feed`, the table that names the channel and holds the secret
/// that announcements are signed with. Roles without it can neither hear announcements nor forge
/// them: their notifications do not arrive here, or are [ignored](Change::Junk) for the price of a
/// SHA-256.
///
/// Look-ups have to go to the server that it listens to. A replica may not have applied a change yet
/// when it is announced: poll the replica instead.
///
/// # Cancellation
///
/// Both futures, and the feed itself, may be dropped at any time, outside of the runtime as well.
pub struct PgChangeFeed {
    pool: PgPool,
    schema: Arc<SchemaCell>,
    heartbeat: Duration,
    listening: Option<Listening>,
}

impl PgChangeFeed {
    /// Changes in the database behind `pool`, with the options that the pool then has: a password
    /// that was replaced by `set_connect_options` is taken up.
    ///
    /// The tables are found along the `search_path`.
    /// [`PgKeyStore::change_feed`](super::PgKeyStore::change_feed) listens to the schema of a store.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self::of(pool, Arc::new(SchemaCell::new(None, Timeouts::default())))
    }

    pub(super) fn of(pool: PgPool, schema: Arc<SchemaCell>) -> Self {
        Self { pool, schema, heartbeat: HEARTBEAT, listening: None }
    }

    /// How often the connection is tried, and whether the triggers are still in place. A connection
    /// that went dead without a word, which looks idle, is noticed within two intervals; a trigger
    /// that is gone, within one.
    ///
    /// Default: 15 s, so that it takes half a minute at most, for one statement that reads catalogs
    /// every 15 s and node, and a notification where there were changes; at least 10 ms, which no database should be asked to go below, and at most 5 min,
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
        let beginning = timeout(DEADLINE, Listening::begin(&options, &self.schema, self.heartbeat));
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
    announcer: Announcer,
    guard: Guard,
    statements: Arc<Statements>,
    /// A notification of our own that has not arrived yet.
    hello: Option<Hello>,
}

impl Listening {
    async fn begin(
        options: &PgConnectOptions,
        schema: &SchemaCell,
        heartbeat: Duration,
    ) -> Result<Self, StoreError> {
        let runtime = Handle::try_current().map_err(unavailable)?;
        // The name of the channel is no business of a log.
        let options = options.clone().disable_statement_logging();
        // Says hello, and is gone. By itself first: all that a pool says of a failure is that time
        // was up.
        let mut herald = options.connect().await.map_err(failed)?;
        let statements = schema.statements(&mut herald).await.map_err(migrate::failed)?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(DEADLINE)
            .connect_lazy_with(options);
        // Nothing is awaited before it is in the hands of who may drop it anywhere.
        let mut listener = PgListener::connect_with(&pool).await.map_err(failed)?;
        listener.eager_reconnect(false);
        let mut listening = Self {
            listener: Some(listener),
            runtime,
            heartbeat_at: Instant::now() + heartbeat,
            announcer: Announcer::default(),
            guard: Guard::default(),
            statements,
            hello: None,
        };

        let own = raw_sql(BACKEND).fetch_one(listening.listener()?).await.map_err(failed)?;
        let other = raw_sql(BACKEND).fetch_one(&mut herald).await.map_err(failed)?;
        let backend = |row: &PgRow| row.try_get::<i32, _>("backend").map_err(failed);
        if backend(&own)? == backend(&other)? {
            return Err(pooled(SHARED));
        }
        listening.guard = Guard::read(&mut herald, &listening.statements).await?;
        schema.confirm(&listening.statements);

        let channel = listening.guard.channel.clone();
        listening.listener()?.listen(&channel).await.map_err(failed)?;
        let hello = Hello::say(&mut herald, &listening.statements).await?;
        listening.announcer = Announcer::new(&listening.guard.secret, hello.ended);
        let heard = timeout(HELLO_DEADLINE, listening.hear(&hello.message)).await;
        heard.map_err(|_| pooled(UNHEARD))??;
        herald.close().await.map_err(failed)?;
        Ok(listening)
    }

    /// Until `hello` arrives. Whatever else does is confirmed once this is connected.
    async fn hear(&mut self, hello: &str) -> Result<(), StoreError> {
        loop {
            let notification = self.notification().await?;
            if self.message(&notification) == Some(Message::Hello(hello)) {
                return Ok(());
            }
        }
    }

    async fn next(&mut self, heartbeat: Duration) -> Result<Change, StoreError> {
        let mut is_idle = false;
        // Before what has arrived meanwhile: with a backlog, the answer tells how long it is.
        while Instant::now() < self.heartbeat_at {
            let heartbeat_at = self.heartbeat_at;
            // Given up while it merely waits, a listener loses nothing.
            let Ok(notification) = timeout_at(heartbeat_at, self.notification()).await else {
                is_idle = true;
                break;
            };
            let notification = notification?;
            match self.message(&notification) {
                None => return Ok(Change::Junk),
                Some(Message::Told(change)) => return Ok(change),
                Some(Message::Hello(message)) => {
                    let message = message.to_owned();
                    if let Some(hello) = self.hello.take_if(|hello| hello.message == message) {
                        self.announcer.forget(hello.ended);
                    }
                }
            }
        }
        // It was to arrive with the answer to the last heartbeat.
        if is_idle && self.hello.is_some() {
            return Err(unavailable("a notification of our own did not arrive"));
        }
        self.beat(heartbeat).await
    }

    /// Tries the connection, and whether changes are still announced. A dead connection may look as
    /// an idle one does, for ever.
    async fn beat(&mut self, interval: Duration) -> Result<Change, StoreError> {
        let asked = Instant::now();
        let answer = timeout(interval, self.check()).await;
        answer.map_err(|_| unavailable("a heartbeat was not answered"))??;
        self.heartbeat_at = asked + interval;
        Ok(Change::Nothing { lag: asked.elapsed() })
    }

    async fn check(&mut self) -> Result<(), StoreError> {
        let statements = Arc::clone(&self.statements);
        if Guard::read(self.listener()?, &statements).await? != self.guard {
            return Err(unavailable("changes are announced on another channel by now"));
        }
        if self.announcer.taken.len() > MAX_TAKEN {
            return Err(unavailable("too many changes at once"));
        }
        // Where nothing was taken there is nothing to forget, and nobody else need be woken.
        if self.hello.is_none() && !self.announcer.taken.is_empty() {
            self.hello = Some(Hello::say(self.listener()?, &statements).await?);
        }
        Ok(())
    }

    fn message<'n>(&mut self, notification: &'n PgNotification) -> Option<Message<'n>> {
        // sqlx panics where it is not UTF-8. PostgreSQL rather ends the connection than send that,
        // from a database that holds any bytes.
        let payload = catch_unwind(|| notification.payload()).unwrap_or_default();
        self.announcer.open(payload, notification.process_id()).map(parse)
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
const BACKEND: &str = "select pg_backend_pid() as backend";

const SHARED: &str = "two connections share a backend, as behind PgBouncer in transaction mode: \
    take a `PollingChangeFeed` there";

const UNHEARD: &str = "notifications do not arrive, as behind PgBouncer in transaction mode: \
    take a `PollingChangeFeed` there";

const HIDDEN: &str =
    "table `api_key_feed` shows no row to this role: does row-level security hide it?";

/// What announcements depend on.
#[derive(Default, PartialEq, Eq)]
struct Guard {
    channel: String,
    secret: Vec<u8>,
}

impl Guard {
    /// Fails where changes are not announced.
    async fn read<'c>(
        connection: impl PgExecutor<'c>,
        statements: &Statements,
    ) -> Result<Self, StoreError> {
        let row = raw_sql(statements.guard.clone())
            .fetch_optional(connection)
            .await
            .map_err(unreadable)?;
        let row = row.ok_or_else(|| StoreError::new(StoreErrorKind::Other).because(HIDDEN))?;
        if let Some(silent) = row.try_get::<Option<String>, _>("silent").map_err(failed)? {
            let problem = format!(
                "changes are not announced: these triggers are missing, disabled or not ours: \
                 {silent}. Run `migrate`, or enable them"
            );
            return Err(StoreError::new(StoreErrorKind::Migration).because(problem));
        }
        let channel = row.try_get("channel").map_err(failed)?;
        let secret = row.try_get("secret").map_err(failed)?;
        Ok(Self { channel, secret })
    }
}

fn unreadable(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|error| error.code()) {
        Some(code) if code == UNDEFINED_TABLE => migrate::no_changes(),
        _ => failed(error),
    }
}

/// An announcement of our own, which shows how far others have arrived.
struct Hello {
    message: String,
    /// What had ended before.
    ended: Snapshot,
}

impl Hello {
    async fn say<'c>(
        connection: impl PgExecutor<'c>,
        statements: &Statements,
    ) -> Result<Self, StoreError> {
        let row = raw_sql(statements.hello.clone()).fetch_one(connection).await.map_err(astray)?;
        let ended: String = row.try_get("ended").map_err(failed)?;
        let ended = Snapshot::parse(&ended).ok_or_else(|| unavailable("an unknown snapshot"))?;
        Ok(Self { message: row.try_get("message").map_err(failed)?, ended })
    }
}

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

/// Which transactions had ended at some time.
#[derive(Default)]
struct Snapshot {
    /// None from this number on.
    end: u64,
    /// And these had not. In order.
    running: Vec<u64>,
}

impl Snapshot {
    /// A `pg_snapshot` as PostgreSQL writes it: `first_running:end:running,running`.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':').skip(1);
        let end = parts.next()?.parse().ok()?;
        let running = parts.next()?.split(',').filter(|number| !number.is_empty());
        let mut running = running.map(|number| number.parse().ok()).collect::<Option<Vec<_>>>()?;
        running.sort_unstable();
        Some(Self { end, running })
    }

    fn has_ended(&self, transaction: u64) -> bool {
        transaction < self.end && self.running.binary_search(&transaction).is_err()
    }
}

/// Tells announcements of the triggers from forgeries, and from announcements that were overheard
/// and sent again.
///
/// PostgreSQL delivers notifications in the order of commits, and those of a transaction in a row
/// (writers hold a lock from queueing them to the end of their commit). So the announcements of a
/// transaction are taken as long as nothing else comes in between, from the process that sent the
/// first, whose number the server adds. After that, whatever claims to be of that transaction is a
/// copy: who makes it has to have heard the original.
///
/// Nothing that is refused costs more than a SHA-256 of 100 bytes, or changes anything.
#[derive(Default)]
struct Announcer {
    secret: Vec<u8>,
    /// What ended before this has been announced, and delivered.
    ended: Snapshot,
    /// Transactions that were taken since, at least in part.
    taken: HashSet<u64>,
    /// The one whose announcements are being delivered, and the process that sends them.
    current: Option<(u64, u32)>,
}

impl Announcer {
    fn new(secret: &[u8], ended: Snapshot) -> Self {
        Self { secret: secret.to_vec(), ended, ..Self::default() }
    }

    /// What an announcement says, if it is a genuine one.
    fn open<'p>(&mut self, payload: &'p str, sender: u32) -> Option<&'p str> {
        let current = self.current.take();
        if payload.len() > MAX_PAYLOAD {
            return None;
        }
        let (signed, signature) = payload.rsplit_once(':')?;
        if !self.has_signed(signed, signature) {
            return None;
        }
        let (message, transaction) = signed.rsplit_once(':')?;
        let transaction = transaction.parse().ok()?;
        let sent = Some((transaction, sender));
        let is_copy = self.ended.has_ended(transaction) || !self.taken.insert(transaction);
        if is_copy && current != sent {
            return None;
        }
        self.current = sent;
        Some(message)
    }

    fn has_signed(&self, signed: &str, signature: &str) -> bool {
        let digest = digest(&[&self.secret, signed.as_bytes()]);
        let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let digits = digits.map(|digit| char::from_digit(u32::from(digit), 16));
        // All of it, so that how long it takes tells nothing.
        signature.len() == DIGEST_LEN
            && signature
                .chars()
                .zip(digits)
                .fold(true, |is_same, (given, expected)| is_same & (Some(given) == expected))
    }

    /// All that had ended before a notification that has arrived was delivered before it.
    fn forget(&mut self, ended: Snapshot) {
        self.taken.retain(|transaction| !ended.has_ended(*transaction));
        self.ended = ended;
        self.current = None;
    }
}

/// What a genuine announcement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message<'m> {
    Told(Change),
    /// A node tries whether notifications arrive.
    Hello(&'m str),
}

/// What this version does not know may be anything that a later one announces.
fn parse(message: &str) -> Message<'_> {
    let known = || {
        let message = message.strip_prefix("v2:")?;
        let told = match message.split_once(':') {
            Some(("created", id)) => Change::Created(key_id(id)?),
            Some(("changed", id)) => Change::Changed(key_id(id)?),
            Some(("hello", _)) => return Some(Message::Hello(message)),
            _ => return None,
        };
        Some(Message::Told(told))
    };
    known().unwrap_or(Message::Told(Change::Everything))
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
    const SECRET: &[u8] = b"a secret";
    const SENDER: u32 = 42;

    fn id() -> KeyId {
        ID.parse().unwrap()
    }

    /// As `api_key_announce` signs.
    fn signed(secret: &[u8], message: &str, transaction: u64) -> String {
        let signed = format!("v2:{message}:{transaction}");
        let digest = digest(&[secret, signed.as_bytes()]);
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{signed}:{}", &digits[..DIGEST_LEN])
    }

    /// Transactions before 100 had ended, but for 90 and 95.
    fn announcer() -> Announcer {
        Announcer::new(SECRET, Snapshot::parse("90:100:90,95").unwrap())
    }

    fn everything(transaction: u64) -> String {
        signed(SECRET, "everything", transaction)
    }

    #[test]
    fn every_message_is_understood() {
        assert_eq!(parse(&format!("v2:created:{ID}")), Message::Told(Change::Created(id())));
        assert_eq!(parse(&format!("v2:changed:{ID}")), Message::Told(Change::Changed(id())));
        assert_eq!(parse("v2:everything"), Message::Told(Change::Everything));
        assert_eq!(parse("v2:hello:4711"), Message::Hello("hello:4711"));
    }

    #[test]
    fn a_genuine_message_of_another_version_may_mean_anything() {
        let spellings =
            [ID.to_uppercase(), format!("{{{ID}}}"), ID.replace('-', ""), ID[1..].into()];
        let odd = spellings.iter().map(|spelling| format!("v2:changed:{spelling}"));
        let others = ["", ":", "v2", "v2:", "v2:created", "v3:everything", "v2:suspended:4711"];
        for message in odd.chain(others.map(Into::into)) {
            assert_eq!(parse(&message), Message::Told(Change::Everything), "{message:?}");
        }
    }

    #[test]
    fn what_the_secret_has_not_signed_is_refused() {
        let mut announcer = announcer();
        let genuine = everything(100);
        let (text, signature) = genuine.rsplit_once(':').unwrap();
        for forged in [
            signed(b"another secret", "everything", 100),
            signed(b"", "everything", 100),
            text.to_owned(),
            format!("{text}:"),
            format!("{text}:{}", signature.to_uppercase()),
            format!("{text}:{}", &signature[1..]),
            format!("{text}:{signature}0"),
            format!("{text} :{signature}"),
            format!("v2:everything:101:{signature}"),
            format!("{text}:{}", "0".repeat(DIGEST_LEN)),
            "v2:everything".into(),
            "v1:everything".into(),
            String::new(),
            ":".repeat(8_000),
            "\u{1f600}".repeat(50),
        ] {
            assert_eq!(announcer.open(&forged, SENDER), None, "{forged:?}");
        }
        assert_eq!(announcer.open(&genuine, SENDER), Some("v2:everything"));
    }

    #[test]
    fn a_transaction_is_taken_once_and_all_of_it() {
        let mut announcer = announcer();
        let [created, changed] = ["created", "changed"].map(|word| format!("{word}:{ID}"));
        for transaction in [100, 95, 102, 101] {
            for message in [&created, &changed, &changed] {
                let payload = signed(SECRET, message, transaction);
                assert!(announcer.open(&payload, SENDER).is_some(), "{payload}");
            }
            // What has begun ends with the first thing in between.
            assert_eq!(announcer.open("junk", SENDER), None);
            assert_eq!(announcer.open(&signed(SECRET, &created, transaction), SENDER), None);
        }
    }

    #[test]
    fn what_was_overheard_is_worth_nothing() {
        let mut announcer = announcer();
        assert!(announcer.open(&everything(100), SENDER).is_some());
        assert_eq!(announcer.open(&everything(100), SENDER + 1), None, "by another process");
        assert_eq!(announcer.open(&everything(100), SENDER), None, "after it was copied");
        for ended in [1, 89, 91, 94, 96, 99] {
            assert_eq!(announcer.open(&everything(ended), SENDER), None, "from before: {ended}");
        }
        assert!(announcer.open(&everything(90), SENDER).is_some(), "it was running then");
    }

    #[test]
    fn what_is_forgotten_is_not_taken_again() {
        let mut announcer = announcer();
        for transaction in [100, 101, 104, 90] {
            assert!(announcer.open(&everything(transaction), SENDER).is_some());
        }
        announcer.forget(Snapshot::parse("95:103:95,102").unwrap());
        assert_eq!(announcer.taken, HashSet::from([104]));
        for transaction in [90, 100, 101, 104] {
            assert_eq!(announcer.open(&everything(transaction), SENDER), None, "{transaction}");
        }
        for transaction in [95, 102, 103] {
            assert!(announcer.open(&everything(transaction), SENDER).is_some(), "{transaction}");
        }
    }

    #[test]
    fn snapshots_are_read_as_they_are_written() {
        let ended = Snapshot::parse("7:7:").unwrap();
        assert!(ended.has_ended(6) && !ended.has_ended(7));
        for odd in ["", "7", "7:7", "7:x:", "7:8:9,x"] {
            assert!(Snapshot::parse(odd).is_none(), "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn no_payload_is_too_odd(payload in "\\PC*", message in "(v2:)?[a-z]*:\\PC*") {
            prop_assert_eq!(announcer().open(&payload, SENDER), None);
            parse(&message);
        }

        #[test]
        fn ids_are_read_as_they_are_written(bytes: [u8; 16]) {
            let id = KeyId::from_bytes(bytes);
            let told = |word| match parse(&format!("v2:{word}:{id}")) {
                Message::Told(change) => Some(change),
                Message::Hello(_) => None,
            };
            prop_assert_eq!(told("created"), Some(Change::Created(id)));
            prop_assert_eq!(told("changed"), Some(Change::Changed(id)));
        }
    }
}

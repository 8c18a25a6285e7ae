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
/// Deadline for connecting as a whole.
const DEADLINE: Duration = Duration::from_secs(5);
/// Deadline for the first notification. On a direct connection it takes a millisecond.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Our payloads are shorter.
const MAX_PAYLOAD: usize = 256;
/// Hexadecimal digits of the digest in a payload: 128 bits.
const DIGEST_LEN: usize = 32;
/// Maximum transactions between two heartbeats whose announcements are remembered, some 4 MB.
/// Beyond that, reconnecting is cheaper.
const MAX_TAKEN: usize = 100_000;

/// Change feed over PostgreSQL notifications: triggers on `api_keys` announce every change, from
/// any client, as soon as it is committed.
///
/// It opens its own connection to the database of `pool` and takes none from the pool: a pool of
/// one connection can still serve look-ups. Closing the pool ends the feed. Use one feed per
/// process: each commit of a change wakes every listener.
///
/// If notifications do not arrive, connecting fails instead of leaving the feed silent. Use a
/// [`PollingChangeFeed`](crate::store::PollingChangeFeed) in these cases:
///
/// 1. behind PgBouncer in transaction mode, where clients share server connections. A pool that
///    bypasses PgBouncer, just for the feed, works as well;
/// 2. on a standby, which does not support LISTEN.
///
/// Announcing triggers have limitations: a transaction that changes keys cannot be prepared for
/// two-phase commit, and changes applied by logical replication are not announced.
///
/// The feed needs the right to read `api_key_feed`, the table with the name of the channel and the
/// secret that signs announcements. Roles without it can neither receive nor forge announcements:
/// their notifications do not arrive here, or are [ignored](Change::Unrecognized) at the cost of a
/// SHA-256.
///
/// Look-ups must use the server that the feed listens to. A replica may not have applied a change
/// yet when it is announced: poll the replica instead.
///
/// # Cancellation
///
/// Both futures, and the feed itself, may be dropped at any time, even outside of the runtime.
pub struct PgChangeFeed {
    pool: PgPool,
    schema: Arc<SchemaCell>,
    heartbeat: Duration,
    listening: Option<Listening>,
}

impl PgChangeFeed {
    /// Changes in the database behind `pool`. Connects with the pool's current options, so a
    /// password replaced with `set_connect_options` is picked up.
    ///
    /// The tables are found on the `search_path`.
    /// [`PgKeyStore::change_feed`](super::PgKeyStore::change_feed) listens to the schema of a
    /// store.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self::of(pool, Arc::new(SchemaCell::new(None, Timeouts::default())))
    }

    pub(super) fn of(pool: PgPool, schema: Arc<SchemaCell>) -> Self {
        Self { pool, schema, heartbeat: HEARTBEAT, listening: None }
    }

    /// How often to check the connection and that the triggers are still in place. A connection
    /// that died silently is detected within two intervals, a missing trigger within one.
    ///
    /// Default: 15 s, so detection takes at most half a minute. The cost is one catalog query per
    /// interval and node, plus a notification if there were changes. Clamped to at least 10 ms, to
    /// limit the load on the database, and at most 5 min, after which many networks drop idle
    /// connections.
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
        // Put back only on success: after an error, sqlx's listener reconnects silently, and if
        // that is interrupted, it never reports another notification.
        let listening = self.listening.take();
        let mut listening = listening.ok_or_else(|| unavailable("call `connect` first"))?;
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

/// A connection on which notifications are known to arrive.
struct Listening {
    listener: Option<PgListener>,
    /// sqlx's listener spawns a task on drop, and panics outside of a runtime.
    runtime: Handle,
    heartbeat_at: Instant,
    announcer: Announcer,
    guard: Guard,
    statements: Arc<Statements>,
    /// Our own announcement that has not arrived yet.
    hello: Option<Hello>,
}

impl Listening {
    async fn begin(
        options: &PgConnectOptions,
        schema: &SchemaCell,
        heartbeat: Duration,
    ) -> Result<Self, StoreError> {
        let runtime = Handle::try_current().map_err(unavailable)?;
        // The channel's name must not be logged.
        let options = options.clone().disable_statement_logging();
        // A short-lived connection that announces the hello. Connect it without the pool first: a
        // pool reports any failure as a timeout.
        let mut herald = options.connect().await.map_err(failed)?;
        let statements = schema.statements(&mut herald).await.map_err(migrate::failed)?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(DEADLINE)
            .connect_lazy_with(options);
        // Nothing may be awaited until the listener is in `Self`, whose drop works anywhere.
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

    /// Waits for `hello`. Other notifications are dropped: cached keys are confirmed after
    /// connecting.
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
        // Checked before pending notifications: with a backlog, the answer's delay shows how long
        // it is.
        while Instant::now() < self.heartbeat_at {
            let heartbeat_at = self.heartbeat_at;
            // Cancelling a listener that is merely waiting loses nothing.
            let Ok(notification) = timeout_at(heartbeat_at, self.notification()).await else {
                is_idle = true;
                break;
            };
            let notification = notification?;
            match self.message(&notification) {
                None => return Ok(Change::Unrecognized),
                Some(Message::Told(change)) => return Ok(change),
                Some(Message::Hello(message)) => {
                    let message = message.to_owned();
                    if let Some(hello) = self.hello.take_if(|hello| hello.message == message) {
                        self.announcer.forget(hello.ended);
                    }
                }
            }
        }
        // It should have arrived with the answer to the last heartbeat.
        if is_idle && self.hello.is_some() {
            return Err(unavailable("our own notification did not arrive"));
        }
        self.beat(heartbeat).await
    }

    /// Checks the connection, and that changes are still announced. A dead connection can look idle
    /// forever.
    async fn beat(&mut self, interval: Duration) -> Result<Change, StoreError> {
        let asked = Instant::now();
        let answer = timeout(interval, self.check()).await;
        answer.map_err(|_| unavailable("heartbeat not answered"))??;
        self.heartbeat_at = asked + interval;
        Ok(Change::Heartbeat { lag: asked.elapsed() })
    }

    async fn check(&mut self) -> Result<(), StoreError> {
        let statements = Arc::clone(&self.statements);
        if Guard::read(self.listener()?, &statements).await? != self.guard {
            return Err(unavailable("changes are now announced on another channel"));
        }
        if self.announcer.taken.len() > MAX_TAKEN {
            return Err(unavailable("too many changes between two heartbeats"));
        }
        // If nothing was taken, there is nothing to forget, and no need to wake other listeners.
        if self.hello.is_none() && !self.announcer.taken.is_empty() {
            self.hello = Some(Hello::say(self.listener()?, &statements).await?);
        }
        Ok(())
    }

    fn message<'n>(&mut self, notification: &'n PgNotification) -> Option<Message<'n>> {
        // sqlx panics if the payload is not UTF-8. PostgreSQL would end the connection rather than
        // send one, except from a database with encoding SQL_ASCII.
        let payload = catch_unwind(|| notification.payload()).unwrap_or_default();
        self.announcer.open(payload, notification.process_id()).map(parse)
    }

    async fn notification(&mut self) -> Result<PgNotification, StoreError> {
        let notification = self.listener()?.try_recv().await.map_err(failed)?;
        notification.ok_or_else(|| unavailable("connection lost"))
    }

    fn listener(&mut self) -> Result<&mut PgListener, StoreError> {
        self.listener.as_mut().ok_or_else(|| unavailable("connection lost"))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _entered = self.runtime.enter();
        self.listener = None;
    }
}

// These have no parameters, so that a pooler that mixes up prepared statements is detected.
//
// Clients that share a backend take turns on it. A LISTEN would stay behind on it, and its
// notifications would arrive in the middle of another client's query.
const BACKEND: &str = "select pg_backend_pid() as backend";

const SHARED: &str = "two connections share a backend, as behind PgBouncer in transaction mode: \
    use a `PollingChangeFeed` there";

const UNHEARD: &str = "notifications do not arrive, as behind PgBouncer in transaction mode: \
    use a `PollingChangeFeed` there";

const HIDDEN: &str =
    "table `api_key_feed` has no row visible to this role: check row-level security";

/// What announcements depend on.
#[derive(Default, PartialEq, Eq)]
struct Guard {
    channel: String,
    secret: Vec<u8>,
}

impl Guard {
    /// Fails if changes are not announced.
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
                "changes are not announced: these triggers are missing, disabled or replaced: \
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

/// Our own announcement; when it arrives, earlier ones have arrived as well.
struct Hello {
    message: String,
    /// The transactions that had ended before it.
    ended: Snapshot,
}

impl Hello {
    async fn say<'c>(
        connection: impl PgExecutor<'c>,
        statements: &Statements,
    ) -> Result<Self, StoreError> {
        let row = raw_sql(statements.hello.clone()).fetch_one(connection).await.map_err(astray)?;
        let ended: String = row.try_get("ended").map_err(failed)?;
        let ended = Snapshot::parse(&ended).ok_or_else(|| unavailable("invalid snapshot"))?;
        Ok(Self { message: row.try_get("message").map_err(failed)?, ended })
    }
}

/// sqlx reports a protocol error for a notification that another client of the connection listens
/// for.
fn astray(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Protocol(_) => pooled(UNHEARD),
        error => failed(error),
    }
}

/// Retrying will not help.
fn pooled(problem: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Other).because(problem)
}

/// Which transactions had ended at some time.
#[derive(Default)]
struct Snapshot {
    /// No transaction from this number on had ended.
    end: u64,
    /// These had not ended either. Sorted.
    running: Vec<u64>,
}

impl Snapshot {
    /// Parses a `pg_snapshot` in PostgreSQL's text format: `first_running:end:running,running`.
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

/// Distinguishes the triggers' announcements from forged and replayed ones.
///
/// PostgreSQL delivers notifications in commit order, and those of one transaction consecutively
/// (writers hold a lock from queueing them to the end of the commit). So a transaction's
/// announcements are accepted only in one uninterrupted run, from the process that sent the first;
/// the server adds the process number. Anything later that claims to be of that transaction is a
/// replay, whose sender must have received the original.
///
/// A rejected message costs at most a SHA-256 of 100 bytes and changes nothing.
#[derive(Default)]
struct Announcer {
    secret: Vec<u8>,
    /// The announcements of these transactions have been delivered.
    ended: Snapshot,
    /// Transactions accepted since then, at least in part.
    taken: HashSet<u64>,
    /// The transaction whose announcements are being delivered, and the process sending them.
    current: Option<(u64, u32)>,
}

impl Announcer {
    fn new(secret: &[u8], ended: Snapshot) -> Self {
        Self { secret: secret.to_vec(), ended, ..Self::default() }
    }

    /// The message of an announcement, if it is genuine.
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
        // Compares all digits, so that the time taken reveals nothing.
        signature.len() == DIGEST_LEN
            && signature
                .chars()
                .zip(digits)
                .fold(true, |is_same, (given, expected)| is_same & (Some(given) == expected))
    }

    /// Forgets the transactions that had ended before a notification that has arrived: theirs were
    /// delivered before it.
    fn forget(&mut self, ended: Snapshot) {
        self.taken.retain(|transaction| !ended.has_ended(*transaction));
        self.ended = ended;
        self.current = None;
    }
}

/// The content of a genuine announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message<'m> {
    Told(Change),
    /// A node checks whether notifications arrive.
    Hello(&'m str),
}

/// A message unknown to this version may announce anything, so it counts as a change of everything.
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

/// Parses an id in PostgreSQL's spelling.
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

    /// Signs like `api_key_announce`.
    fn signed(secret: &[u8], message: &str, transaction: u64) -> String {
        let signed = format!("v2:{message}:{transaction}");
        let digest = digest(&[secret, signed.as_bytes()]);
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{signed}:{}", &digits[..DIGEST_LEN])
    }

    /// All transactions before 100 had ended, except 90 and 95.
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
            // Any other message ends the run of a transaction.
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

//! The connection to Redis, and whether to count on it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{
    breaker::Breaker,
    script::{self, Call, Reply},
};
use crate::trace;

/// How long connecting may take, for which no request waits longer than its own deadline.
const CONNECTING: Duration = Duration::from_millis(500);
/// How many commands may wait for the connection's task. As many requests as that do not wait for
/// room instead.
const BUFFER: usize = 1024;

/// One connection for all requests, made when the first one comes, and again after failures.
pub(super) struct Link {
    client: Client,
    deadline: Duration,
    breaker: Breaker,
    /// What came of connecting last; `None` if that is to be done.
    connection: watch::Sender<Option<Result<Connection, Failure>>>,
    is_connecting: AtomicBool,
    /// The key whose request failed last. A server that is well has to do it for this one.
    suspect: Mutex<Arc<str>>,
}

#[derive(Clone)]
struct Connection {
    commands: MultiplexedConnection,
    /// The hash by which Redis knows the script.
    hash: Arc<str>,
}

/// Why Redis did not decide.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Late,
    Unreadable,
    Dropped,
    Redis(RedisError),
}

impl Link {
    pub(super) fn new(client: Client, deadline: Duration, prefix: &str) -> Self {
        Self {
            client,
            deadline,
            breaker: Breaker::default(),
            connection: watch::Sender::new(None),
            is_connecting: AtomicBool::new(false),
            suspect: Mutex::new(prefix.into()),
        }
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether the last answers came from Redis.
    pub(super) fn has_answered(&self) -> bool {
        self.breaker.has_answered()
    }

    /// Whether to ask Redis. Where it is down, somebody looks from time to time whether it is back,
    /// and no request waits for that.
    pub(super) fn is_up(self: &Arc<Self>, now: Duration) -> bool {
        if self.breaker.is_closed() {
            return true;
        }
        if self.breaker.is_probe_due(now) {
            self.connect();
        }
        false
    }

    /// Has Redis decide, within the deadline.
    pub(super) async fn ask(
        self: &Arc<Self>,
        call: &Call,
        now: Duration,
    ) -> Result<Reply, Failure> {
        let outcome = timeout(self.deadline, self.exchange(call)).await;
        let outcome = outcome.unwrap_or(Err(Failure::Late));
        match &outcome {
            Ok(_) => self.answered(),
            Err(failure) => self.failed(failure, call, now),
        }
        outcome
    }

    async fn exchange(self: &Arc<Self>, call: &Call) -> Result<Reply, Failure> {
        let connection = self.connected().await?;
        let command = call.command(&connection.hash);
        let mut answer = connection.run(&command).await;
        if answer.as_ref().is_err_and(Failure::is_unknown_script) {
            connection.run(&script::load()).await?;
            answer = connection.run(&command).await;
        }
        if let Err(failure) = &answer
            && failure.is_final()
        {
            self.drop_connection(&connection);
        }
        call.reply(answer?).ok_or(Failure::Unreadable)
    }

    async fn connected(self: &Arc<Self>) -> Result<Connection, Failure> {
        let mut outcome = self.connection.subscribe();
        if let Some(Ok(connection)) = &*outcome.borrow_and_update() {
            return Ok(connection.clone());
        }
        self.connect();
        // The sender is `self`.
        let _ = outcome.changed().await;
        outcome.borrow().clone().unwrap_or(Err(Failure::Dropped))
    }

    /// Connects in a task of its own, unless one is at it, so that a request that hangs up takes
    /// nothing with it.
    fn connect(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_connecting.swap(true, Ordering::AcqRel) {
            return;
        }
        let link = Arc::clone(self);
        runtime.spawn(async move {
            let turn = Turn(&link.is_connecting);
            let outcome = timeout(CONNECTING, link.new_connection()).await;
            let outcome = outcome.unwrap_or(Err(Failure::Late));
            drop(turn);
            let is_well = outcome.is_ok();
            link.connection.send_replace(Some(outcome));
            if is_well {
                link.answered();
            }
        });
    }

    /// A connection on which Redis has done in time what requests need.
    async fn new_connection(&self) -> Result<Connection, Failure> {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(BUFFER);
        let commands = self.client.get_multiplexed_async_connection_with_config(&settings).await?;
        let mut connection = Connection { commands, hash: "".into() };
        let hash = connection.run(&script::load()).await?;
        connection.hash = redis::from_redis_value::<String>(hash).map_err(RedisError::from)?.into();
        let probe = script::probe(&connection.hash, &self.suspect());
        timeout(self.deadline, connection.run(&probe)).await.unwrap_or(Err(Failure::Late))?;
        Ok(connection)
    }

    fn drop_connection(&self, failed: &Connection) {
        self.connection.send_if_modified(|current| {
            let is_current = |current: &Connection| Arc::ptr_eq(&current.hash, &failed.hash);
            let is_current = matches!(current, Some(Ok(current)) if is_current(current));
            if is_current {
                *current = None;
            }
            is_current
        });
    }

    fn answered(&self) {
        if self.breaker.answered() {
            trace::info!("rate limits are shared: Redis decides");
        }
    }

    fn failed(&self, failure: &Failure, call: &Call, now: Duration) {
        if failure.is_of_one_key() {
            // Redis is well.
            return;
        }
        if let Some(bucket) = call.buckets.first() {
            *self.suspect.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&bucket.key);
        }
        if self.breaker.failed(now) {
            // It may hang, and would not say so.
            self.connection.send_replace(None);
            trace::warn!(%failure, "rate limits are this node's own: Redis does not decide");
        }
    }

    fn suspect(&self) -> Arc<str> {
        Arc::clone(&self.suspect.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Connection {
    async fn run(&self, command: &Cmd) -> Result<Value, Failure> {
        Ok(command.query_async(&mut self.commands.clone()).await?)
    }
}

impl Failure {
    /// The key holds something else than a bucket.
    pub(super) fn is_of_one_key(&self) -> bool {
        matches!(self, Self::Redis(error) if error.code() == Some("WRONGTYPE"))
    }

    fn is_unknown_script(&self) -> bool {
        let no_script = ErrorKind::Server(ServerErrorKind::NoScript);
        matches!(self, Self::Redis(error) if error.kind() == no_script)
    }

    /// Nothing more will come on this connection.
    fn is_final(&self) -> bool {
        matches!(self, Self::Redis(error) if error.is_unrecoverable_error())
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("no answer within the deadline"),
            Self::Unreadable => f.write_str("an answer that makes no sense"),
            Self::Dropped => f.write_str("the connection was given up"),
            Self::Redis(error) => error.fmt(f),
        }
    }
}

/// Lets the next one connect, even after a panic.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

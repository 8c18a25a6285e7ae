//! The connection to Redis, and whether requests use it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::script::{self, Call, Reply};
use crate::{
    circuit_breaker::{Answer, BreakerConfig, CircuitBreaker},
    clock::nanos,
    trace,
};

/// The circuit breaker of Redis. It counts probes, which are small and constant, not requests: a
/// request may fail or be slow because of its own cell, which says nothing about the others.
/// Including the probe itself, a recovery is noticed well within a second.
const BREAKER: BreakerConfig = BreakerConfig {
    threshold: 2,
    cool_down: Duration::from_millis(200),
    failures_postpone_probe: false,
};

/// The deadline for connecting. Requests wait for it only until their own deadline.
const CONNECTING: Duration = Duration::from_millis(500);
/// How often failures of single requests are logged.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// The queue of the connection's task. Beyond this many commands, requests wait for room.
const BUFFER: usize = 1024;

/// One connection for all requests, opened on the first one and again after failures.
pub(super) struct Connection {
    client: Client,
    deadline: Duration,
    breaker: CircuitBreaker,
    /// The result of the last attempt to connect; `None` if a new one is needed.
    connection: watch::Sender<Option<Result<Session, Failure>>>,
    is_connecting: AtomicBool,
    /// Whether Redis is being probed because a request failed.
    is_probing: AtomicBool,
    /// The key of the last failed request. A healthy server must answer a probe beside it.
    probe_key: Mutex<Arc<str>>,
    /// When to log the next failure of a single request, in nanoseconds of the monotonic clock.
    log_at: AtomicU64,
}

#[derive(Clone)]
struct Session {
    commands: MultiplexedConnection,
    /// The SHA-1 hash of the loaded script.
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

impl Connection {
    pub(super) fn new(client: Client, deadline: Duration, prefix: &str) -> Self {
        Self {
            client,
            deadline,
            breaker: CircuitBreaker::new(BREAKER),
            connection: watch::Sender::new(None),
            is_connecting: AtomicBool::new(false),
            is_probing: AtomicBool::new(false),
            probe_key: Mutex::new(prefix.into()),
            log_at: AtomicU64::new(0),
        }
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether Redis decides; `None` if it has not answered yet and has not failed either.
    pub(super) fn is_known_up(&self) -> Option<bool> {
        self.breaker.is_up().or_else(|| (!self.breaker.is_closed()).then_some(false))
    }

    /// Whether to ask Redis. While it is down, this occasionally starts a task that probes it; no
    /// request waits for that.
    pub(super) fn is_up(self: &Arc<Self>, now: Duration) -> bool {
        if self.breaker.is_closed() {
            return true;
        }
        if self.breaker.take_probe(now) {
            self.connect();
        }
        false
    }

    /// Asks Redis, within the deadline.
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
        let answer = connection.run_script(&command).await;
        if let Err(failure) = &answer
            && failure.is_final()
        {
            self.drop_connection(&connection);
        }
        call.reply(answer?).ok_or(Failure::Unreadable)
    }

    async fn connected(self: &Arc<Self>) -> Result<Session, Failure> {
        let mut outcome = self.connection.subscribe();
        if let Some(Ok(connection)) = &*outcome.borrow_and_update() {
            return Ok(connection.clone());
        }
        self.connect();
        // Cannot fail: the sender is in `self`.
        let _ = outcome.changed().await;
        outcome.borrow().clone().unwrap_or(Err(Failure::Dropped))
    }

    /// Connects in a task of its own, unless one is already connecting, so that a cancelled request
    /// does not abort it.
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

    /// A connection on which Redis has answered a probe in time.
    async fn new_connection(&self) -> Result<Session, Failure> {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(BUFFER);
        let commands = self.client.get_multiplexed_async_connection_with_config(&settings).await?;
        let mut connection = Session { commands, hash: "".into() };
        let hash = connection.run(&script::load()).await?;
        connection.hash = redis::from_redis_value::<String>(hash).map_err(RedisError::from)?.into();
        timeout(self.deadline, self.probe(&connection)).await.unwrap_or(Err(Failure::Late))?;
        Ok(connection)
    }

    /// Asks Redis for a little of everything that requests need.
    async fn probe(&self, connection: &Session) -> Result<(), Failure> {
        let probe = script::probe(&connection.hash, &self.probe_key());
        let answer = connection.run_script(&probe).await?;
        if script::is_well(&answer) { Ok(()) } else { Err(Failure::Unreadable) }
    }

    /// Finds out whether Redis or only this request failed: Redis is down if it fails probes, too.
    fn verify(self: &Arc<Self>, failed: &Failure, now: Duration) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (link, failed) = (Arc::clone(self), failed.clone());
        runtime.spawn(async move {
            let _turn = Turn(&link.is_probing);
            while link.breaker.is_closed() {
                let probed = timeout(link.deadline, link.probe_connected()).await;
                match probed.unwrap_or(Err(Failure::Late)) {
                    Ok(()) => return link.acquitted(&failed, now),
                    Err(failure) => link.probe_failed(&failure, now),
                }
            }
        });
    }

    async fn probe_connected(self: &Arc<Self>) -> Result<(), Failure> {
        let connection = self.connected().await?;
        let probed = self.probe(&connection).await;
        if probed.as_ref().is_err_and(Failure::is_final) {
            self.drop_connection(&connection);
        }
        probed
    }

    /// Redis is up; only one request failed.
    fn acquitted(&self, failed: &Failure, now: Duration) {
        self.answered();
        // Unused without `tracing`.
        let _ = failed;
        let (now, log_at) = (nanos(now), self.log_at.load(Ordering::Relaxed));
        if now >= log_at {
            self.log_at.store(now.saturating_add(nanos(LOG_EVERY)), Ordering::Relaxed);
            trace::warn!(
                key = &*self.probe_key(),
                failure = %failed,
                "rate limit call failed; outage policy applied"
            );
        }
    }

    fn probe_failed(&self, failure: &Failure, now: Duration) {
        let _ = failure;
        if self.breaker.failed(now) {
            // The connection may hang without an error.
            self.connection.send_replace(None);
            trace::warn!(%failure, "redis unavailable; outage policy applies");
        }
    }

    fn drop_connection(&self, failed: &Session) {
        self.connection.send_if_modified(|current| {
            let is_current = |current: &Session| Arc::ptr_eq(&current.hash, &failed.hash);
            let is_current = matches!(current, Some(Ok(current)) if is_current(current));
            if is_current {
                *current = None;
            }
            is_current
        });
    }

    fn answered(&self) {
        if self.breaker.answered() != Answer::Routine {
            trace::info!("redis connected; rate limits are shared");
        }
    }

    fn failed(self: &Arc<Self>, failure: &Failure, call: &Call, now: Duration) {
        if failure.is_of_one_subject() {
            // Redis itself is up.
            return;
        }
        if let Some(cell) = call.counted.cells.first() {
            let key = Arc::clone(&cell.key);
            *self.probe_key.lock().unwrap_or_else(PoisonError::into_inner) = key;
        }
        self.verify(failure, now);
    }

    fn probe_key(&self) -> Arc<str> {
        Arc::clone(&self.probe_key.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Session {
    async fn run(&self, command: &Cmd) -> Result<Value, Failure> {
        Ok(command.query_async(&mut self.commands.clone()).await?)
    }

    /// Reloads the script if Redis has lost it.
    async fn run_script(&self, command: &Cmd) -> Result<Value, Failure> {
        let answer = self.run(command).await;
        if !answer.as_ref().is_err_and(Failure::is_unknown_script) {
            return answer;
        }
        self.run(&script::load()).await?;
        self.run(command).await
    }
}

impl Failure {
    /// Whether the key holds something other than a cell of this version.
    pub(super) fn is_of_one_subject(&self) -> bool {
        matches!(self, Self::Redis(error) if script::is_not_a_cell(error))
    }

    fn is_unknown_script(&self) -> bool {
        let no_script = ErrorKind::Server(ServerErrorKind::NoScript);
        matches!(self, Self::Redis(error) if error.kind() == no_script)
    }

    /// Whether the connection is unusable.
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
            Self::Unreadable => f.write_str("unreadable answer"),
            Self::Dropped => f.write_str("connection dropped"),
            Self::Redis(error) => error.fmt(f),
        }
    }
}

/// Clears the flag on drop, even after a panic.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

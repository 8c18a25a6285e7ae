use std::{panic::catch_unwind, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, Row as _,
    postgres::{PgConnectOptions, PgListener, PgNotification, PgPoolOptions, PgRow},
    raw_sql,
};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout, timeout_at},
};

use super::{
    error::{UNHEARD, pooled, unavailable},
    guard::Guard,
    hello::Hello,
    message::{Message, parse},
    signature::Announcer,
};
use crate::store::{
    StoreError, migrate,
    port::Change,
    postgres::{
        error::failed,
        schema::{SchemaCell, Statements},
    },
};

/// Deadline for connecting as a whole.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Deadline for the first notification. On a direct connection it takes a millisecond.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Maximum transactions between two heartbeats whose announcements are remembered, some 4 MB.
/// Beyond that, reconnecting is cheaper.
const MAX_TAKEN: usize = 100_000;

/// A connection on which notifications are known to arrive.
pub(super) struct Listening {
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
    pub(super) async fn begin(
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

    pub(super) async fn next(&mut self, heartbeat: Duration) -> Result<Change, StoreError> {
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

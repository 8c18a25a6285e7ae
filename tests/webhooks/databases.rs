//! The databases that each test runs on.

use std::time::Duration;

use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};
use tower_api_key::{
    key::KeyFormat,
    manage::{Expiry, KeyIssuer, NewKey},
    record::KeyRecord,
    store::{PgKeyStore, SqliteKeyStore},
    webhooks::{WebhookWorker, Webhooks},
};

use crate::{
    servers::postgres::{Database, Server},
    wait::within,
};

pub(crate) enum Place {
    Postgres(PgKeyStore, Database),
    Sqlite(SqliteKeyStore, TempDir),
}

/// A worker in a task.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Place {
    /// An empty database of each kind.
    pub(crate) async fn all() -> [Self; 2] {
        [Self::postgres().await, Self::sqlite().await]
    }

    pub(crate) async fn postgres() -> Self {
        let database = Server::shared().database().await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        store.migrate().await.unwrap();
        Self::Postgres(store, database)
    }

    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/keys.db", folder.path().display());
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        store.migrate().await.unwrap();
        Self::Sqlite(store, folder)
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Postgres(_, database) => database.url().to_owned(),
            Self::Sqlite(_, folder) => format!("sqlite://{}/keys.db", folder.path().display()),
        }
    }

    /// Webhooks that may be posted to this machine, and look for events all the time.
    pub(crate) fn webhooks(&self) -> Webhooks {
        local(self.strict_webhooks())
    }

    /// Webhooks that may only be posted to the internet.
    pub(crate) fn strict_webhooks(&self) -> Webhooks {
        let webhooks = match self {
            Self::Postgres(store, _) => Webhooks::new(store.clone()),
            Self::Sqlite(store, _) => Webhooks::new(store.clone()),
        };
        webhooks.interval(Duration::from_millis(10))
    }

    pub(crate) fn issuer(&self) -> KeyIssuer {
        let format = KeyFormat::new("sk_test_").unwrap();
        match self {
            Self::Postgres(store, _) => KeyIssuer::new(store.clone(), format),
            Self::Sqlite(store, _) => KeyIssuer::new(store.clone(), format),
        }
    }

    pub(crate) async fn issue(&self) -> KeyRecord {
        self.issuer().issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record
    }

    /// Runs a statement that both databases know.
    pub(crate) async fn run(&self, sql: &'static str) {
        match self {
            Self::Postgres(store, _) => {
                sqlx::raw_sql(sql).execute(store.pool()).await.map(drop).unwrap();
            }
            Self::Sqlite(store, _) => {
                sqlx::raw_sql(sql).execute(store.pool()).await.map(drop).unwrap();
            }
        }
    }
}

pub(crate) fn local(webhooks: Webhooks) -> Webhooks {
    webhooks.allow_network("127.0.0.0/8".parse().unwrap())
}

impl Running {
    pub(crate) fn start(webhooks: &Webhooks) -> Self {
        Self::run(webhooks.worker())
    }

    pub(crate) fn run(worker: WebhookWorker) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(worker.run(async { _ = stopped.await }));
        Self { stop, task }
    }

    /// Stops the worker, and waits for it to end.
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        within(self.task).await.unwrap();
    }

    /// Ends the worker in the middle of whatever it does.
    pub(crate) fn kill(self) {
        self.task.abort();
    }
}

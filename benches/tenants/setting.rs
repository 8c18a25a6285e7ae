//! A service with an account and an admin router, on a PostgreSQL of its own.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::net::TcpListener;
use tower_api_key::{
    ApiKeyLayer, Authenticator, account, admin,
    key::KeyFormat,
    manage::{Expiry, KeyIssuer, NewKey},
    record::{KeyId, Metadata, Scopes},
    store::{PgChangeFeed, PgKeyStore},
};

use crate::{
    Result,
    harness::postgres::{Database, Server},
};

pub(crate) const PREFIX: &str = "sk_live_";
/// Keys of the attacking consumer: a page of them has the maximum size.
const ATTACKERS_KEYS: usize = 300;

pub(crate) struct Setting {
    pub(crate) address: SocketAddr,
    /// A key of the attacking consumer that holds no scope.
    pub(crate) viewer: String,
    /// A key of the attacking consumer that may write.
    pub(crate) writer: String,
    /// Keys of the attacking consumer whose rows can be locked.
    pub(crate) targets: Vec<KeyId>,
    /// A key of another consumer.
    pub(crate) foreign: KeyId,
    issuer: KeyIssuer,
    database: Database,
    // Dropped last.
    _server: Server,
}

impl Setting {
    pub(crate) async fn new() -> Result<Self> {
        let server = Server::start();
        let database = server.database().await;
        let store = PgKeyStore::connect(database.url()).await?;
        store.migrate().await?;
        let format = KeyFormat::new(PREFIX)?;
        let (auth, worker) = Authenticator::builder(store.clone(), format.clone())
            .change_feed(PgChangeFeed::new(store.pool().clone()))
            .build();
        tokio::spawn(worker.run(std::future::pending()));
        let issuer = KeyIssuer::new(store, format.clone());
        let app = Router::new()
            .route("/orders", get(async || "ok"))
            .layer(ApiKeyLayer::new(auth.clone()))
            .nest_service("/account", account::router(issuer.clone(), auth.clone()))
            .nest_service("/admin", admin::router(issuer.clone(), auth));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, app).await });

        // A pool of its own, so that creating keys uses none of the service's connections.
        let own = KeyIssuer::new(PgKeyStore::connect(database.url()).await?, format);
        let metadata = Metadata::new(&json!({ "note": "x".repeat(10_000) }))?;
        let mut targets = Vec::new();
        for _ in 0..ATTACKERS_KEYS {
            let new = NewKey::new("mallory", Expiry::Never).metadata(metadata.clone());
            targets.push(own.issue(new).await?.record.id);
        }
        let viewer = own.issue(NewKey::new("mallory", Expiry::Never)).await?;
        let scopes = Scopes::parse(["api-keys:read", "api-keys:write"])?;
        let writer = own.issue(NewKey::new("mallory", Expiry::Never).scopes(scopes)).await?;
        let foreign = own.issue(NewKey::new("victim", Expiry::Never)).await?.record.id;
        Ok(Self {
            address,
            viewer: viewer.key.expose_secret().to_owned(),
            writer: writer.key.expose_secret().to_owned(),
            targets,
            foreign,
            issuer: own,
            database,
            _server: server,
        })
    }

    /// Keys of other consumers, which the service has not seen.
    pub(crate) async fn new_keys(&self, count: usize) -> Result<Vec<String>> {
        let mut keys = Vec::with_capacity(count);
        for tenant in 0..count {
            let new = NewKey::new(format!("tenant-{tenant}"), Expiry::In(Duration::from_secs(900)));
            keys.push(self.issuer.issue(new).await?.key.expose_secret().to_owned());
        }
        Ok(keys)
    }

    /// Keeps the attackers' rows locked for as long as the connection lives.
    pub(crate) async fn lock_targets(&self) -> Result<PgConnection> {
        let mut connection = PgConnection::connect(self.database.url()).await?;
        sqlx::raw_sql("begin").execute(&mut connection).await?;
        let lock =
            "select id from api_keys where consumer_id = 'mallory' and scopes = '{}' for update";
        sqlx::raw_sql(lock).execute(&mut connection).await?;
        Ok(connection)
    }
}

use tower_api_key::{
    key::KeyFormat,
    manage::{Actor, KeyIssuer},
    store::{Finding, KeyStore, PgKeyStore, SqliteKeyStore},
    webhooks::Webhooks,
};

use super::{failure::Failure, global::Global, identity};

/// A connected store and the global options.
pub(crate) struct Session {
    pub(crate) global: Global,
    pub(crate) store: Store,
}

#[derive(Clone)]
pub(crate) enum Store {
    Postgres(PgKeyStore),
    Sqlite(SqliteKeyStore),
}

impl Session {
    pub(crate) async fn begin(global: Global, may_create: bool) -> Result<Self, Failure> {
        let store = Store::connect(&global, may_create).await?;
        Ok(Self { global, store })
    }

    /// An issuer on this store that acts as the program's user.
    pub(crate) fn issuer(&self) -> Result<KeyIssuer, Failure> {
        // The format matters only to commands that issue keys, and these give their own.
        self.issuer_of(super::values::format("sk_live_").map_err(Failure::usage)?)
    }

    pub(crate) fn issuer_of(&self, format: KeyFormat) -> Result<KeyIssuer, Failure> {
        let issuer = match &self.store {
            Store::Postgres(store) => KeyIssuer::new(store.clone(), format),
            Store::Sqlite(store) => KeyIssuer::new(store.clone(), format),
        };
        let (name, origin) = self.actor();
        Ok(issuer.by(Actor::operator(name).origin(origin)))
    }

    /// Webhooks on this store, changed by the program's user.
    pub(crate) fn webhooks(&self) -> Webhooks {
        let webhooks = match &self.store {
            Store::Postgres(store) => Webhooks::new(store.clone()),
            Store::Sqlite(store) => Webhooks::new(store.clone()),
        };
        let (name, origin) = self.actor();
        webhooks.by(name).origin(origin)
    }

    /// The name of the program's user for the audit, and from where.
    fn actor(&self) -> (String, String) {
        let host = identity::host();
        let own_name = || format!("{}@{host}", identity::user());
        let name = self.global.actor.clone().unwrap_or_else(own_name);
        (name, format!("command line on {host}"))
    }
}

impl Store {
    pub(crate) async fn connect(global: &Global, may_create: bool) -> Result<Self, Failure> {
        let missing = "no database given: give --database-url, set DATABASE_URL, or put it into a \
            file .env, such as DATABASE_URL=postgres://app@localhost/app or sqlite:keys.db";
        let url = global
            .database_url
            .as_deref()
            .filter(|url| !url.is_empty())
            .ok_or_else(|| Failure::usage(missing))?;
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let mut builder = PgKeyStore::builder();
            // An empty environment variable counts as unset.
            if let Some(schema) = global.schema.as_deref().filter(|schema| !schema.is_empty()) {
                builder = builder.schema(schema);
            }
            return Ok(Self::Postgres(builder.connect_briefly(url).await?));
        }
        if !url.starts_with("sqlite:") {
            let problem = "--database-url: must begin with `postgres://` for PostgreSQL or with \
                `sqlite:` for SQLite, such as postgres://app@localhost/app or sqlite:keys.db";
            return Err(Failure::usage(problem));
        }
        // Creating a file because of a typo would yield a database without tables.
        let existing =
            if url.contains('?') { format!("{url}&mode=rw") } else { format!("{url}?mode=rw") };
        let chosen = may_create || url.contains("mode=");
        let url: &str = if chosen { url } else { &existing };
        let store = SqliteKeyStore::connect(url).await;
        let advice = if may_create {
            "Does the folder exist, and may you write to it?"
        } else {
            "`api-key migrate` creates the file if it is missing"
        };
        Ok(Self::Sqlite(
            store.map_err(|error| Failure::new("the database").because(&error).advise(advice))?,
        ))
    }

    pub(crate) async fn diagnose(&self) -> Vec<Finding> {
        let clock = tower_api_key::clock::SystemClock::new();
        match self {
            Self::Postgres(store) => store.diagnose(&clock).await,
            Self::Sqlite(store) => store.diagnose().await,
        }
    }
}

/// For the [`Authenticator`](tower_api_key::Authenticator) of `verify`.
impl KeyStore for Store {
    async fn find(
        &self,
        hash: &tower_api_key::key::KeyHash,
    ) -> Result<Option<tower_api_key::record::KeyRecord>, tower_api_key::store::StoreError> {
        match self {
            Self::Postgres(store) => store.find(hash).await,
            Self::Sqlite(store) => store.find(hash).await,
        }
    }
}

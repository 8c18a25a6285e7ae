//! Keys in MongoDB: an example of a store that another crate adds.
//!
//! It implements [`KeyStore`], which is all that a service needs to admit requests. It does not
//! implement `ManageKeys`: keys are written by [`MongoKeyStore::insert`], or by whatever already fills
//! the collection. A service uses it so:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use mongodb_store::MongoKeyStore;
//! use tower_api_key::{ApiKeyLayer, Authenticator, key::KeyFormat};
//!
//! let client = mongodb::Client::with_uri_str("mongodb://localhost").await?;
//! let store = MongoKeyStore::new(&client.database("app"));
//! store.create_indexes().await?;
//! let (auth, worker) = Authenticator::builder(store, KeyFormat::new("sk_live_")?).build();
//! let layer = ApiKeyLayer::new(auth);
//! # Ok(())
//! # }
//! ```
//!
//! `tests/contract.rs` checks it by the suite of `tower-api-key`, against the server that `MONGODB_URL`
//! names.

mod document;

use std::{error::Error, time::SystemTime};

use futures_util::TryStreamExt as _;
use mongodb::{
    Collection, Database, IndexModel,
    bson::{Document, doc},
    error::{Error as MongoError, ErrorKind, Result as MongoResult},
    options::{CollectionOptions, IndexOptions, ReadConcern, SelectionCriteria, WriteConcern},
};
use tower_api_key::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
    store::{
        KeyStore, StoreError, StoreErrorKind,
        port::{Usage, UsageBatch},
    },
};

/// The collection of keys.
const KEYS: &str = "api_keys";
/// Updates in one command. A batch of uses may have 100,000.
const UPDATES: usize = 10_000;

/// Keys in a collection of MongoDB. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MongoKeyStore {
    database: Database,
    keys: Collection<Document>,
}

impl MongoKeyStore {
    /// Keys in the collection `api_keys` of `database`.
    ///
    /// They are read from the primary with the read concern `majority`: a secondary, or a primary that
    /// was replaced without knowing it, may lack a key or its revocation, and "no such key" must be
    /// true when it is said.
    #[must_use]
    pub fn new(database: &Database) -> Self {
        let options = CollectionOptions::builder()
            .selection_criteria(SelectionCriteria::ReadPreference(
                mongodb::options::ReadPreference::Primary,
            ))
            .read_concern(ReadConcern::majority())
            .write_concern(WriteConcern::majority())
            .build();
        let keys = database.collection_with_options(KEYS, options);
        Self { database: database.clone(), keys }
    }

    /// Creates the index that look-ups use, and that keeps hashes unique.
    ///
    /// # Errors
    ///
    /// When the database cannot.
    pub async fn create_indexes(&self) -> Result<(), StoreError> {
        let unique = IndexOptions::builder().unique(true).build();
        let by_hash = IndexModel::builder().keys(doc! { "key_hash": 1 }).options(unique).build();
        self.keys.create_index(by_hash).await.map_err(store_error)?;
        Ok(())
    }

    /// Stores a new key.
    ///
    /// # Errors
    ///
    /// [`Conflict`](StoreErrorKind::Conflict) when a key with this id or hash exists, or when the
    /// database cannot.
    pub async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let document = document::of(record).map_err(corrupt)?;
        self.keys.insert_one(document).await.map_err(store_error)?;
        Ok(())
    }

    /// When the key was last used, as far as recorded.
    ///
    /// # Errors
    ///
    /// When the database cannot answer.
    pub async fn last_used_at(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        let found = self.keys.find_one(doc! { "_id": document::id(id) }).await;
        let found = found.map_err(store_error)?;
        let at = found.as_ref().map(|found| document::time(found, "last_used_at")).transpose();
        Ok(at.map_err(corrupt)?.flatten())
    }

    /// The document, and the time at which the server read it, by its own clock.
    async fn read(&self, hash: &KeyHash) -> MongoResult<Option<Document>> {
        let pipeline = [
            doc! { "$match": { "key_hash": document::bytes(hash.as_bytes()) } },
            doc! { "$limit": 1 },
            doc! { "$set": { "read_at": "$$NOW" } },
        ];
        self.keys.aggregate(pipeline).await?.try_next().await
    }
}

impl KeyStore for MongoKeyStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let found = self.read(hash).await.map_err(store_error)?;
        found.as_ref().map(document::record).transpose().map_err(corrupt)
    }

    /// Without an upsert, so that a key that was deleted in the meantime does not come back. How often
    /// keys are used is not counted.
    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        for uses in batch.last_uses.chunks(UPDATES) {
            let update = |usage: &Usage| {
                let last = doc! { "last_used_at": document::micros(usage.last_used_at) };
                doc! { "q": { "_id": document::id(usage.key_id) }, "u": { "$max": last } }
            };
            let updates: Vec<_> = uses.iter().map(update).collect();
            let command = doc! { "update": KEYS, "updates": updates, "ordered": false };
            let done = self.database.run_command(command).await.map_err(store_error)?;
            // The command succeeds even if some of its updates do not.
            if let Ok(errors) = done.get_array("writeErrors") {
                let problem = format!("{} uses were not written: {errors:?}", errors.len());
                return Err(StoreError::new(StoreErrorKind::Other).because(problem));
            }
        }
        Ok(())
    }
}

/// An outage is told apart from other errors: the library then serves what is in its cache.
fn store_error(error: MongoError) -> StoreError {
    const DUPLICATE_KEY: i32 = 11_000;
    let kind = match &*error.kind {
        ErrorKind::Io(_)
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. } => StoreErrorKind::Unavailable,
        ErrorKind::Write(mongodb::error::WriteFailure::WriteError(error))
            if error.code == DUPLICATE_KEY =>
        {
            StoreErrorKind::Conflict
        }
        // "Not primary", "shutting down" and the like.
        _ if error.contains_label(mongodb::error::RETRYABLE_WRITE_ERROR) => {
            StoreErrorKind::Unavailable
        }
        _ => StoreErrorKind::Other,
    };
    StoreError::new(kind).because(error)
}

/// The key is refused, rather than admitted with a part of its record.
fn corrupt(error: Box<dyn Error + Send + Sync>) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt).because(error)
}

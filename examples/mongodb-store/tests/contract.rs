//! The store keeps the contract of the library, on the server that `MONGODB_URL` names.

use std::{env, time::SystemTime};

use mongodb::{Client, Database};
use mongodb_store::MongoKeyStore;
use tower_api_key::{
    key::KeyHash,
    key_store_contract,
    record::{KeyId, KeyRecord},
    store::{KeyStore, StoreError, port::UsageBatch},
    test_util::contract::SeedKeys,
};

/// How the rules put keys into the store.
struct Seeded(MongoKeyStore);

impl KeyStore for Seeded {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.0.find(hash).await
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        self.0.record_usage(batch).await
    }
}

impl SeedKeys for Seeded {
    async fn seed(&self, record: &KeyRecord) -> Result<(), StoreError> {
        self.0.insert(record).await
    }

    async fn last_use(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        self.0.last_used_at(id).await
    }
}

/// A database of its own for each rule, which the server's operator drops.
async fn database() -> Database {
    let url = env::var("MONGODB_URL").expect("MONGODB_URL names a MongoDB server");
    let client = Client::with_uri_str(url).await.unwrap();
    let name = mongodb::bson::oid::ObjectId::new().to_hex();
    client.database(&format!("api_keys_{name}"))
}

key_store_contract!(on_a_server, async || {
    let store = MongoKeyStore::new(&database().await);
    store.create_indexes().await.unwrap();
    (Seeded(store), ())
});

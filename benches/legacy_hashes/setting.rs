//! An authenticator over a PostgreSQL of its own, and keys whose bcrypt hashes were imported.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use base64::{
    Engine, alphabet,
    engine::{GeneralPurpose, general_purpose::NO_PAD},
};
use tower_api_key::{
    Authenticator,
    auth::Event,
    key::{Alphabet, ImportedFormat, KeyFormat, LegacyHash},
    manage::{Expiry, KeyImport, KeyIssuer, NewKey},
    store::PgKeyStore,
};

use crate::{
    Result,
    harness::postgres::{Database, Server},
};

pub(crate) type Key = String;

/// How many digits of a key find it.
pub(crate) const HINT: usize = 8;
const BCRYPT: GeneralPurpose = GeneralPurpose::new(&alphabet::BCRYPT, NO_PAD);

pub(crate) struct Setting {
    pub(crate) auth: Authenticator,
    /// Of these, no key has been used.
    pub(crate) keys: Vec<Key>,
    cost: u32,
    issuer: KeyIssuer,
    comparisons: Arc<AtomicU64>,
    /// In nanoseconds.
    spent: Arc<AtomicU64>,
    _database: Database,
}

impl Setting {
    pub(crate) async fn new(keys: usize, cost: u32) -> Result<Self> {
        let database = Server::shared().database().await;
        let store = PgKeyStore::connect(database.url()).await?;
        store.migrate().await?;
        let (comparisons, spent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let observer = {
            let (comparisons, spent) = (Arc::clone(&comparisons), Arc::clone(&spent));
            move |event: &Event<'_>| {
                if let Event::LegacyHashCompared { took, .. } = event
                    && !took.is_zero()
                {
                    comparisons.fetch_add(1, Ordering::Relaxed);
                    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                    spent.fetch_add(took, Ordering::Relaxed);
                }
            }
        };
        let format = ImportedFormat::new("", Alphabet::Hex, 64)?.hint(HINT)?;
        let (auth, worker) = Authenticator::builder(store.clone(), KeyFormat::new("sk_test_")?)
            .accept(format)
            .legacy_hashes(store.clone())
            .change_feed(store.change_feed())
            .observer(observer)
            .build();
        tokio::spawn(worker.run(std::future::pending()));
        let issuer = auth.issuer(store);
        let mut setting =
            Self { auth, keys: Vec::new(), cost, issuer, comparisons, spent, _database: database };
        setting.keys = setting.import(keys).await?;
        Ok(setting)
    }

    /// Imports keys by hashes that are made with all cores.
    pub(crate) async fn import(&self, count: usize) -> Result<Vec<Key>> {
        let keys: Vec<Key> = (0..count).map(|_| new_key()).collect::<Result<_>>()?;
        let cores = thread::available_parallelism()?.get();
        let hashes: Vec<LegacyHash> = thread::scope(|scope| {
            let parts = keys.chunks(count.div_ceil(cores));
            let threads: Vec<_> = parts
                .map(|keys| scope.spawn(|| keys.iter().map(|key| hash(key, self.cost)).collect()))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<Vec<_>>>| {
                thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?
        .concat();
        let imports: Vec<_> = keys
            .iter()
            .zip(hashes)
            .map(|(key, hash)| {
                let new = NewKey::new("acme", Expiry::Never);
                KeyImport::of_legacy_hash(hash, new).legacy_hint(&key[..HINT])
            })
            .collect();
        for batch in imports.chunks(1000) {
            self.issuer.import(batch.to_vec()).await?;
        }
        Ok(keys)
    }

    pub(crate) fn comparisons(&self) -> u64 {
        self.comparisons.load(Ordering::Relaxed)
    }

    /// The time of all comparisons.
    pub(crate) fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }
}

fn hash(key: &str, cost: u32) -> Result<LegacyHash> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|error| error.to_string())?;
    let hash = bcrypt::bcrypt(cost, salt, &[key.as_bytes(), b"\0"].concat());
    let text = format!("$2b${cost:02}${}{}", BCRYPT.encode(salt), BCRYPT.encode(&hash[..23]));
    Ok(text.parse()?)
}

/// 64 random digits.
fn new_key() -> Result<Key> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

//! What the cache keeps of a key, by what the process grows.

use std::{process, time::SystemTime};

use serde_json::json;
use tower_api_key::{
    Authenticator,
    auth::CachePolicy,
    key::{KeyFormat, KeyHash},
    rate_limit::{Quota, RateLimits},
    record::{KeyId, KeyRecord, Scopes},
    store::{KeyStore, StoreError},
};

use crate::{Result, machine::resident};

/// A bucket is part of what a key with limits keeps in memory.
pub(crate) const LIMITS: [&str; 2] = ["none", "a quota"];

/// Knows every key and keeps none.
struct MadeUp(Scopes);

impl KeyStore for MadeUp {
    async fn find(&self, hash: &KeyHash) -> std::result::Result<Option<KeyRecord>, StoreError> {
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        let consumer = format!("consumer-{:02x}{:02x}{:02x}", id[0], id[1], id[2]);
        let id = KeyId::from_bytes(id);
        let mut record = KeyRecord::new(id, *hash, consumer, SystemTime::now());
        record.key_prefix = "sk_live_".into();
        record.key_last4 = "abcd".into();
        record.name = Some("nightly export".into());
        // Parsed anew, as from a row: no two records share their words.
        record.scopes =
            Scopes::parse(self.0.iter().map(|scope| scope.as_str().to_owned())).unwrap_or_default();
        Ok(Some(record))
    }
}

/// Prints the bytes a key takes, as JSON.
pub(crate) fn report(limits: &str, keys: &str) -> Result<()> {
    let keys: usize = keys.parse()?;
    let format = KeyFormat::new("sk_live_")?;
    let default = match limits {
        "none" => RateLimits::unlimited(),
        _ => Quota::per_minute(600)?.into(),
    };
    let store = MadeUp(Scopes::parse(["orders:read", "orders:write"])?);
    let (auth, worker) = Authenticator::builder(store, format.clone())
        .default_rate_limits(default)
        .cache(CachePolicy::default().capacity(u64::MAX))
        .build();
    drop(worker);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let authenticate = async |count: usize| -> Result<()> {
        for _ in 0..count {
            auth.authenticate(format.generate()?.expose_secret().as_bytes()).await?;
        }
        Ok(())
    };
    // What the first ones bring along is nobody's.
    runtime.block_on(authenticate(1_000))?;
    let before = resident(process::id())?;
    let mut outcome = Ok(());
    let allocated = allocation_counter::measure(|| outcome = runtime.block_on(authenticate(keys)));
    outcome?;
    let after = resident(process::id())?;
    let each = |bytes: i64| bytes / i64::try_from(keys).unwrap_or(i64::MAX);
    let report = json!({
        "limits": limits,
        "resident_bytes": each(i64::try_from(after)? - i64::try_from(before)?),
        "allocated_bytes": each(allocated.bytes_current),
    });
    println!("{report}");
    Ok(())
}

//! Legacy hashes of imported keys, in transactions and for requests.

use serde_json::json as values;
use sqlx::{Row as _, SqliteConnection, query, query_scalar, sqlite::SqliteRow};

use super::{
    SqliteKeyStore,
    error::failed,
    lease::{Lease, READ},
    record::{columns, hex, now, record, uuid},
};
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
    store::{
        StoreError,
        port::{LegacyHashes, LegacyKey},
        row::{bounded, count, digests, json, key_id, legacy_keys},
    },
};

// `insert or replace` of a key leaves the row of the replaced one behind.
macro_rules! of_existing_keys {
    () => {
        "api_key_legacy_hashes as legacy
        where exists (select 1 from api_keys where api_keys.id = legacy.key_id)"
    };
}

const CANDIDATES: &str = concat!(
    "select key_id, hint, verifier from ",
    of_existing_keys!(),
    " and verifier is not null and hint is ?1
    order by (
        select last_used_at from api_key_usage as used where used.key_id = legacy.key_id
    ) desc nulls last, key_id
    limit ?2"
);

const LEFT: &str =
    concat!("select count(*) from ", of_existing_keys!(), " and verifier is not null");

const KNOWN: &str = concat!(
    "select digest from ",
    of_existing_keys!(),
    " and digest in (select unhex(value) from json_each(?1))"
);

const INSERT: &str = "
insert or replace into api_key_legacy_hashes (key_id, hint, verifier, digest)
select unhex(new.value ->> 0, '-'), new.value ->> 1, new.value ->> 2, unhex(new.value ->> 3)
from json_each(?1) as new";

const MOST_WITH_ONE_HINT: &str = concat!(
    "select coalesce(max(number), 0) from (select count(*) as number from ",
    of_existing_keys!(),
    " and verifier is not null
        and coalesce(hint, '') in (select coalesce(value, '') from json_each(?1))
    group by hint)"
);

const UNSET: &str = "
update api_key_legacy_hashes set verifier = null
where key_id = ?1 and digest = ?2 and verifier is not null";

const REPLACE: &str = concat!(
    "update api_keys set key_hash = ?2, version = version + 1 where id = ?1 returning ",
    columns!()
);

impl LegacyHashes for SqliteKeyStore {
    async fn legacy_keys(
        &self,
        hint: Option<&str>,
        limit: usize,
    ) -> Result<Vec<LegacyKey>, StoreError> {
        let candidates = query(CANDIDATES).bind(hint.map(str::to_owned)).bind(bounded(limit));
        let mut lease = Lease::begin(&self.pool, READ).await?;
        let rows = candidates.fetch_all(&mut *lease).await.map_err(failed)?;
        lease.commit().await?;
        let rows = rows.iter().map(columns_of).collect::<sqlx::Result<_>>().map_err(failed)?;
        Ok(legacy_keys(rows))
    }

    async fn count_legacy_keys(&self) -> Result<u64, StoreError> {
        let mut lease = Lease::begin(&self.pool, READ).await?;
        let left = query_scalar(LEFT).fetch_one(&mut *lease).await.map_err(failed)?;
        lease.commit().await?;
        Ok(count(left))
    }
}

fn columns_of(row: &SqliteRow) -> sqlx::Result<(KeyId, Option<String>, String)> {
    Ok((key_id(row.try_get("key_id")?), row.try_get("hint")?, row.try_get("verifier")?))
}

pub(super) async fn known(
    connection: &mut SqliteConnection,
    asked: &[[u8; 32]],
) -> Result<Vec<[u8; 32]>, StoreError> {
    let asked: Vec<_> = asked.iter().map(|digest| hex(digest)).collect();
    let known = query_scalar(KNOWN).bind(json(&asked)?);
    digests(known.fetch_all(connection).await.map_err(failed)?)
}

pub(super) async fn insert(
    connection: &mut SqliteConnection,
    keys: &[LegacyKey],
) -> Result<usize, StoreError> {
    let row = |LegacyKey { id, hint, hash }: &LegacyKey| {
        values!([id.to_string(), hint, hash.expose_secret(), hex(&hash.digest())])
    };
    let insert = query(INSERT).bind(json(&keys.iter().map(row).collect::<Vec<_>>())?);
    insert.execute(&mut *connection).await.map_err(failed)?;
    let hints: Vec<_> = keys.iter().map(|key| &key.hint).collect();
    let most = query_scalar(MOST_WITH_ONE_HINT).bind(json(&hints)?);
    let most = most.fetch_one(connection).await.map_err(failed)?;
    Ok(usize::try_from(count(most)).unwrap_or(usize::MAX))
}

pub(super) async fn replace(
    connection: &mut SqliteConnection,
    id: KeyId,
    digest: &[u8; 32],
    hash: &KeyHash,
) -> Result<Option<KeyRecord>, StoreError> {
    let unset = query(UNSET).bind(uuid(id)).bind(digest.to_vec());
    if unset.execute(&mut *connection).await.map_err(failed)?.rows_affected() == 0 {
        return Ok(None);
    }
    let replace = query(REPLACE).bind(uuid(id)).bind(hash.as_bytes().to_vec());
    record(replace.fetch_optional(connection).await.map_err(failed)?)
}

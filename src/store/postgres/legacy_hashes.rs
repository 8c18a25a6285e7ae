//! Legacy hashes of imported keys, in transactions and for requests.

use sqlx::{PgConnection, Row as _, postgres::PgRow, query, query_scalar};

use super::{
    PgKeyStore,
    error::failed,
    record::{columns, record, uuid},
};
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
    store::{
        StoreError,
        port::{LegacyHashes, LegacyKey},
        row::{Uuid, bounded, count, digests, key_id, legacy_keys},
    },
};

macro_rules! candidates {
    ($hint:literal) => {
        concat!(
            "select legacy.key_id, hint, verifier
            from api_key_legacy_hashes as legacy left join api_key_usage using (key_id)
            where verifier is not null and hint ",
            $hint,
            " order by last_used_at desc nulls last, legacy.key_id limit $1"
        )
    };
}

const WITH_HINT: &str = candidates!("= $2");
const WITHOUT_HINT: &str = candidates!("is null");

const LEFT: &str = "select count(*) from api_key_legacy_hashes where verifier is not null";

const KNOWN: &str = "select digest from api_key_legacy_hashes where digest = any($1)";

// Held until the transaction ends, so that two imports cannot both add the last key of a hint.
const LOCK: &str = "
select pg_advisory_xact_lock(hashtextextended('api-keys with legacy hashes', 7021227462866860403))";

const INSERT: &str = "
insert into api_key_legacy_hashes (key_id, hint, verifier, digest)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[])";

const MOST_WITH_ONE_HINT: &str = "
select coalesce(max(number), 0) from (
    select count(*) as number from api_key_legacy_hashes
    where verifier is not null and hint = any($1) group by hint
    union all
    select count(*) from api_key_legacy_hashes
    where verifier is not null and hint is null and $2
) as counted";

const REPLACE: &str = concat!(
    "with moved as (
        update api_key_legacy_hashes set verifier = null
        where key_id = $1 and digest = $2 and verifier is not null
        returning key_id
    )
    update api_keys set key_hash = $3, version = version + 1
    where id = (select key_id from moved)
    returning ",
    columns!()
);

impl LegacyHashes for PgKeyStore {
    async fn legacy_keys(
        &self,
        hint: Option<&str>,
        limit: usize,
    ) -> Result<Vec<LegacyKey>, StoreError> {
        let candidates = match hint {
            Some(hint) => query(WITH_HINT).bind(bounded(limit)).bind(hint),
            None => query(WITHOUT_HINT).bind(bounded(limit)),
        };
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let rows = candidates.fetch_all(&mut *lease).await.map_err(failed)?;
        self.management.commit(lease).await?;
        let rows = rows.iter().map(columns_of).collect::<sqlx::Result<_>>().map_err(failed)?;
        Ok(legacy_keys(rows))
    }

    async fn count_legacy_keys(&self) -> Result<u64, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let left = query_scalar(LEFT).fetch_one(&mut *lease).await.map_err(failed)?;
        self.management.commit(lease).await?;
        Ok(count(left))
    }
}

fn columns_of(row: &PgRow) -> sqlx::Result<(KeyId, Option<String>, String)> {
    Ok((key_id(row.try_get("key_id")?), row.try_get("hint")?, row.try_get("verifier")?))
}

pub(super) async fn known(
    connection: &mut PgConnection,
    asked: &[[u8; 32]],
) -> Result<Vec<[u8; 32]>, StoreError> {
    let asked: Vec<_> = asked.iter().map(|digest| digest.to_vec()).collect();
    let known = query_scalar(KNOWN).bind(asked).fetch_all(connection).await.map_err(failed)?;
    digests(known)
}

pub(super) async fn insert(
    connection: &mut PgConnection,
    keys: &[LegacyKey],
) -> Result<usize, StoreError> {
    let insert = query(INSERT)
        .bind(keys.iter().map(|key| uuid(key.id)).collect::<Vec<Uuid>>())
        .bind(keys.iter().map(|key| key.hint.clone()).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.hash.expose_secret().to_owned()).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.hash.digest().to_vec()).collect::<Vec<_>>());
    query(LOCK).execute(&mut *connection).await.map_err(failed)?;
    insert.execute(&mut *connection).await.map_err(failed)?;
    let hints: Vec<_> = keys.iter().filter_map(|key| key.hint.clone()).collect();
    let without_hint = keys.iter().any(|key| key.hint.is_none());
    let most = query_scalar(MOST_WITH_ONE_HINT).bind(hints).bind(without_hint);
    let most = most.fetch_one(connection).await.map_err(failed)?;
    Ok(usize::try_from(count(most)).unwrap_or(usize::MAX))
}

pub(super) async fn replace(
    connection: &mut PgConnection,
    id: KeyId,
    digest: &[u8; 32],
    hash: &KeyHash,
) -> Result<Option<KeyRecord>, StoreError> {
    let replace =
        query(REPLACE).bind(uuid(id)).bind(digest.as_slice()).bind(hash.as_bytes().as_slice());
    record(replace.fetch_optional(connection).await.map_err(failed)?)
}

//! The statements of a transaction.

use crate::store::sqlite::record::{columns, now};

// The library writes the audit of this transaction. The mark silences the triggers that audit
// changes made in SQL, and is removed before other connections can see it.
pub(super) const MARK: &str = "insert into api_key_audited (transaction_is) values (1)";
pub(super) const UNMARK: &str = "delete from api_key_audited";

// Batches are passed as one JSON parameter.

// There is only one writer, so reading is enough to lock.
pub(super) const LOCK: &str = concat!(
    "select ",
    columns!(),
    " from api_keys where id in (select unhex(value, '-') from json_each(?1)) order by id"
);

macro_rules! except {
    () => {
        " and id not in (select unhex(value, '-') from json_each(?3))"
    };
}

macro_rules! of_consumer {
    ($and:literal) => {
        concat!(
            "from api_keys indexed by api_keys_live_of_consumer
            where consumer_id = ?1 and revoked_at is null",
            except!(),
            $and,
            " order by id limit ?2"
        )
    };
}

macro_rules! of_prefix {
    () => {
        concat!(
            "from api_keys indexed by api_keys_live_of_prefix
            where key_prefix = ?1 and revoked_at is null",
            except!(),
            " order by id limit ?2"
        )
    };
}

// Two queries, one per index.
macro_rules! ended {
    () => {
        concat!(
            "select id from (
                select id from api_keys indexed by api_keys_by_revocation
                where revoked_at < ?1",
            except!(),
            " order by revoked_at limit ?2
            )
            union
            select id from (
                select id from api_keys indexed by api_keys_by_expiry
                where expires_at < ?1",
            except!(),
            " order by expires_at limit ?2
            )"
        )
    };
}

pub(super) const LOCK_CONSUMER: &str = concat!("select ", columns!(), " ", of_consumer!(""));
pub(super) const LOCK_CONSUMER_PREFIX: &str =
    concat!("select ", columns!(), " ", of_consumer!(" and key_prefix = ?4"));
pub(super) const LOCK_PREFIX: &str = concat!("select ", columns!(), " ", of_prefix!());
pub(super) const LOCK_ENDED: &str = concat!(
    "select ",
    columns!(),
    " from api_keys where id in (",
    ended!(),
    ") order by id limit ?2"
);

pub(super) const SELECT_CONSUMER: &str = concat!("select id ", of_consumer!(""));
pub(super) const SELECT_CONSUMER_PREFIX: &str =
    concat!("select id ", of_consumer!(" and key_prefix = ?4"));
pub(super) const SELECT_PREFIX: &str = concat!("select id ", of_prefix!());
pub(super) const SELECT_ENDED: &str = concat!(ended!(), " limit ?2");

// Existing keys are filtered out before triggers run: the triggers would treat inserting an
// existing key as replacing it.
pub(super) const INSERT: &str = "
insert into api_keys (
    id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, rate_limits, metadata,
    is_active, created_at, created_by, not_before, expires_at, revoked_at, revoked_reason,
    rotated_from, rotated_at, root_id, version, plan, networks, tags, origins, kind
)
select
    unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12,
    value ->> 13, value ->> 14, value ->> 15, unhex(value ->> 16), value ->> 17,
    unhex(value ->> 18), value ->> 19, value ->> 20, value ->> 21, value ->> 22,
    value ->> 23, value ->> 24
from json_each(?1)
where not exists (select 1 from api_keys where id = unhex(value ->> 0))
    and not exists (select 1 from api_keys where key_hash = unhex(value ->> 1))
on conflict do nothing
returning id";

pub(super) const UPDATE: &str = concat!(
    "update api_keys set name = ?3, scopes = ?4, rate_limits = ?5, metadata = ?6, is_active = ?7, \
     not_before = ?8, expires_at = ?9, rotated_at = ?10, plan = ?11, networks = ?12, \
     tags = ?13, origins = ?14, version = version + 1 \
     where id = ?1 and version = ?2 returning ",
    columns!()
);

pub(super) const REVOKE: &str = concat!(
    "update api_keys set revoked_at = ",
    now!(),
    ", revoked_reason = ?2, version = version + 1
    where id in (select unhex(value, '-') from json_each(?1)) and revoked_at is null returning ",
    columns!()
);

// Each part scans an index range and stops at the limit.
pub(super) const COUNT: &str = concat!(
    "select
    (select count(*) from (
        select 1 from api_keys indexed by api_keys_live_by_expiry
        where consumer_id = ?1 and revoked_at is null and expires_at is null limit ?3
    )) + (select count(*) from (
        select 1 from api_keys indexed by api_keys_live_by_expiry
        where consumer_id = ?1 and revoked_at is null and expires_at > ",
    now!(),
    " limit ?3
    )),
    (select count(*) from (
        select 1 from api_keys indexed by api_keys_of_consumer
        where consumer_id = ?1 and id >= ?2 limit ?3
    ))"
);

pub(super) const NTH_ROTATION: &str = "
select created_at from api_keys indexed by api_keys_of_root
where root_id = ?1 and rotated_from is not null
order by created_at desc limit 1 offset ?2";

// A trigger deletes their recorded use as well.
pub(super) const DELETE: &str =
    "delete from api_keys where id in (select unhex(value, '-') from json_each(?1))";

pub(super) const WRITE_AUDIT: &str = "
insert into api_key_events (action, key_id, consumer_id, actor, origin, reason, changes)
select
    value ->> 0, unhex(value ->> 1, '-'), value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    value ->> 6
from json_each(?1) order by key";

pub(super) const CLAIM: &str = "
insert into api_key_requests (request, fingerprint, key_id) values (?1, ?2, ?3)
on conflict do nothing
returning true";

pub(super) const CLAIMED: &str =
    "select fingerprint, key_id from api_key_requests where request = ?1";

pub(super) const DELETE_REQUESTS: &str = "
delete from api_key_requests where request in (
    select request from api_key_requests where at < ?1 order by at limit ?2
)";

// A trigger deletes uses with their keys, but `insert or replace` deletes a key without firing it.
// The uses left behind are searched for among recently changed keys instead of comparing all uses
// with all keys.
pub(super) const DELETE_USAGE: &str = "
delete from api_key_usage where key_id in (
    select key_id
    from (select key_id from api_key_changes order by changed_in desc limit 5000) as changed
    where not exists (select 1 from api_keys where id = changed.key_id)
        and exists (select 1 from api_key_usage as used where used.key_id = changed.key_id)
    limit ?1
)";

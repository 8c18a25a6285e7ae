//! The statements of a transaction.

use crate::store::postgres::record::columns;

// Rows are locked in id order. The outer select sets `read_at` after they are locked.
pub(super) const LOCK: &str = concat!(
    "with locked as materialized (
        select * from api_keys where id = any($1) order by id for no key update
    )
    select ",
    columns!(),
    " from locked order by id"
);

// Comparing pairs makes the planner use the composite index for the order. Scanning the index on
// ids alone could read all of it before it finds the keys.
macro_rules! of_consumer {
    ($and:literal, $lock:literal) => {
        concat!(
            "select * from api_keys
            where (consumer_id, id) >= ($1, '00000000-0000-0000-0000-000000000000')
                and (consumer_id, id) <= ($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
                and revoked_at is null and id <> all($3)",
            $and,
            " order by consumer_id, id limit $2",
            $lock
        )
    };
}

macro_rules! of_prefix {
    ($lock:literal) => {
        concat!(
            "select * from api_keys
            where (key_prefix, id) >= ($1, '00000000-0000-0000-0000-000000000000')
                and (key_prefix, id) <= ($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
                and revoked_at is null and id <> all($3)
            order by key_prefix, id limit $2",
            $lock
        )
    };
}

// Two queries, one per index. Pruning skips locked rows, so the locking order does not matter.
macro_rules! ended {
    ($lock:literal) => {
        concat!(
            "with revoked as materialized (
                select * from api_keys where revoked_at < $1 and id <> all($3)
                order by revoked_at limit $2",
            $lock,
            "), expired as materialized (
                select * from api_keys
                where expires_at < $1 and (revoked_at is null or revoked_at >= $1)
                    and id <> all($3)
                order by expires_at limit $2",
            $lock,
            "), ended as materialized (
                select * from revoked union all select * from expired limit $2
            )"
        )
    };
}

macro_rules! locked {
    ($rows:expr) => {
        concat!(
            "with locked as materialized (",
            $rows,
            ") select ",
            columns!(),
            " from locked order by id"
        )
    };
}

pub(super) const LOCK_CONSUMER: &str = locked!(of_consumer!("", " for no key update"));
pub(super) const LOCK_CONSUMER_PREFIX: &str =
    locked!(of_consumer!(" and key_prefix = $4", " for no key update"));
pub(super) const LOCK_PREFIX: &str = locked!(of_prefix!(" for no key update"));
pub(super) const LOCK_ENDED: &str = concat!(
    ended!(" for no key update skip locked"),
    " select ",
    columns!(),
    " from ended order by id"
);

pub(super) const SELECT_CONSUMER: &str =
    concat!("select id from (", of_consumer!("", ""), ") as selected");
pub(super) const SELECT_CONSUMER_PREFIX: &str =
    concat!("select id from (", of_consumer!(" and key_prefix = $4", ""), ") as selected");
pub(super) const SELECT_PREFIX: &str = concat!("select id from (", of_prefix!(""), ") as selected");
pub(super) const SELECT_ENDED: &str = concat!(ended!(""), " select id from ended");

// Inserted in hash order, so that two imports of the same keys queue up instead of deadlocking.
pub(super) const INSERT: &str = "
insert into api_keys (
    id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, rate_limits, metadata,
    is_active, created_at, created_by, not_before, expires_at, revoked_at, revoked_reason,
    rotated_from, rotated_at, root_id, version, plan, networks, tags, origins, kind
)
select
    id, key_hash, key_prefix, key_last4, consumer_id, name,
    array(select jsonb_array_elements_text(scopes::jsonb)), rate_limits::jsonb, metadata::jsonb,
    is_active, created_at, created_by, not_before, expires_at, revoked_at, revoked_reason,
    rotated_from, rotated_at, root_id, version, plan,
    case when networks is not null
        then array(select jsonb_array_elements_text(networks::jsonb))::cidr[] end,
    case when tags is not null then array(select jsonb_array_elements_text(tags::jsonb)) end,
    case when origins is not null then array(select jsonb_array_elements_text(origins::jsonb)) end,
    kind
from unnest(
    $1::uuid[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::text[], $9::text[], $10::boolean[], $11::timestamptz[], $12::text[], $13::timestamptz[],
    $14::timestamptz[], $15::timestamptz[], $16::text[], $17::uuid[], $18::timestamptz[],
    $19::uuid[], $20::bigint[], $21::text[], $22::text[], $23::text[], $24::text[], $25::text[]
) with ordinality as new (
    id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, rate_limits, metadata,
    is_active, created_at, created_by, not_before, expires_at, revoked_at, revoked_reason,
    rotated_from, rotated_at, root_id, version, plan, networks, tags, origins, kind, place
)
order by key_hash, place
on conflict do nothing
returning id";

pub(super) const UPDATE: &str = concat!(
    "update api_keys set name = $3, scopes = $4, rate_limits = $5::jsonb, metadata = $6::jsonb, \
     is_active = $7, not_before = $8, expires_at = $9, rotated_at = $10, plan = $11, \
     networks = $12::text[]::cidr[], tags = $13, origins = $14, version = version + 1 \
     where id = $1 and version = $2 returning ",
    columns!()
);

pub(super) const REVOKE: &str = concat!(
    "with locked as materialized (
        select id from api_keys where id = any($1) and revoked_at is null
        order by id for no key update
    ), revoked as (
        update api_keys
        set revoked_at = clock_timestamp(), revoked_reason = $2, version = version + 1
        where id = any(array(select id from locked))
        returning ",
    columns!(),
    ")
    select * from revoked order by id"
);

// Held until the transaction ends. A hash collision makes another consumer wait.
pub(super) const LOCK_COUNT: &str =
    "select pg_advisory_xact_lock(hashtextextended('api-keys of ' || $1, 7021227462866860403))";

// Each part scans an index range and stops at the limit. A separate statement from the lock, so
// that it sees what earlier lock holders committed.
pub(super) const COUNT: &str = "
select
    (select count(*) from (
        (select 1 from api_keys
        where consumer_id = $1 and revoked_at is null and expires_at is null limit $3)
        union all
        (select 1 from api_keys
        where (consumer_id, expires_at) > ($1, statement_timestamp())
            and (consumer_id, expires_at) <= ($1, 'infinity') and revoked_at is null
        order by consumer_id, expires_at limit $3)
    ) as live),
    (select count(*) from (
        select 1 from api_keys
        where (consumer_id, id) >= ($1, $2)
            and (consumer_id, id) <= ($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        order by consumer_id, id limit $3
    ) as recent)";

pub(super) const NTH_ROTATION: &str = "
select created_at from api_keys where root_id = $1 and rotated_from is not null
order by created_at desc limit 1 offset $2";

// A trigger deletes their recorded use as well.
pub(super) const DELETE: &str = "delete from api_keys where id = any($1)";

pub(super) const WRITE_AUDIT: &str = "
insert into api_key_events (action, key_id, consumer_id, actor, origin, reason, changes)
select action, key_id, consumer_id, actor, origin, reason, changes::jsonb
from unnest(
    $1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[]
) with ordinality as new (action, key_id, consumer_id, actor, origin, reason, changes, place)
order by place";

pub(super) const CLAIM: &str = "
insert into api_key_requests (request, fingerprint, key_id) values ($1, $2, $3)
on conflict do nothing
returning true";

pub(super) const CLAIMED: &str =
    "select fingerprint, key_id from api_key_requests where request = $1";

pub(super) const DELETE_REQUESTS: &str = "
delete from api_key_requests where request = any(array(
    select request from api_key_requests where at < $1
    order by at limit $2
    for update skip locked
))";

// A use written while its key was being deleted is left behind. It is searched for among recently
// changed keys instead of comparing all uses with all keys.
pub(super) const DELETE_USAGE: &str = "
delete from api_key_usage where key_id = any(array(
    select key_id
    from (select key_id from api_key_changes order by changed_in desc limit 5000) as changed
    where (select true from api_keys where id = changed.key_id) is null
        and (select true from api_key_usage as used where used.key_id = changed.key_id)
    order by key_id
    limit $1
))";

//! Templates of statements that name the schema: `{schema}` is its identifier; `{literal}`, inside
//! of `E''`, is the identifier as text.

use std::time::Duration;

use super::record::columns;

// A missing row means an unknown key only if row-level security hides none. The same statement
// checks that, so it always returns at least one row. The same goes for the plan's limits.
macro_rules! find {
    ($condition:literal) => {
        concat!(
            "select
                case when row_security_active(E'{literal}.api_keys')
                    then current_user::text end as keys_hidden_from,
                case when row_security_active(E'{literal}.api_key_plans')
                    then current_user::text end as plans_hidden_from,
                found.*
            from (select) as one
            left join (select ",
            columns!("{schema}."),
            " from {schema}.api_keys where ",
            $condition,
            ") as found on true"
        )
    };
}

pub(super) const FIND: &str = find!("key_hash = $1");

// Inside a subselect, the planner does not see the array's length. Otherwise PostgreSQL plans each
// query of a few keys anew, which takes longer than the query.
pub(super) const FIND_MANY: &str = find!("key_hash = any((select $1)::bytea[])");

// One statement, so that the horizon matches the snapshot in which the rows were read. Rows beyond
// the snapshot's end were numbered by another server before its tables were restored here.
//
// A standby knows where running transactions begin, but not which they are.
//
// Any role may read a standby's position and whether it receives anything; the source's position is
// visible only to roles that may read all statistics.
//
// After a crash, transaction numbers that never reached a disk are assigned again. A server may
// recover without restarting, for instance after one of its processes was killed; its statistics
// are then reset.
pub(super) const CHANGES: &str = "
select
    pg_snapshot_xmin(snapshot)::text::bigint,
    (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint
        # coalesce((extract(epoch from recovered.stats_reset) * 1000000)::bigint, 0),
    key_id,
    created_in::text::bigint,
    changed_in::text::bigint,
    case when row_security_active(E'{literal}.api_key_changes') then current_user::text end,
    applied,
    known,
    age
from pg_current_snapshot() as snapshot
cross join pg_stat_get_wal() as recovered
left join (
    select
        (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint as applied,
        (
            select (greatest(latest_end_lsn, pg_last_wal_receive_lsn()) - '0/0'::pg_lsn)::bigint
            from pg_stat_wal_receiver
        ) as known,
        (extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000000)::bigint
            as age
) as replica on pg_is_in_recovery()
left join {schema}.api_key_changes
    on changed_in >= coalesce($1::bigint::text::xid8, pg_snapshot_xmin(snapshot))
    and changed_in < pg_snapshot_xmax(snapshot)";

// The announcing triggers: on the tables that are read, in their schema, enabled, for these
// statements, and calling the function in the same schema. A trigger or function of the same name
// elsewhere announces nothing.
pub(super) const GUARD: &str = "
select channel, secret, (
    select string_agg(name || ' on ' || place, ', ')
    from (values
        ('api_keys', 'api_keys_tell', 13, 'api_keys_tell'),
        ('api_keys', 'api_keys_tell_update', 17, 'api_keys_tell'),
        ('api_keys', 'api_keys_tell_truncate', 32, 'api_keys_tell'),
        ('api_key_plans', 'api_key_plans_tell', 13, 'api_key_plans_tell'),
        ('api_key_plans', 'api_key_plans_tell_update', 17, 'api_key_plans_tell'),
        ('api_key_plans', 'api_key_plans_tell_truncate', 32, 'api_key_plans_tell')
    ) as needed (place, name, fires, calls)
    where not exists (
        select from pg_trigger
        join pg_class on pg_class.oid = tgrelid
        join pg_proc on pg_proc.oid = tgfoid
        where relnamespace = (
                select relnamespace from pg_class where oid = to_regclass(E'{literal}.api_keys')
            )
            and relname = place and tgname = name and tgtype = fires
            and tgenabled in ('O', 'A')
            and proname = calls and pronamespace = relnamespace
    )
) as silent
from {schema}.api_key_feed";

// Transactions that had ended when the snapshot was taken were announced before this message, which
// is unique. `synchronous_commit` is off because there is no change for a standby to confirm.
pub(super) const SAY_HELLO: &str = "
select
    message,
    pg_current_snapshot()::text as ended,
    set_config('synchronous_commit', 'off', true),
    {schema}.api_key_announce(message)
from (select 'hello:' || gen_random_uuid()) as hello (message)";

/// Settings of the transaction that reads a page.
///
/// Both statements see the same keys, and scan an index one key at a time: plans that read all keys
/// first only look cheaper when statistics are outdated.
pub(super) const LIST_SETTINGS: &str = ";
set local cursor_tuple_fraction = 1;
set local enable_seqscan = off;
set local enable_bitmapscan = off;
set local max_parallel_workers_per_gather = 0;
set local jit = off";

/// How long a usage flush waits for rows locked by another node.
pub(super) const USAGE_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

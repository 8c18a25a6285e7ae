//! Templates of the statements that name the schema: `{schema}` is its identifier, and `{literal}`,
//! inside of `E''`, the same as text.

use std::time::Duration;

use super::record::columns;

// "No row" means "no such key" only where row-level security hides none, which is judged in the same
// statement: it has a row at least. The same goes for the limits of a plan.
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

// Behind a select, the array has no length to plan for: else each query of a few keys is planned
// anew, which takes longer than the query.
pub(super) const FIND_MANY: &str = find!("key_hash = any((select $1)::bytea[])");

// One statement, so that the horizon is that of the snapshot that the rows were read in. Nothing
// lies beyond its end but what another server has numbered, before its tables were restored here.
//
// A standby does not know which transactions are running, but where they begin.
//
// How far a standby is, everybody may ask, and whether it receives anything; of what its source has,
// only those learn who may read all statistics.
//
// Numbers that no disk has seen are drawn again once a server has recovered from a crash. It may do so
// without ending, as when one of its processes was killed; its statistics begin anew then.
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

// The triggers that announce, on the tables that are read and in their schema, enabled, for the same
// statements, and calling the function beside the table. What has one of their names elsewhere
// announces nothing.
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

// What had ended when the snapshot was taken was announced before this is. Nobody else's hello has
// the same number. It changes nothing that a standby would have to confirm.
pub(super) const SAY_HELLO: &str = "
select
    message,
    pg_current_snapshot()::text as ended,
    set_config('synchronous_commit', 'off', true),
    {schema}.api_key_announce(message)
from (select 'hello:' || gen_random_uuid()) as hello (message)";

/// Settings of the transaction that a page is read in.
///
/// Both statements see the same keys. And they walk along an index, one key after the other: what
/// takes all of them first only looks cheaper where statistics are old.
pub(super) const LIST_SETTINGS: &str = ";
set local cursor_tuple_fraction = 1;
set local enable_seqscan = off;
set local enable_bitmapscan = off;
set local max_parallel_workers_per_gather = 0;
set local jit = off";

/// How long a flush waits for rows that another node writes.
pub(super) const USAGE_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

//! The statement that writes last uses and adds counts.

use sqlx::{PgConnection, Postgres, postgres::PgArguments, query, query::Query};

use crate::store::{
    port::UseCounts,
    postgres::timestamp::Timestamp,
    row::{BatchId, HourRow, Uuid},
};

// Rows are locked in id order, so two nodes that write the same keys queue up instead of
// deadlocking. Times that are not newer are not written. Without a writer, the counts are added in
// any case.
const WRITE: &str = "
with batch as (
    insert into api_key_usage_writers as stored (writer, sequence)
    select $3::uuid, $4::bigint where $3 is not null
    on conflict (writer) do update set sequence = excluded.sequence, at = clock_timestamp()
    where stored.sequence < excluded.sequence
    returning writer
), used as materialized (
    select *
    from unnest($5, $6, $7, $8, $9, $10, $11, $12) as used (
        key_id, hour, consumer_id, admitted, limited, forbidden, refused, units
    )
    where $3 is null or exists (select from batch)
), hourly as (
    insert into api_key_usage_hourly as stored (
        key_id, hour, consumer_id, admitted, limited, forbidden, refused, units
    )
    select key_id, hour, consumer_id, admitted, limited, forbidden, refused, units
    from used
    order by key_id, hour
    on conflict (key_id, hour) do update set
        admitted = stored.admitted + excluded.admitted,
        limited = stored.limited + excluded.limited,
        forbidden = stored.forbidden + excluded.forbidden,
        refused = stored.refused + excluded.refused,
        units = stored.units + excluded.units
), daily as (
    insert into api_key_usage_daily as stored (
        key_id, day, consumer_id, admitted, limited, forbidden, refused, units
    )
    select
        key_id, date_trunc('day', hour, 'UTC') as day, min(consumer_id), sum(admitted)::bigint,
        sum(limited)::bigint, sum(forbidden)::bigint, sum(refused)::bigint, sum(units)::bigint
    from used
    group by 1, 2
    order by 1, 2
    on conflict (key_id, day) do update set
        admitted = stored.admitted + excluded.admitted,
        limited = stored.limited + excluded.limited,
        forbidden = stored.forbidden + excluded.forbidden,
        refused = stored.refused + excluded.refused,
        units = stored.units + excluded.units
)
insert into api_key_usage as stored (key_id, last_used_at)
select used.id, used.at
from unnest($1, $2) as used (id, at)
where exists (select from api_keys where api_keys.id = used.id)
order by used.id
on conflict (key_id) do update set last_used_at = excluded.last_used_at
where stored.last_used_at < excluded.last_used_at";

pub(super) type Row = (Uuid, Timestamp);

/// What one statement writes.
#[derive(Clone, Copy, Default)]
pub(super) struct Part<'a> {
    pub(super) last_uses: &'a [Row],
    /// Counts are added only if this batch is new.
    pub(super) batch: Option<BatchId>,
    pub(super) hours: &'a [HourRow<'a>],
}

pub(super) async fn execute(connection: &mut PgConnection, part: Part<'_>) -> sqlx::Result<()> {
    let (ids, times): (Vec<_>, Vec<_>) = part.last_uses.iter().copied().unzip();
    let (writer, sequence) = part.batch.unzip();
    let hours = HourColumns::of(part.hours);
    let write = query(WRITE).bind(ids).bind(times).bind(writer).bind(sequence);
    hours.bind(write).execute(connection).await.map(drop)
}

/// The columns of `api_key_usage_hourly`.
#[derive(Default)]
struct HourColumns {
    key_ids: Vec<Uuid>,
    hours: Vec<Timestamp>,
    consumer_ids: Vec<String>,
    counts: [Vec<i64>; 5],
}

impl HourColumns {
    fn of(rows: &[HourRow<'_>]) -> Self {
        let count = |count: fn(&UseCounts) -> i64| rows.iter().map(move |row| count(&row.counts));
        Self {
            key_ids: rows.iter().map(|row| row.key_id).collect(),
            hours: rows.iter().map(|row| Timestamp(row.hour)).collect(),
            consumer_ids: rows.iter().map(|row| row.consumer_id.to_owned()).collect(),
            counts: [
                count(|counts| counts.admitted).collect(),
                count(|counts| counts.limited).collect(),
                count(|counts| counts.forbidden).collect(),
                count(|counts| counts.refused).collect(),
                count(|counts| counts.units).collect(),
            ],
        }
    }

    fn bind<'q>(
        self,
        statement: Query<'q, Postgres, PgArguments>,
    ) -> Query<'q, Postgres, PgArguments> {
        let bound = statement.bind(self.key_ids).bind(self.hours).bind(self.consumer_ids);
        self.counts.into_iter().fold(bound, |bound, counts| bound.bind(counts))
    }
}

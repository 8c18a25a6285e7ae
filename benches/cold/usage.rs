//! Writing uses: one batch of last uses, alone and with counts.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use sqlx::{query, query_scalar};
use tower_api_key::{
    record::KeyId,
    store::{
        KeyStore,
        port::{CountedUses, HourlyUse, Usage, UsageBatch, UseCounts},
    },
};

use crate::{Result, setting::Setting, stats::median};

const BATCH: usize = 10_000;

/// Medians over the rounds, in milliseconds.
#[derive(Serialize)]
pub(crate) struct Flush {
    keys: usize,
    /// Keys without an earlier use.
    insert_ms: f64,
    /// Keys with an earlier use.
    update_ms: f64,
    /// With a count for each key, in its first hour and day.
    counted_insert_ms: f64,
    /// With a count for each key that is added to its hour and day.
    counted_update_ms: f64,
}

pub(crate) async fn measure(setting: &Setting, rounds: usize) -> Result<Flush> {
    let pool = setting.store.pool();
    let (mut inserts, mut updates) = (Vec::new(), Vec::new());
    let (mut counted_inserts, mut counted_updates) = (Vec::new(), Vec::new());
    let begin = SystemTime::now();
    for round in 0..rounds {
        query("truncate api_key_usage, api_key_usage_hourly, api_key_usage_daily")
            .execute(pool)
            .await?;
        // Different random keys in each round.
        let ids: Vec<String> = query_scalar(
            "select id::text from api_keys
            tablesample bernoulli (least(100, 100.0 * 3 * $1 / (select greatest(1, count(*)) from api_keys)))
            order by random() limit $1",
        )
        .bind(i64::try_from(BATCH)?)
        .fetch_all(pool)
        .await?;
        let mut ids =
            ids.iter().map(|id| id.parse()).collect::<std::result::Result<Vec<KeyId>, _>>()?;
        ids.sort_unstable();
        let mut minutes = 0;
        for (times, is_counted) in [
            (&mut inserts, false),
            (&mut updates, false),
            (&mut counted_inserts, true),
            (&mut counted_updates, true),
        ] {
            minutes += 1;
            let at = begin + Duration::from_secs(60 * (4 * round as u64 + minutes));
            let last_uses = ids.iter().map(|&id| Usage::new(id, at)).collect();
            let mut batch = UsageBatch::new(last_uses);
            if is_counted {
                batch = batch.counted(counts(&ids, begin, 4 * round as u64 + minutes));
            }
            let begin = Instant::now();
            setting.store.record_usage(&batch).await?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let written: i64 =
            query_scalar("select count(*) from api_key_usage").fetch_one(pool).await?;
        if written != i64::try_from(BATCH)? {
            return Err(format!("{written} uses of {BATCH} were written").into());
        }
    }
    let flush = Flush {
        keys: BATCH,
        insert_ms: median(inserts),
        update_ms: median(updates),
        counted_insert_ms: median(counted_inserts),
        counted_update_ms: median(counted_updates),
    };
    let Flush { insert_ms, update_ms, counted_insert_ms, counted_update_ms, .. } = flush;
    println!("\n# Recording the use of {BATCH} keys\n");
    println!("last uses: new: {insert_ms:.1} ms; used before: {update_ms:.1} ms");
    println!("with counts: new: {counted_insert_ms:.1} ms; used before: {counted_update_ms:.1} ms");
    Ok(flush)
}

/// A count of each key, all in one hour.
fn counts(ids: &[KeyId], hour: SystemTime, sequence: u64) -> CountedUses {
    let counts = UseCounts::new(100, 1, 0, 0, 100);
    let hours = ids.iter().map(|&id| HourlyUse::new(id, "consumer".into(), hour, counts));
    CountedUses::new([1; 16], sequence, hours.collect())
}

//! Writing last uses: one batch, as the worker does.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use sqlx::{query, query_scalar};
use tower_api_key::{
    record::KeyId,
    store::{KeyStore, port::Usage},
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
}

pub(crate) async fn measure(setting: &Setting, rounds: usize) -> Result<Flush> {
    let pool = setting.store.pool();
    let (mut inserts, mut updates) = (Vec::new(), Vec::new());
    let begin = SystemTime::now();
    for round in 0..rounds {
        query("truncate api_key_usage").execute(pool).await?;
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
        for (times, minutes) in [(&mut inserts, 1), (&mut updates, 2)] {
            let at = begin + Duration::from_secs(60 * (2 * round as u64 + minutes));
            let batch: Vec<_> = ids.iter().map(|&id| Usage::new(id, at)).collect();
            let begin = Instant::now();
            setting.store.record_usage(&batch.into()).await?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let written: i64 =
            query_scalar("select count(*) from api_key_usage").fetch_one(pool).await?;
        if written != i64::try_from(BATCH)? {
            return Err(format!("{written} uses of {BATCH} were written").into());
        }
    }
    let flush = Flush { keys: BATCH, insert_ms: median(inserts), update_ms: median(updates) };
    println!("\n# Recording the use of {BATCH} keys\n");
    println!("new: {:.1} ms; used before: {:.1} ms", flush.insert_ms, flush.update_ms);
    Ok(flush)
}

use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::{failure::Failure, output, progress::Progress, session::Session, values};

/// Keys per transaction. Small, because other transactions wait for its locks.
const BATCH: usize = 500;
/// Rows of counted uses per transaction. Nothing waits for them.
const HOURS: usize = 5_000;

/// Delete keys that ended long ago
///
/// Deletes keys that were revoked or expired before a date, with their dependent rows, in small
/// batches. The audit stays. If interrupted, run it again.
///
/// Keys that the database refuses to delete, because rows of the application refer to them by a
/// foreign key, are skipped and counted.
///
/// How often keys were used is kept by the hour for 35 days, and by the day for ever: older hours are
/// deleted as well.
///
/// A pruned key is unknown: if its hash is imported again, the key works again, even if it was
/// revoked. So keep ended keys for as long as an old list of keys may be imported.
#[derive(Args, Debug)]
pub(crate) struct Prune {
    /// Keys that were revoked or expired before a date, or a duration ago: 90d
    #[arg(long, value_name = "WHEN", value_parser = values::past)]
    ended_before: SystemTime,
    /// Hourly counts of uses before a date, or a duration ago
    #[arg(long, value_name = "WHEN", value_parser = values::past, default_value = "35d")]
    hours_before: SystemTime,
}

pub(crate) async fn run(prune: Prune, session: &Session) -> Result<(), Failure> {
    let issuer = session.issuer()?;
    let progress = Progress::begin(None, "deleted");
    let (mut keys, mut leftovers, mut skipped) = (0, 0, Vec::new());
    loop {
        let pruned = issuer.prune_past(prune.ended_before, BATCH, &skipped).await?;
        if pruned.is_empty() && pruned.skipped.is_empty() {
            break;
        }
        keys += pruned.keys;
        leftovers += pruned.leftovers;
        skipped.extend(pruned.skipped);
        progress.add(pruned.keys);
    }
    progress.end();
    let mut hours = 0;
    loop {
        let deleted = issuer.prune_usage(prune.hours_before, HOURS).await?;
        if deleted == 0 {
            break;
        }
        hours += deleted;
    }
    let skipped = skipped.len();
    if session.global.json {
        let pruned =
            json!({ "keys": keys, "leftovers": leftovers, "hours": hours, "skipped": skipped });
        return output::line(&pruned.to_string());
    }
    output::note(&format!("deleted {keys} keys and {leftovers} leftover rows of keys"));
    if hours > 0 {
        output::note(&format!("deleted {hours} rows of hourly use"));
    }
    if skipped > 0 {
        output::warn(&format!(
            "{skipped} ended keys were not deleted: the database refuses it, most often because \
            rows of the application refer to them by a foreign key. They remain rejected"
        ));
    }
    Ok(())
}

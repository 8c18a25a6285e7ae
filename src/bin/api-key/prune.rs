use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::{failure::Failure, output, progress::Progress, session::Session, values};

/// So many keys are deleted in one transaction, which others wait for.
const BATCH: usize = 500;

/// Delete keys that ended long ago
///
/// Keys that were revoked or expired before a date are deleted in small batches, and what hangs on
/// them. The audit stays. Interrupted, it can be begun again.
///
/// Keys that the database refuses to delete, as rows of the application refer to them by a foreign key,
/// are left out and counted.
///
/// A key that was pruned is unknown: if its hash is imported again it works again, revoked or not.
/// So keep keys for as long as an old list of them may be imported.
#[derive(Args, Debug)]
pub(crate) struct Prune {
    /// Keys that were revoked or expired before a date, or so long ago: 90d
    #[arg(long, value_name = "WHEN", value_parser = values::past)]
    ended_before: SystemTime,
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
    let skipped = skipped.len();
    if session.global.json {
        let pruned = json!({ "keys": keys, "leftovers": leftovers, "skipped": skipped });
        return output::line(&pruned.to_string());
    }
    output::note(&format!("deleted {keys} keys, and {leftovers} rows that hung on such"));
    if skipped > 0 {
        output::warn(&format!(
            "{skipped} keys that have ended are still there: the database refuses to delete them, \
            most often as rows of the application refer to them by a foreign key. They are not accepted"
        ));
    }
    Ok(())
}

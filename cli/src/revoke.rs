use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::SystemTime,
};

use clap::{ArgGroup, Args};
use serde_json::json;
use tower_api_key::{manage::RevocationFilter, record::KeyId};

use super::{failure::Failure, output, session::Session, values};

/// Revoke one or many keys, permanently
///
///   api-key revoke ID --reason leaked
///   api-key revoke --consumer acme --yes
///   api-key revoke --created-before 2026-11-28T12:00Z --used-since 2026-11-28T14:00Z --dry-run
///
/// With several conditions, a key must match all of them. A revocation cannot be undone: the
/// database refuses it. To switch a key off temporarily, use `update --deactivate`.
#[derive(Args, Debug)]
#[command(
    verbatim_doc_comment,
    group = ArgGroup::new("which").required(true).multiple(true),
    group = ArgGroup::new("many").multiple(true)
)]
pub(crate) struct Revoke {
    /// The id of the key
    #[arg(group = "which", conflicts_with = "many")]
    id: Option<KeyId>,

    /// All keys of this consumer
    #[arg(long, value_name = "ID", groups = ["which", "many"])]
    consumer: Option<String>,

    /// All keys with exactly this prefix
    #[arg(long, groups = ["which", "many"])]
    prefix: Option<String>,

    /// All keys that were issued or imported before a date, or a duration ago: 30d
    ///
    /// After restoring a backup, give the time of the backup.
    #[arg(long, value_name = "WHEN", value_parser = values::past, groups = ["which", "many"])]
    created_before: Option<SystemTime>,

    /// All keys last used at or after a date, or a duration ago: 2h
    ///
    /// Services record uses with a delay, ten seconds by default.
    #[arg(long, value_name = "WHEN", value_parser = values::past, groups = ["which", "many"])]
    used_since: Option<SystemTime>,

    /// Print the keys that would be revoked, without revoking them
    #[arg(long, requires = "many", conflicts_with = "id")]
    dry_run: bool,

    /// The reason, for the audit
    #[arg(long)]
    reason: Option<String>,

    /// Revoke many without asking
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(revoke: Revoke, session: &Session) -> Result<(), Failure> {
    let issuer = session.issuer()?;
    let reason = revoke.reason.as_deref();
    if let Some(id) = revoke.id {
        let record = issuer.revoke(id, reason).await?;
        if session.global.json {
            return output::line(&output::record(&record).to_string());
        }
        let at = output::maybe_time(record.revoked_at, "now");
        output::note(&format!("{id} revoked at {at}"));
        return Ok(());
    }
    let filter = revoke.filter();
    if revoke.dry_run {
        return would_revoke(&issuer.matching(&filter).await?, session);
    }
    confirm(&revoke.which(), revoke.yes)?;
    let revoked = match (&revoke.consumer, &revoke.prefix) {
        // Unlike the others, these two also revoke rows that cannot be read, or report them.
        (Some(consumer), None) if filter == RevocationFilter::new().consumer_id(consumer) => {
            issuer.revoke_consumer(consumer, reason).await?
        }
        (None, Some(prefix)) if filter == RevocationFilter::new().key_prefix(prefix) => {
            issuer.revoke_prefix(prefix, reason).await?
        }
        _ => issuer.revoke_matching(&filter, reason).await?,
    };
    let (keys, skipped) = (revoked.keys, revoked.skipped.len());
    if session.global.json {
        output::line(&json!({ "revoked": keys, "skipped": skipped }).to_string())?;
    } else {
        output::note(&format!("revoked {keys} keys"));
    }
    if skipped > 0 {
        let ids: Vec<_> = revoked.skipped.iter().take(10).map(ToString::to_string).collect();
        return Err(Failure::new(format!(
            "{skipped} keys are not revoked: a constraint or trigger of the database refuses it, \
            or their rows cannot be read; `api-key revoke` says why: {}{}",
            ids.join(", "),
            if skipped > ids.len() { ", …" } else { "" }
        )));
    }
    Ok(())
}

fn would_revoke(ids: &[KeyId], session: &Session) -> Result<(), Failure> {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    if session.global.json {
        return output::line(&json!({ "would_revoke": ids }).to_string());
    }
    for id in &ids {
        output::line(id)?;
    }
    output::note(&format!("would revoke {} keys; give --yes in place of --dry-run", ids.len()));
    Ok(())
}

impl Revoke {
    fn filter(&self) -> RevocationFilter {
        let mut filter = RevocationFilter::new();
        filter.consumer_id.clone_from(&self.consumer);
        filter.key_prefix.clone_from(&self.prefix);
        filter.created_before = self.created_before;
        filter.used_since = self.used_since;
        filter
    }

    /// Describes the keys to revoke, for the confirmation.
    fn which(&self) -> String {
        let mut which = "all keys".to_owned();
        if let Some(consumer) = &self.consumer {
            which += &format!(" of {consumer}");
        }
        if let Some(prefix) = &self.prefix {
            which += &format!(" that begin with {prefix}");
        }
        if let Some(end) = self.created_before {
            which += &format!(" that were created before {}", output::time(end));
        }
        if let Some(since) = self.used_since {
            which += &format!(" that were used since {}", output::time(since));
        }
        which
    }
}

/// Asks for confirmation, unless `yes` is set.
pub(crate) fn confirm(which: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("to revoke {which} permanently, give --yes")));
    }
    let _ = write!(io::stderr(), "Permanently revoke {which}? [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::new("standard input").because(&error))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new("nothing was revoked")),
    }
}

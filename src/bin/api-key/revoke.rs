use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::{ArgGroup, Args};
use serde_json::json;
use tower_api_key::record::KeyId;

use super::{failure::Failure, output, session::Session};

/// Revoke a key, or many, for good
///
///   api-key revoke ID --reason leaked
///   api-key revoke --consumer acme --yes
///
/// A revocation cannot be undone: the database refuses it. `update --deactivate` can.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment, group = ArgGroup::new("which").required(true))]
pub(crate) struct Revoke {
    /// The id of the key
    #[arg(group = "which")]
    id: Option<KeyId>,

    /// All keys of this consumer
    #[arg(long, value_name = "ID", group = "which")]
    consumer: Option<String>,

    /// All keys with exactly this prefix
    #[arg(long, group = "which")]
    prefix: Option<String>,

    /// Why, for the audit
    #[arg(long)]
    reason: Option<String>,

    /// Revoke many without asking
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(revoke: Revoke, session: &Session) -> Result<(), Failure> {
    let issuer = session.issuer()?;
    let reason = revoke.reason.as_deref();
    let revoked = match (revoke.id, &revoke.consumer, &revoke.prefix) {
        (Some(id), ..) => {
            let record = issuer.revoke(id, reason).await?;
            if session.global.json {
                return output::line(&output::record(&record).to_string());
            }
            let at = output::maybe_time(record.revoked_at, "now");
            output::note(&format!("{id} is revoked since {at}"));
            return Ok(());
        }
        (_, Some(consumer), _) => {
            revoke.confirm(&format!("all keys of {consumer}"))?;
            issuer.revoke_consumer(consumer, reason).await?
        }
        (_, _, Some(prefix)) => {
            revoke.confirm(&format!("all keys that begin with {prefix}"))?;
            issuer.revoke_prefix(prefix, reason).await?
        }
        // The group is required.
        (None, None, None) => return Err(Failure::usage("name a key, --consumer or --prefix")),
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
            "{skipped} keys are not revoked, as a constraint or trigger of the database refuses it, or \
            as their rows cannot be read; `api-key revoke` says why: {}{}",
            ids.join(", "),
            if skipped > ids.len() { ", …" } else { "" }
        )));
    }
    Ok(())
}

impl Revoke {
    fn confirm(&self, which: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::usage(format!("to revoke {which} for good, give --yes")));
        }
        let _ = write!(io::stderr(), "Revoke {which} for good? [y/N] ");
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        read.map_err(|error| Failure::new("standard input").because(&error))?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Failure::new("nothing was revoked")),
        }
    }
}

use std::{env, time::Duration};

use clap::Args;
use serde_json::json;
use tower_api_key::{
    key::KeyFormat,
    manage::{Expiry, Rotation},
    record::{KeyId, KeyRecord},
};

use super::{destination::Out, failure::Failure, output, policy::Policy, session::Session, values};

/// Issue a key that replaces another one, which keeps working for a grace period
///
/// The new key has the same consumer, name, scopes, limits and metadata as the old one, and the
/// same lifetime from issue to expiry. It is written to standard output, once.
#[derive(Args, Debug)]
pub(crate) struct Rotate {
    /// The id of the key to replace
    id: KeyId,

    /// How long the old key keeps working, but never past its own expiry; 0s ends it at once
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = values::duration)]
    grace: Duration,

    /// When the new key expires [default: after the same lifetime as the old one]
    #[arg(long, value_name = "WHEN", value_parser = values::new_expiry)]
    expires: Option<Expiry>,

    /// The prefix of the new key [default: that of the old one]
    #[arg(long, value_name = "PREFIX", value_parser = values::format)]
    key_prefix: Option<KeyFormat>,

    /// The reason, for the audit
    #[arg(long)]
    reason: Option<String>,

    #[command(flatten)]
    policy: Policy,

    #[command(flatten)]
    out: Out,
}

pub(crate) async fn run(rotate: Rotate, session: &Session) -> Result<(), Failure> {
    let format = match rotate.key_prefix {
        Some(format) => format,
        None => format_of(&session.issuer()?.get(rotate.id).await?.record)?,
    };
    let mut rotation = Rotation::new().grace(rotate.grace);
    if let Some(expiry) = rotate.expires {
        rotation = rotation.expiry(expiry);
    }
    if let Some(reason) = rotate.reason {
        rotation = rotation.reason(reason);
    }
    let issuer = rotate.policy.apply(session.issuer_of(format)?)?;
    let destination = rotate.out.prepare()?;
    let rotated = match issuer.rotate(rotate.id, rotation).await {
        Ok(rotated) => rotated,
        Err(error) => {
            destination.abandon();
            return Err(error.into());
        }
    };
    let (record, previous) = (&rotated.record, &rotated.previous);
    let answer = session.global.json.then(|| {
        let mut answer = output::record(record);
        output::set(&mut answer, "previous", json!(output::record(previous)));
        answer
    });
    destination.hand_over(&rotated.key, record, answer)?;
    output::note(&format!(
        "issued {} to replace {}, which works until {}",
        record.id,
        previous.id,
        output::maybe_time(previous.expires_at, "it is revoked"),
    ));
    Ok(())
}

/// The format for a successor. An imported key may have a prefix that issued keys cannot have.
fn format_of(record: &KeyRecord) -> Result<KeyFormat, Failure> {
    if let Ok(format) = KeyFormat::new(&record.key_prefix) {
        return Ok(format);
    }
    let prefix = env::var("API_KEY_PREFIX").unwrap_or_else(|_| "sk_live_".to_owned());
    output::warn(&format!(
        "the old key's prefix is not valid for new keys; the new key begins with {prefix}"
    ));
    values::format(&prefix).map_err(|problem| Failure::usage(format!("API_KEY_PREFIX: {problem}")))
}

use std::{env, time::Duration};

use clap::Args;
use serde_json::json;
use tower_api_key::{
    key::KeyFormat,
    manage::{Expiry, Rotation},
    record::{KeyId, KeyRecord},
};

use super::{destination::Out, failure::Failure, output, session::Session, values};

/// Issue a key to replace another one, which goes on working for a while
///
/// The new key has the same consumer, name, scopes, limits and metadata, and lasts as long as the
/// old one was meant to. It is written to standard output, once.
#[derive(Args, Debug)]
pub(crate) struct Rotate {
    /// The id of the key that is replaced
    id: KeyId,

    /// How long the old key goes on working, but never past its own expiry; 0s ends it at once
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = values::duration)]
    grace: Duration,

    /// When the new key expires [default: it lasts as long as the old one was meant to]
    #[arg(long, value_name = "WHEN", value_parser = values::expiry)]
    expires: Option<Expiry>,

    /// What the new key begins with [default: as the old one]
    #[arg(long, value_name = "PREFIX", value_parser = values::format)]
    key_prefix: Option<KeyFormat>,

    /// Why, for the audit
    #[arg(long)]
    reason: Option<String>,

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
    let destination = rotate.out.prepare()?;
    let rotated = match session.issuer_of(format)?.rotate(rotate.id, rotation).await {
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

/// The format of a key that was issued here. One that was imported may have no prefix that new keys
/// can have.
fn format_of(record: &KeyRecord) -> Result<KeyFormat, Failure> {
    if let Ok(format) = KeyFormat::new(&record.key_prefix) {
        return Ok(format);
    }
    let prefix = env::var("API_KEY_PREFIX").unwrap_or_else(|_| "sk_live_".to_owned());
    output::warn(&format!(
        "new keys cannot begin as this one does; the new one begins with {prefix}"
    ));
    values::format(&prefix).map_err(|problem| Failure::usage(format!("API_KEY_PREFIX: {problem}")))
}

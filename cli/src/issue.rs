use std::time::SystemTime;

use clap::Args;
use tower_api_key::{
    key::KeyFormat,
    manage::{Expiry, NewKey},
    record::{Metadata, Scope, Scopes},
};

use super::{
    destination::Out,
    failure::Failure,
    output,
    places::Places,
    policy::Policy,
    session::Session,
    values::{self, Limit},
};

/// Issue a key
///
/// The key is written to standard output, once; only its hash is stored. Its id is written to
/// standard error, or with --json is part of the answer:
///
///   api-key issue --consumer acme --name ci --scope orders:read --expires 30d
///   api-key issue --consumer acme --expires never --out acme.key
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Issue {
    /// The consumer that the key belongs to
    #[arg(long, value_name = "ID")]
    consumer: String,

    #[command(flatten)]
    what: Description,

    /// When it stops working: 30d, 2026-12-31, "never"
    ///
    /// There is no default, so that a key that never expires is a deliberate choice. 30 to 90 days
    /// suit a service, a day suits a build.
    #[arg(long, value_name = "WHEN", value_parser = values::new_expiry)]
    expires: Expiry,

    /// The prefix of the key
    #[arg(long, value_name = "PREFIX", env = "API_KEY_PREFIX", default_value = "sk_live_",
        value_parser = values::format)]
    key_prefix: KeyFormat,

    /// The reason, for the audit
    #[arg(long)]
    reason: Option<String>,

    #[command(flatten)]
    policy: Policy,

    #[command(flatten)]
    out: Out,
}

/// The properties of a new key other than its consumer and expiry.
#[derive(Args, Debug)]
#[group(id = "description")]
pub(crate) struct Description {
    /// Its name, chosen by its owner
    #[arg(long)]
    name: Option<String>,

    /// A scope, such as orders:read; may be repeated, or several separated by commas
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<Scope>,

    /// A rate limit: 600/min, 10/s, 600/min:20 for a burst of 20, 1000/day:sliding or :strict for
    /// never more in any day, 50000/day:per-consumer for all keys of the consumer together,
    /// "unlimited"; may be repeated [default: those of its plan, or else the service's default]
    #[arg(long = "rate-limit", value_name = "LIMIT", value_parser = values::limit)]
    rate_limits: Vec<Limit>,

    /// Its plan: limits that many keys share, see `api-key plan --help`
    #[arg(long, value_name = "NAME")]
    plan: Option<String>,

    /// Data for the application: a JSON object
    #[arg(long, value_name = "JSON", value_parser = values::metadata)]
    metadata: Option<Metadata>,

    #[command(flatten)]
    places: Places,

    /// When it starts to work: a date, or a duration from now [default: at once]
    #[arg(long, value_name = "WHEN", value_parser = values::future)]
    not_before: Option<SystemTime>,

    /// On whose behalf it is issued [default: as --actor]
    #[arg(long, value_name = "NAME")]
    created_by: Option<String>,
}

impl Description {
    pub(crate) fn into_key(
        self,
        consumer: String,
        expiry: Expiry,
        reason: Option<String>,
    ) -> Result<NewKey, Failure> {
        let mut new = NewKey::new(consumer, expiry)
            .scopes(Scopes::from_iter(self.scopes))
            .metadata(self.metadata.unwrap_or_default());
        new = self.places.of(new)?;
        if let Some(name) = self.name {
            new = new.name(name);
        }
        if !self.rate_limits.is_empty() {
            let limits = values::limits(&self.rate_limits);
            new =
                new.rate_limits(limits.map_err(|e| Failure::usage(format!("--rate-limit: {e}")))?);
        }
        if let Some(plan) = self.plan {
            new = new.plan(plan);
        }
        if let Some(at) = self.not_before {
            new = new.not_before(at);
        }
        if let Some(who) = self.created_by {
            new = new.created_by(who);
        }
        if let Some(reason) = reason {
            new = new.reason(reason);
        }
        Ok(new)
    }
}

pub(crate) async fn run(issue: Issue, session: &Session) -> Result<(), Failure> {
    let issuer = issue.policy.apply(session.issuer_of(issue.key_prefix)?)?;
    let new = issue.what.into_key(issue.consumer, issue.expires, issue.reason)?;
    let destination = issue.out.prepare()?;
    let issued = match issuer.issue(new).await {
        Ok(issued) => issued,
        Err(error) => {
            destination.abandon();
            return Err(error.into());
        }
    };
    let record = &issued.record;
    let answer = session.global.json.then(|| output::record(record));
    destination.hand_over(&issued.key, record, answer)?;
    output::note(&format!(
        "issued {} to {}, expires: {}",
        record.id,
        record.consumer_id,
        output::maybe_time(record.expires_at, "never"),
    ));
    Ok(())
}

use clap::{ArgGroup, Args};
use tower_api_key::{
    manage::{Expiry, KeyUpdate},
    record::{KeyId, Metadata, Scope, Scopes},
    store::ListedKey,
};

use super::{
    failure::Failure,
    output,
    places::NewPlaces,
    policy::Policy,
    session::Session,
    values::{self, Limit},
};

/// Change a key; options that are not given leave their setting as it is
///
/// Services that listen for changes apply the change within milliseconds.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct Update {
    /// The id of the key
    id: KeyId,

    /// Its name, chosen by its owner
    #[arg(long, group = "change")]
    name: Option<String>,

    /// Remove its name
    #[arg(long, group = "change", conflicts_with = "name")]
    no_name: bool,

    /// A scope; all given scopes replace its present ones; may be repeated, or several separated
    /// by commas
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', group = "change")]
    scopes: Vec<Scope>,

    /// Remove all of its scopes
    #[arg(long, group = "change", conflicts_with = "scopes")]
    no_scopes: bool,

    /// A rate limit: 600/min, 1000/day:sliding, "unlimited"; may be repeated
    #[arg(long = "rate-limit", value_name = "LIMIT", value_parser = values::limit, group = "change")]
    rate_limits: Vec<Limit>,

    /// Remove its own limits: those of its plan apply, or else the service's default
    #[arg(long, group = "change", conflicts_with = "rate_limits")]
    default_rate_limits: bool,

    /// Its plan: limits that many keys share
    #[arg(long, value_name = "NAME", group = "change")]
    plan: Option<String>,

    /// Take it off its plan
    #[arg(long, group = "change", conflicts_with = "plan")]
    no_plan: bool,

    /// Data for the application: a JSON object
    #[arg(long, value_name = "JSON", value_parser = values::metadata, group = "change")]
    metadata: Option<Metadata>,

    #[command(flatten)]
    places: NewPlaces,

    /// When it stops working: 30d from now, 2026-12-31, "never"
    #[arg(long, value_name = "WHEN", value_parser = values::expiry, group = "change")]
    expires: Option<Expiry>,

    /// Switch it on
    #[arg(long, group = "change")]
    activate: bool,

    /// Switch it off; unlike a revocation, this can be undone
    #[arg(long, group = "change", conflicts_with = "activate")]
    deactivate: bool,

    /// Change it only if it still has this version, as printed by `show`
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,

    /// The reason, for the audit
    #[arg(long)]
    reason: Option<String>,

    #[command(flatten)]
    policy: Policy,
}

pub(crate) async fn run(update: Update, session: &Session) -> Result<(), Failure> {
    let id = update.id;
    let issuer = update.policy.apply(session.issuer()?)?;
    let record = issuer.update(id, update.into_update()?).await?;
    if session.global.json {
        return output::line(&output::record(&record).to_string());
    }
    output::note(&format!("changed {id}"));
    output::line(&output::details(&ListedKey::new(record, None)))
}

impl Update {
    fn into_update(self) -> Result<KeyUpdate, Failure> {
        let mut update = KeyUpdate::new();
        if self.name.is_some() || self.no_name {
            update = update.name(self.name);
        }
        if !self.scopes.is_empty() || self.no_scopes {
            update = update.scopes(self.scopes.into_iter().collect::<Scopes>());
        }
        if !self.rate_limits.is_empty() {
            let limits = values::limits(&self.rate_limits);
            let limits = limits.map_err(|e| Failure::usage(format!("--rate-limit: {e}")))?;
            update = update.rate_limits(Some(limits));
        } else if self.default_rate_limits {
            update = update.rate_limits(None);
        }
        if self.plan.is_some() || self.no_plan {
            update = update.plan(self.plan);
        }
        if let Some(metadata) = self.metadata {
            update = update.metadata(metadata);
        }
        update = self.places.of(update)?;
        if let Some(expiry) = self.expires {
            update = update.expiry(expiry);
        }
        if self.activate || self.deactivate {
            update = update.is_active(self.activate);
        }
        if let Some(version) = self.if_version {
            update = update.if_version(version);
        }
        if let Some(reason) = self.reason {
            update = update.reason(reason);
        }
        Ok(update)
    }
}

use clap::{Args, Subcommand};
use serde_json::json;
use tower_api_key::{
    manage::{ManageError, ManageErrorKind},
    rate_limit::RateLimits,
};

use super::{
    failure::Failure,
    output,
    session::Session,
    values::{self, Limit},
};

/// Define plans: limits that many keys share
///
/// Put a key on a plan with --plan of `issue`, `import` and `update`. A key has the limits of its
/// plan and its own; of two limits with the same name, its own applies. Services that listen for
/// changes apply a changed plan within a second.
#[derive(Args, Debug)]
pub(crate) struct Plan {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Set(Set),
    List(List),
    Remove(Remove),
}

/// Define a plan, or change it for all of its keys
///
///   api-key plan set pro 600/min 100000/day
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
struct Set {
    /// Its name: letters, digits, `-`, `_` and `.`
    name: String,

    /// A rate limit of each of its keys: 600/min, 10/s, 600/min:20 for a burst of 20,
    /// 1000/day:sliding or :strict for never more in any day, 50000/day:per-consumer for all keys
    /// of a consumer together, "unlimited"
    #[arg(required = true, value_name = "LIMIT", value_parser = values::limit)]
    limits: Vec<Limit>,
}

/// List plans
///
/// With --json the answer is {"plans": [...]}. Plans that services define in code are not listed.
#[derive(Args, Debug)]
struct List {}

/// Remove a plan
///
/// Its keys keep its name: they get the limits that the service defines for this plan in code, if
/// any.
#[derive(Args, Debug)]
struct Remove {
    /// Its name
    name: String,
}

pub(crate) async fn run(plan: Plan, session: &Session) -> Result<(), Failure> {
    match plan.command {
        Command::Set(set) => self::set(&set, session).await,
        Command::List(List {}) => list(session).await,
        Command::Remove(remove) => self::remove(&remove, session).await,
    }
}

async fn set(set: &Set, session: &Session) -> Result<(), Failure> {
    let limits = values::limits(&set.limits).map_err(Failure::usage)?;
    session.issuer()?.set_plan(&set.name, &limits).await.map_err(failed)?;
    if session.global.json {
        return output::line(&as_json(&set.name, &limits).to_string());
    }
    output::note(&format!("plan {}: {}", set.name, output::limits(&limits)));
    Ok(())
}

async fn list(session: &Session) -> Result<(), Failure> {
    let plans = session.issuer()?.plans().await?;
    if session.global.json {
        let plans: Vec<_> = plans.iter().map(|(name, limits)| as_json(name, limits)).collect();
        return output::line(&json!({ "plans": plans }).to_string());
    }
    let rows = plans.iter().map(|(name, limits)| vec![name.clone(), output::limits(limits)]);
    output::line(&output::table(&["NAME", "RATE LIMITS"], rows))
}

async fn remove(remove: &Remove, session: &Session) -> Result<(), Failure> {
    if !session.issuer()?.remove_plan(&remove.name).await? {
        return Err(Failure::not_found("no such plan"));
    }
    if session.global.json {
        return output::line(r#"{"removed":true}"#);
    }
    output::note(&format!("removed plan {}", remove.name));
    Ok(())
}

fn as_json(name: &str, limits: &RateLimits) -> serde_json::Value {
    json!({ "name": name, "rate_limits": limits })
}

/// Reports errors without an option: the plan's name is a positional argument here.
fn failed(error: ManageError) -> Failure {
    match error.kind() {
        ManageErrorKind::Invalid => Failure::usage(error.detail()),
        _ => error.into(),
    }
}

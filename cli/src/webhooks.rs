use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tower_api_key::{
    record::{EventFilter, Network, WebhookEndpoint, WebhookId, WebhookState},
    webhooks::{WebhookError, WebhookErrorKind, Webhooks},
};

use super::{
    failure::{CONFLICT, Failure, NOT_FOUND, USAGE},
    output,
    session::Session,
    values,
};

/// Send the audit to other services, as signed webhooks
///
/// Each webhook gets every event of its types at least once and in order, from a service that runs
/// their worker. Receivers verify signatures with a library of standardwebhooks.com.
#[derive(Args, Debug)]
pub(crate) struct WebhooksCommand {
    /// A network that webhooks may reach although it is private, also by http: 10.20.0.0/16; may be
    /// repeated [default: public addresses, by https alone]
    ///
    /// The services that deliver need the same setting.
    #[arg(
        long,
        value_name = "CIDR",
        env = "API_KEY_WEBHOOK_NETWORKS",
        value_delimiter = ',',
        global = true
    )]
    allow_network: Vec<Network>,

    /// A file of certificate authorities to trust, in PEM [default: those that browsers trust]
    #[arg(long, value_name = "FILE", global = true)]
    trust: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(Add),
    List(List),
    Test(Test),
    Replay(Replay),
    RotateSecret(RotateSecret),
    Remove(Remove),
}

/// Add a webhook, and print its secret, once
///
///   api-key webhooks add https://example.com/hooks --events key.revoked,key.expiring
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
struct Add {
    /// Where events are posted
    url: String,

    /// Only events of this type, such as key.revoked, or of this kind, such as plan.*; may be
    /// repeated, or several separated by commas [default: all]
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    events: Vec<String>,
}

/// List webhooks, and how far each has got
///
/// With --json the answer is {"webhooks": [...]}.
#[derive(Args, Debug)]
struct List {}

/// Post an event of type webhook.test now, and print the status
#[derive(Args, Debug)]
struct Test {
    /// The id of the webhook
    id: WebhookId,
}

/// Resume a webhook, where it stopped or from an earlier event on
#[derive(Args, Debug)]
struct Replay {
    /// The id of the webhook
    id: WebhookId,

    /// The number of the first event to deliver again, from `api-key events --json` [default: the
    /// first that was not delivered]
    #[arg(long, value_name = "EVENT")]
    from: Option<u64>,
}

/// Replace the secret of a webhook, and print the new one, once
#[derive(Args, Debug)]
struct RotateSecret {
    /// The id of the webhook
    id: WebhookId,

    /// How long the old secret signs as well: 12h, at most 30d
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = values::duration)]
    overlap: Duration,
}

/// Remove a webhook
#[derive(Args, Debug)]
struct Remove {
    /// The id of the webhook
    id: WebhookId,
}

pub(crate) async fn run(webhooks: WebhooksCommand, session: &Session) -> Result<(), Failure> {
    let mut service = session.webhooks();
    for network in webhooks.allow_network {
        service = service.allow_network(network);
    }
    if let Some(path) = webhooks.trust {
        let unreadable = || Failure::usage(format!("--trust {}", output::printable_path(&path)));
        let pem = std::fs::read(&path).map_err(|error| unreadable().because(&error))?;
        service = service.trust_certificates(&pem).map_err(|error| unreadable().because(&error))?;
    }
    match webhooks.command {
        Command::Add(add) => self::add(&add, &service, session).await,
        Command::List(List {}) => list(&service, session).await,
        Command::Test(test) => self::test(&test, &service, session).await,
        Command::Replay(replay) => self::replay(&replay, &service, session).await,
        Command::RotateSecret(rotate) => rotate_secret(&rotate, &service, session).await,
        Command::Remove(remove) => self::remove(&remove, &service, session).await,
    }
}

async fn add(add: &Add, webhooks: &Webhooks, session: &Session) -> Result<(), Failure> {
    let events = EventFilter::parse(&add.events)
        .map_err(|error| Failure::usage(format!("--events: {error}")))?;
    let added = webhooks.add(&add.url, events).await.map_err(|error| failed(&error))?;
    show_secret(&added, session)?;
    output::note(&format!("added webhook {}", added.id));
    Ok(())
}

async fn list(webhooks: &Webhooks, session: &Session) -> Result<(), Failure> {
    let all = webhooks.list().await.map_err(|error| failed(&error))?;
    if session.global.json {
        let all: Vec<_> = all.iter().map(as_json).collect();
        return output::line(&json!({ "webhooks": all }).to_string());
    }
    let rows = all.iter().map(|webhook| {
        let is_active = webhook.state == WebhookState::Active;
        let next = webhook.next_attempt_at.filter(|_| is_active);
        vec![
            webhook.id.to_string(),
            webhook.url.clone(),
            webhook.events.types().map_or_else(|| "all".to_owned(), |types| types.join(" ")),
            webhook.state.as_str().to_owned(),
            webhook.delivered_to.to_string(),
            output::maybe_time(webhook.last_delivered_at, "-"),
            webhook.failures.to_string(),
            output::maybe_time(next, "-"),
            webhook.last_error.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let headings =
        ["ID", "URL", "EVENTS", "STATE", "EVENT", "DELIVERED", "FAILURES", "NEXT ATTEMPT", "ERROR"];
    output::line(&output::table(&headings, rows))
}

async fn test(test: &Test, webhooks: &Webhooks, session: &Session) -> Result<(), Failure> {
    let result = webhooks.test(test.id).await.map_err(|error| failed(&error))?;
    let milliseconds = result.duration.as_millis();
    if session.global.json {
        let answer = json!({
            "delivered": result.is_delivered(),
            "status": result.status,
            "problem": result.problem,
            "milliseconds": milliseconds,
        });
        output::line(&answer.to_string())?;
    } else if let Some(status) = result.status {
        output::line(&format!("status {status} after {milliseconds} ms"))?;
    }
    match (result.is_delivered(), result.problem) {
        (true, _) => Ok(()),
        (false, Some(problem)) => Err(Failure::new(problem)),
        (false, None) => {
            Err(Failure::new("the receiver did not accept the event: it must answer 2xx"))
        }
    }
}

async fn replay(replay: &Replay, webhooks: &Webhooks, session: &Session) -> Result<(), Failure> {
    let resumed = webhooks.replay(replay.id, replay.from).await.map_err(|error| failed(&error))?;
    if session.global.json {
        return output::line(&as_json(&resumed).to_string());
    }
    output::note(&format!("webhook {} goes on after event {}", resumed.id, resumed.delivered_to));
    Ok(())
}

async fn rotate_secret(
    rotate: &RotateSecret,
    webhooks: &Webhooks,
    session: &Session,
) -> Result<(), Failure> {
    let rotated =
        webhooks.rotate_secret(rotate.id, rotate.overlap).await.map_err(|error| failed(&error))?;
    show_secret(&rotated, session)?;
    let until = rotated.previous_secret.as_ref().map(|(_, until)| *until);
    let end = output::maybe_time(until, "now");
    output::note(&format!("the old secret of webhook {} signs until {end}", rotated.id));
    Ok(())
}

async fn remove(remove: &Remove, webhooks: &Webhooks, session: &Session) -> Result<(), Failure> {
    webhooks.remove(remove.id).await.map_err(|error| failed(&error))?;
    if session.global.json {
        return output::line(r#"{"removed":true}"#);
    }
    output::note(&format!("removed webhook {}", remove.id));
    Ok(())
}

/// The secret alone, or with --json the webhook and its secret.
fn show_secret(webhook: &WebhookEndpoint, session: &Session) -> Result<(), Failure> {
    let secret = webhook.secret.expose_secret();
    if !session.global.json {
        return output::line(secret);
    }
    let mut answer = as_json(webhook);
    output::set(&mut answer, "secret", json!(secret));
    output::line(&answer.to_string())
}

/// A webhook without its secrets.
fn as_json(webhook: &WebhookEndpoint) -> Value {
    let previous = webhook.previous_secret.as_ref().map(|(_, until)| output::exact(*until));
    json!({
        "id": webhook.id.to_string(),
        "url": webhook.url,
        "events": webhook.events.types(),
        "state": webhook.state.as_str(),
        "delivered_to": webhook.delivered_to,
        "last_delivered_at": webhook.last_delivered_at.map(output::exact),
        "failures": webhook.failures,
        "next_attempt_at": webhook.next_attempt_at.map(output::exact),
        "last_error": webhook.last_error,
        "previous_secret_until": previous,
        "created_at": output::exact(webhook.created_at),
    })
}

fn failed(error: &WebhookError) -> Failure {
    let code = match error.kind() {
        WebhookErrorKind::Invalid => USAGE,
        WebhookErrorKind::NotFound => NOT_FOUND,
        WebhookErrorKind::TooMany | WebhookErrorKind::Conflict => CONFLICT,
        _ => 1,
    };
    Failure::with_code(code, error)
}

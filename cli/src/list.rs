use std::time::SystemTime;

use clap::Args;
use serde_json::json;
use tower_api_key::{
    record::{KeyId, KeyStatus, Scope},
    store::{EventPage, EventQuery, KeyPage, KeyQuery},
};

use super::{
    failure::Failure,
    follow::{Filter, follow},
    output, places,
    session::Session,
    values,
};

/// List keys, newest first
///
/// With --json the answer is {"keys": [...], "next": ...}, where `next` is an id for --after, or
/// null on the last page.
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Only keys of this consumer
    #[arg(long, value_name = "ID")]
    consumer: Option<String>,

    /// Only keys in this state: active, inactive, not_yet_active, expired, revoked
    #[arg(long, value_name = "STATE")]
    status: Option<KeyStatus>,

    /// Only keys with this scope
    #[arg(long, value_parser = values::scope)]
    scope: Option<Scope>,

    /// Only keys with this tag
    #[arg(long, value_parser = places::tag)]
    tag: Option<String>,

    /// Only keys with exactly this prefix
    #[arg(long)]
    prefix: Option<String>,

    /// Only keys issued, and last used if ever, before a date or a duration ago: 90d
    #[arg(long, value_name = "WHEN", value_parser = values::past)]
    unused_since: Option<SystemTime>,

    /// Only keys that expire before a date, or within a duration: 14d
    #[arg(long, value_name = "WHEN", value_parser = values::future)]
    expires_before: Option<SystemTime>,

    /// Start after this key, the `next` of an earlier page
    #[arg(long, value_name = "ID")]
    after: Option<KeyId>,

    /// The maximum number of keys, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// Show a key
#[derive(Args, Debug)]
pub(crate) struct Show {
    /// The id of the key
    id: KeyId,
}

/// Show the audit, newest first: who did what to which key or plan, when and why
///
/// A denied attempt is listed under the key that made it; CHANGES names its target. For changes
/// made in SQL, WHO is `sql:` and the database user.
///
/// With --json the answer is {"events": [...], "next": ...}, where `next` is a number for --after.
#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Only events of the key with this id [default: all keys]
    id: Option<KeyId>,

    /// Only events of keys of this consumer
    #[arg(long, value_name = "ID")]
    consumer: Option<String>,

    /// Start after this event, the `next` of an earlier page
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,

    /// The maximum number of events, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,

    /// Print the events that are written from now on, as they are written, until interrupted
    ///
    /// With --json each is one JSON object on a line of its own.
    #[arg(long, conflicts_with_all = ["after", "limit"])]
    follow: bool,
}

pub(crate) async fn keys(list: List, session: &Session) -> Result<(), Failure> {
    let page = pages(list.into_query(), session).await?;
    let next = page.next.map(|id| id.to_string());
    if session.global.json {
        let keys: Vec<_> = page.keys.iter().map(output::listed).collect();
        let mut answer = json!({ "keys": keys, "next": next });
        if !page.invalid.is_empty() {
            let invalid = page.invalid.iter().map(output::invalid).collect();
            output::set(&mut answer, "invalid", invalid);
        }
        return output::line(&answer.to_string());
    }
    output::warn_of_invalid(&page.invalid);
    let rows = page.keys.iter().map(|key| {
        let record = &key.record;
        vec![
            record.id.to_string(),
            record.consumer_id.clone(),
            record.name.clone().unwrap_or_else(|| "-".to_owned()),
            output::hint(record),
            record.status(record.read_at).as_str().to_owned(),
            output::scopes(&record.scopes),
            record.plan.clone().unwrap_or_else(|| "-".to_owned()),
            output::maybe_time(record.expires_at, "never"),
            output::maybe_time(key.last_used_at, "-"),
        ]
    });
    let headings =
        ["ID", "CONSUMER", "NAME", "KEY", "STATE", "SCOPES", "PLAN", "EXPIRES", "LAST USED"];
    output::line(&output::table(&headings, rows))?;
    if let Some(next) = next {
        output::note(&format!("more keys: --after {next}"));
    }
    Ok(())
}

/// Collects pages until the limit is reached: a store's page may be shorter than the limit.
async fn pages(mut query: KeyQuery, session: &Session) -> Result<KeyPage, Failure> {
    let issuer = session.issuer()?;
    let wanted = query.limit;
    let mut all = KeyPage::default();
    loop {
        query.limit = wanted.saturating_sub(all.keys.len() + all.invalid.len());
        let page = issuer.list(&query).await?;
        all.keys.extend(page.keys);
        all.invalid.extend(page.invalid);
        all.next = page.next;
        query.after = page.next;
        if page.next.is_none() || all.keys.len() + all.invalid.len() >= wanted {
            return Ok(all);
        }
    }
}

/// Collects pages until the limit is reached: a store's page may be shorter than the limit.
async fn event_pages(mut query: EventQuery, session: &Session) -> Result<EventPage, Failure> {
    let issuer = session.issuer()?;
    let wanted = query.limit;
    let mut all = EventPage::default();
    loop {
        query.limit = wanted.saturating_sub(all.events.len() + all.invalid.len());
        let page = issuer.events(&query).await?;
        all.events.extend(page.events);
        all.invalid.extend(page.invalid);
        all.next = page.next;
        query.after = page.next;
        if page.next.is_none() || all.events.len() + all.invalid.len() >= wanted {
            return Ok(all);
        }
    }
}

impl List {
    fn into_query(self) -> KeyQuery {
        let mut query = KeyQuery::new().limit(self.limit);
        query.consumer_id = self.consumer;
        query.status = self.status;
        query.scope = self.scope;
        query.tag = self.tag;
        query.key_prefix = self.prefix;
        query.unused_since = self.unused_since;
        query.expires_before = self.expires_before;
        query.after = self.after;
        query
    }
}

pub(crate) async fn key(show: Show, session: &Session) -> Result<(), Failure> {
    let key = session.issuer()?.get(show.id).await?;
    if session.global.json {
        return output::line(&output::listed(&key).to_string());
    }
    output::line(&output::details(&key))
}

pub(crate) async fn events(events: Events, session: &Session) -> Result<(), Failure> {
    if events.follow {
        let filter = Filter { id: events.id, consumer: events.consumer };
        return follow(&filter, session).await;
    }
    let mut query = EventQuery::new().limit(events.limit);
    query.key_id = events.id;
    query.consumer_id = events.consumer;
    query.after = events.after;
    let page = event_pages(query, session).await?;
    if session.global.json {
        let all: Vec<_> = page.events.iter().map(output::event).collect();
        let mut answer = json!({ "events": all, "next": page.next });
        if !page.invalid.is_empty() {
            let invalid = page.invalid.iter().map(output::invalid).collect();
            output::set(&mut answer, "invalid", invalid);
        }
        return output::line(&answer.to_string());
    }
    output::warn_of_invalid(&page.invalid);
    let rows = page.events.iter().map(|event| {
        let entry = &event.entry;
        let some = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            output::time(event.at),
            entry.action.to_string(),
            entry.key_id.map_or_else(|| "-".to_owned(), |id| id.to_string()),
            entry.actor.clone(),
            some(&entry.origin),
            some(&entry.reason),
            some(&entry.changes),
        ]
    });
    let headings = ["AT", "ACTION", "KEY", "WHO", "FROM", "WHY", "CHANGES"];
    output::line(&output::table(&headings, rows))?;
    if let Some(next) = page.next {
        output::note(&format!("more events: --after {next}"));
    }
    Ok(())
}

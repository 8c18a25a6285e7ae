//! Counted use of keys, and its export for billing systems.

use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args};
use serde_json::{Value, json};
use tower_api_key::{
    manage::{UsageExport, UsageReport},
    record::KeyId,
    store::{BucketWidth, UsageBucket, UsageCursor, UsageQuery},
};

use super::{failure::Failure, output, session::Session, values};

/// Show how often keys were used, by hour or by day
///
///   api-key usage 0190d4c0-0000-7000-8000-000000000000
///   api-key usage --consumer acme --by hour --from 2d --csv
///   api-key usage --export --from 2026-12-01 > usage.jsonl
///
/// Hours and days are those of UTC; those without use are left out. Nodes write what they counted
/// every few seconds, so the last bucket still grows. Hours are kept for 35 days, days for ever.
///
/// With --json the answer is {"id": ..., "buckets": [{"from", "admitted", "limited", "forbidden",
/// "refused", "units"}]}, with "consumer_id" in place of "id" for a consumer.
///
/// With --export it is one CloudEvents 1.0 event per key and hour, as JSON lines. The id of an event
/// is the same each time, so a receiver can drop what it has. Standard error says where the next
/// export begins.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
#[command(group = ArgGroup::new("whose").required(true))]
pub(crate) struct Usage {
    /// The id of the key
    #[arg(group = "whose")]
    id: Option<KeyId>,

    /// All keys of this consumer together
    #[arg(long, value_name = "ID", group = "whose")]
    consumer: Option<String>,

    /// All keys together
    #[arg(long, group = "whose")]
    all: bool,

    /// Each hour of each key that ended a while ago, for a billing system
    #[arg(long, group = "whose", requires = "from", conflicts_with_all = ["by", "csv"])]
    export: bool,

    /// hour or day
    #[arg(long, default_value = "day", hide_default_value = true, value_name = "WIDTH")]
    by: BucketWidth,

    /// From a date, or a duration ago: 7d [default: 24h by hour, 30d by day]
    #[arg(long, value_name = "WHEN", value_parser = values::past)]
    from: Option<SystemTime>,

    /// Up to a date, or a duration ago [default: now]
    #[arg(long, value_name = "WHEN", value_parser = values::past)]
    to: Option<SystemTime>,

    /// Answer with CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,

    /// --export: the source of the events, a URI of the system that counted
    #[arg(long, value_name = "URI", default_value = "tower-api-key", requires = "export")]
    #[arg(value_parser = values::text)]
    source: String,

    /// --export: how long ago an hour must have ended; more than two usage intervals of the services
    #[arg(long, value_name = "DURATION", default_value = "15m", requires = "export")]
    #[arg(value_parser = values::duration)]
    settled_after: Duration,
}

pub(crate) async fn run(usage: Usage, session: &Session) -> Result<(), Failure> {
    if usage.export {
        return export(&usage, session).await;
    }
    let mut query = UsageQuery::until(usage.to.unwrap_or_else(values::now), usage.by);
    query.key_id = usage.id;
    query.consumer_id = usage.consumer;
    query.from = usage.from.unwrap_or(query.from);
    let report = session.issuer()?.usage(&query).await?;
    if session.global.json {
        let buckets: Vec<_> = report.buckets.iter().map(bucket).collect();
        let mut answer = json!({ "buckets": buckets });
        if let Some(id) = query.key_id {
            output::set(&mut answer, "id", id.to_string().into());
        }
        if let Some(consumer_id) = query.consumer_id {
            output::set(&mut answer, "consumer_id", consumer_id.into());
        }
        return output::line(&answer.to_string());
    }
    if usage.csv { csv(&report) } else { table(&report) }
}

fn bucket(bucket: &UsageBucket) -> Value {
    let counts = bucket.counts;
    json!({
        "from": output::exact(bucket.from),
        "admitted": counts.admitted,
        "limited": counts.limited,
        "forbidden": counts.forbidden,
        "refused": counts.refused,
        "units": counts.units,
    })
}

fn csv(report: &UsageReport) -> Result<(), Failure> {
    let mut lines = vec!["from,admitted,limited,forbidden,refused,units".to_owned()];
    lines.extend(report.buckets.iter().map(|bucket| {
        let row = row(output::exact(bucket.from), bucket);
        row.join(",")
    }));
    output::line(&lines.join("\n"))
}

fn table(report: &UsageReport) -> Result<(), Failure> {
    let total = UsageBucket::new(report.from, report.total());
    let rows = report.buckets.iter().map(|bucket| row(output::time(bucket.from), bucket));
    let rows = rows.chain([row("total".to_owned(), &total)]);
    let headings = ["FROM", "ADMITTED", "LIMITED", "FORBIDDEN", "REFUSED", "UNITS"];
    output::line(&output::table(&headings, rows))
}

fn row(from: String, bucket: &UsageBucket) -> Vec<String> {
    let counts = bucket.counts;
    let counts = [counts.admitted, counts.limited, counts.forbidden, counts.refused, counts.units];
    [from].into_iter().chain(counts.map(|count| count.to_string())).collect()
}

/// Writes page by page, so that memory is bounded.
async fn export(usage: &Usage, session: &Session) -> Result<(), Failure> {
    let issuer = session.issuer()?;
    let from = usage.from.unwrap_or(SystemTime::UNIX_EPOCH);
    let begin = UsageCursor::at(BucketWidth::Hour.start(from));
    let mut export = UsageExport::after(begin).settled_after(usage.settled_after);
    export.to = usage.to;
    loop {
        let page = issuer.export_usage(&export).await?;
        let lines: Vec<_> =
            page.hours.iter().map(|hour| hour.to_cloud_event(&usage.source)).collect();
        if !lines.is_empty() {
            output::line(&lines.join("\n"))?;
        }
        export.after = page.next;
        if page.is_last {
            break;
        }
    }
    output::note(&format!("next export: --from {}", export.after));
    Ok(())
}

use std::process::ExitCode;

use anstyle::AnsiColor;
use clap::Args;
use serde_json::json;
use tower_api_key::store::{Finding, Severity};

use super::{
    failure::{Failure, UNHEALTHY},
    global::Global,
    output,
    session::Store,
};

/// Diagnose the database and say how to fix it
///
/// Performs the operations of a service, in transactions that are rolled back, and checks the
/// tables, their triggers and indexes, the rights of this role and of others, row-level security,
/// the search path, the clocks, the delivery of notifications, the effects of a connection pooler,
/// and whether connections to another machine are in plain text. It changes nothing.
/// Exit code 6 means a problem: keys are not accepted, or changes to them go unnoticed. Warnings
/// alone exit with 0: keys are accepted, but something else does not work.
#[derive(Args, Debug)]
pub(crate) struct Doctor {}

pub(crate) async fn run(_: &Doctor, global: &Global) -> Result<ExitCode, Failure> {
    let store = Store::connect(global, false).await?;
    let findings = store.diagnose().await;
    let healthy = findings.iter().all(|finding| finding.severity != Severity::Problem);
    if global.json {
        let findings: Vec<_> = findings.iter().map(as_json).collect();
        output::line(&json!({ "healthy": healthy, "findings": findings }).to_string())?;
    } else {
        for finding in &findings {
            output::line(&as_text(finding))?;
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(UNHEALTHY) })
}

fn as_json(finding: &Finding) -> serde_json::Value {
    json!({
        "check": finding.check,
        "severity": finding.severity.as_str(),
        "detail": finding.detail,
        "advice": finding.advice,
    })
}

fn as_text(finding: &Finding) -> String {
    let colour = match finding.severity {
        Severity::Ok => AnsiColor::Green,
        Severity::Warning => AnsiColor::Yellow,
        _ => AnsiColor::Red,
    };
    let severity = output::painted(finding.severity.as_str(), colour.on_default().bold());
    let mut text = format!("{severity}: {}: {}", finding.check, finding.detail);
    if let Some(advice) = &finding.advice {
        text = format!("{text}\n    {advice}");
    }
    text
}

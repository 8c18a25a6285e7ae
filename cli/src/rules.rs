//! `api-key rules`: rule files for other scanners.

use std::{fmt::Write as _, process::ExitCode};

use clap::{Args, ValueEnum};
use serde_json::json;
use tower_api_key::key::KeyFormat;

use super::{failure::Failure, output, values};

/// Print rules by which another scanner finds the keys
///
///   api-key rules gitleaks --prefix sk_live_ > .gitleaks.toml
///   api-key rules trufflehog --prefix sk_live_ > trufflehog.yml
///   api-key rules semgrep --prefix sk_live_ > semgrep.yml
///   api-key rules github --prefix sk_live_
///
/// The rules match prefix, length and characters. Only `api-key scan` also computes the checksum.
///
/// Those of gitleaks add to its own rules. GitHub has no file for patterns: enter the members of the
/// JSON under Settings, Advanced Security, Custom patterns.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Rules {
    /// The scanner
    scanner: Scanner,

    /// The prefix of the keys, such as sk_live_; may be repeated
    #[arg(long = "prefix", value_name = "PREFIX", env = "API_KEY_PREFIX", required = true,
        value_parser = values::prefix)]
    formats: Vec<KeyFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scanner {
    Gitleaks,
    Trufflehog,
    Semgrep,
    Github,
}

pub(crate) fn run(rules: &Rules) -> Result<ExitCode, Failure> {
    let formats = &rules.formats;
    let text = match rules.scanner {
        Scanner::Gitleaks => gitleaks(formats),
        Scanner::Trufflehog => trufflehog(formats),
        Scanner::Semgrep => semgrep(formats),
        Scanner::Github => github(formats),
    };
    output::line(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Prefixes and expressions have no quote, so none is escaped in what follows.
fn gitleaks(formats: &[KeyFormat]) -> String {
    let mut file = "[extend]\nuseDefault = true\n".to_owned();
    for format in formats {
        let (id, prefix) = (id(format), format.prefix());
        let _ = write!(
            file,
            "\n[[rules]]\n\
            id = \"{id}\"\n\
            description = \"API key with the prefix {prefix}\"\n\
            regex = '''{}'''\n\
            keywords = [\"{}\"]\n",
            format.regex(),
            prefix.to_ascii_lowercase(),
        );
    }
    file
}

fn trufflehog(formats: &[KeyFormat]) -> String {
    let mut file = "detectors:\n".to_owned();
    for format in formats {
        // The group is what it reports.
        let _ = write!(
            file,
            "  - name: {}\n    keywords: ['{}']\n    regex:\n      key: '({})'\n",
            id(format),
            format.prefix(),
            format.regex(),
        );
    }
    file
}

fn semgrep(formats: &[KeyFormat]) -> String {
    let mut file = "rules:\n".to_owned();
    for format in formats {
        let _ = write!(
            file,
            "  - id: {}\n    \
            languages: [regex]\n    \
            severity: ERROR\n    \
            message: API key with the prefix {}. Revoke it, and read it from the environment.\n    \
            pattern-regex: '{}'\n",
            id(format),
            format.prefix(),
            format.regex(),
        );
    }
    file
}

/// The fields of the form. What stands around a key is as in the form's defaults.
fn github(formats: &[KeyFormat]) -> String {
    let patterns = formats.iter().map(|format| {
        json!({
            "name": format!("API key {}", format.prefix()),
            "secret_format": format.regex().replace(r"\b", ""),
            "before_secret": r"\A|[^0-9A-Za-z]",
            "after_secret": r"\z|[^0-9A-Za-z]",
        })
    });
    format!("{:#}", json!(patterns.collect::<Vec<_>>()))
}

/// `sk-live-api-key`, for the prefix `sk_live_`.
fn id(format: &KeyFormat) -> String {
    format!("{}api-key", format.prefix().replace('_', "-").to_ascii_lowercase())
}

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    net::IpAddr,
    process::ExitCode,
    str::FromStr,
};

use clap::Args;
use serde_json::{Value, json};
use tower_api_key::{
    Authenticator,
    auth::{Rejection, RejectionKind},
    key::{ImportedFormat, InvalidFormat, KeyFormat},
    record::Scope,
};

use super::{
    failure::{Failure, REJECTED},
    output,
    session::Session,
    values,
};

/// Tell whether a key is accepted, and if not, why
///
/// The key is read from standard input, to keep it out of process lists and the shell's history:
///
///   api-key verify < acme.key
///
/// It is checked by the same code as in a service, but its use is not recorded, and its remaining
/// quota is known only to the services. The formats that a service accepts are not in the database:
/// name them with --key-prefix and --accept. Exit code 5 means that the key is rejected.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Verify {
    /// A scope that the key must have; may be repeated, or several separated by commas
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<Scope>,

    /// The address of the client, for a key with networks
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,

    /// The Origin header of the request, for a publishable key
    #[arg(long)]
    origin: Option<String>,

    /// A prefix of the service's keys; may be repeated
    #[arg(long = "key-prefix", value_name = "PREFIX", env = "API_KEY_PREFIX",
        default_value = "sk_live_", value_parser = values::format)]
    formats: Vec<KeyFormat>,

    /// A format of imported keys that the service accepts: hex:64, base64url:43, alnum:40, uuid,
    /// sanctum, with a prefix as in hex:64:old-, with an id as in alnum:32,id=alnum:8:.; may be
    /// repeated
    #[arg(long = "accept", value_name = "FORMAT")]
    imported: Vec<Imported>,
}

/// A format of imported keys, and how it was written.
#[derive(Clone, Debug)]
struct Imported {
    format: ImportedFormat,
    text: String,
}

impl FromStr for Imported {
    type Err = InvalidFormat;

    fn from_str(text: &str) -> Result<Self, InvalidFormat> {
        Ok(Self { format: text.parse()?, text: text.to_owned() })
    }
}

/// Longer than any key.
const MAX_LEN: usize = 4096;

pub(crate) async fn run(verify: Verify, session: &Session) -> Result<ExitCode, Failure> {
    let key = read_key()?;
    let key = secrecy::ExposeSecret::expose_secret(&key).trim_ascii();
    let prefixes = verify.formats.iter().map(|format| format.prefix().to_owned());
    let imported = verify.imported.iter().map(|imported| imported.text.clone());
    let accepted: Vec<_> = prefixes.chain(imported).collect();
    let mut formats = verify.formats.into_iter();
    let first = formats.next().ok_or_else(|| Failure::usage("--key-prefix: give one"))?;
    let mut builder = Authenticator::builder(session.store.clone(), first);
    for format in formats {
        builder = builder.accept(format);
    }
    for imported in verify.imported {
        builder = builder.accept(imported.format);
    }
    // The worker, which would record the use, is not run.
    let (auth, _) = builder.build();
    let mut check = auth.check(key);
    if let Some(address) = verify.address {
        check = check.address(address);
    }
    if let Some(origin) = &verify.origin {
        check = check.origin(origin.as_bytes());
    }
    let admission = match check.await {
        Ok(admission) => admission,
        Err(rejection) => return rejected(&rejection, key, accepted, session),
    };
    let consumer = admission.consumer();
    let lacking: Vec<_> =
        verify.scopes.iter().filter(|scope| !consumer.has_scope(scope.as_str())).collect();
    let found = session.issuer()?.get(consumer.key_id()).await?;
    let verdict = Verdict {
        admitted: lacking.is_empty(),
        reason: (!lacking.is_empty()).then_some("insufficient_scope"),
        status: if lacking.is_empty() { 200 } else { 403 },
        accepted,
    };
    if session.global.json {
        let mut answer = verdict.json();
        output::set(&mut answer, "record", output::listed(&found));
        output::line(&answer.to_string())?;
    } else {
        match lacking.first() {
            None => {
                let by = verdict.accepted.join(", ");
                let by = format!("the key is accepted by a service whose formats are {by}");
                output::line(&verdict.headline(&by))?;
            }
            Some(scope) => {
                let why = format!("the key is rejected with 403: it lacks the scope {scope}");
                output::line(&verdict.headline(&why))?;
            }
        }
        output::line(&output::details(&found))?;
    }
    Ok(verdict.exit_code())
}

fn rejected(
    rejection: &Rejection,
    key: &[u8],
    accepted: Vec<String>,
    session: &Session,
) -> Result<ExitCode, Failure> {
    let (reason, status) = match rejection.kind() {
        RejectionKind::Malformed => ("malformed", 401),
        RejectionKind::Unknown => ("unknown", 401),
        RejectionKind::Revoked => ("revoked", 401),
        RejectionKind::Expired => ("expired", 401),
        RejectionKind::Inactive => ("inactive", 401),
        RejectionKind::NotYetActive => ("not_yet_active", 401),
        RejectionKind::NetworkNotAllowed => ("network_not_allowed", 403),
        RejectionKind::OriginNotAllowed => ("origin_not_allowed", 403),
        // The look-up failed, which says nothing about the key.
        _ => return Err(Failure::new("the key could not be looked up").because(rejection)),
    };
    let verdict = Verdict { admitted: false, reason: Some(reason), status, accepted };
    let key_id = rejection.key_id().map(|id| id.to_string());
    // A key of a format that is accepted is not malformed.
    let other_prefix = if reason == "malformed" { prefix_of(key) } else { None };
    if session.global.json {
        let mut answer = verdict.json();
        output::set(&mut answer, "key_id", json!(key_id));
        output::set(&mut answer, "key_prefix", json!(other_prefix));
        output::line(&answer.to_string())?;
    } else {
        let which = key_id.map_or_else(String::new, |id| format!(" ({id})"));
        let mut why = format!("the key is rejected with {status}: {rejection}{which}");
        if let Some(prefix) = other_prefix {
            why += &format!(
                "; it is a key with the prefix {prefix}, and the formats checked are {}: if the \
                service accepts it, give --key-prefix {prefix}",
                verdict.accepted.join(", ")
            );
        }
        match rejection.kind() {
            RejectionKind::NetworkNotAllowed => why += "; give the client's address by --address",
            RejectionKind::OriginNotAllowed => why += "; give the request's origin by --origin",
            _ => {}
        }
        output::line(&verdict.headline(&why))?;
    }
    Ok(verdict.exit_code())
}

/// The prefix of a well-formed key, whatever it is. The checksum must be right: otherwise, what
/// looks like a prefix could be a part of a secret.
fn prefix_of(key: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(key).ok()?;
    let ends = text.match_indices('_').map(|(at, _)| at);
    let mut formats = ends.filter_map(|at| KeyFormat::new(text.get(..=at)?).ok());
    let format = formats.find(|format| format.parse(key).is_ok())?;
    Some(format.prefix().to_owned())
}

struct Verdict {
    admitted: bool,
    reason: Option<&'static str>,
    /// The HTTP status with which the layer answers.
    status: u16,
    /// The formats that the key was checked against.
    accepted: Vec<String>,
}

impl Verdict {
    fn json(&self) -> Value {
        json!({
            "admitted": self.admitted,
            "reason": self.reason,
            "http_status": self.status,
            "accepted_formats": self.accepted,
        })
    }

    fn headline(&self, text: &str) -> String {
        let colour =
            if self.admitted { anstyle::AnsiColor::Green } else { anstyle::AnsiColor::Red };
        output::painted(text, colour.on_default())
    }

    fn exit_code(&self) -> ExitCode {
        if self.admitted { ExitCode::SUCCESS } else { ExitCode::from(REJECTED) }
    }
}

fn read_key() -> Result<secrecy::SecretSlice<u8>, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let _ = write!(io::stderr(), "Enter the key, then Control-D: ");
    }
    let mut key = Vec::with_capacity(MAX_LEN);
    let read = stdin.lock().take(MAX_LEN as u64).read_to_end(&mut key);
    let key = secrecy::SecretSlice::from(key);
    read.map_err(|error| Failure::new("standard input").because(&error))?;
    if secrecy::ExposeSecret::expose_secret(&key).trim_ascii().is_empty() {
        return Err(Failure::usage("no key on standard input: run `api-key verify < FILE`"));
    }
    Ok(key)
}

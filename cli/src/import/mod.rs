mod csv;
mod fields;
mod formats;
mod input;
mod json_lines;
mod key;
mod limits;
mod report;
mod row;
mod run;
mod source;

use clap::Args;
use tower_api_key::{
    key::AcceptedFormat,
    manage::{Expiry, KeyImport},
};

use self::{
    fields::{Mapping, Renaming},
    formats::Formats,
    key::Settings,
    limits::Window,
    report::Report,
    run::Run,
    source::{Format, Source},
};
use super::{
    failure::Failure, issue::Description, output, policy::Policy, session::Session, values,
};

/// Import keys that were issued elsewhere, by their hashes or as they are
///
/// Their owners can keep using them unchanged. The file has one JSON object per line:
///
///   {"hash": "9f86d0…", "consumer_id": "acme", "expires": "90d", "scopes": ["orders:read"]}
///
///   hash         SHA-256 of the whole key, in hex or base64; with --accept, the digest of the
///                format, of the part of the key that the format hashes
///   verifier     in place of `hash`: bcrypt ($2b$10$…), Argon2, scrypt or PBKDF2, replaced by SHA-256
///                when the key is first used; with `hint`, the part of the key that it is found by
///   key          with --plaintext, in place of `hash`: the key itself, which is hashed at once
///   consumer_id  the consumer that the key belongs to
///   expires      "never", "2026-12-31", "90d"; a key may have expired already
///
/// Optional; null counts as left out:
///
///   id            a UUID becomes the id of the key, another id "old_id" in its metadata
///   is_active     a key whose is_active is false is rejected until it is activated
///   revoked_at    the key is revoked for good; also "revoked": true, without a time
///   rate_limits   "1000/hour", "1000 per hour", "unlimited", a list of such limits or as printed
///                 by `show --json`, or a number with rate_limit_window ("hour", or seconds),
///                 rate_limit_window_ms or --rate-limit-window
///   created_at, last_used_at
///   name, scopes, plan, metadata, networks, tags, kind, origins, not_before, created_by, prefix,
///   last4
///
/// Times are also read as databases print them: 2026-01-02 03:04:05.678+00, 2026-01-02 03:04:05
/// (UTC), or seconds or milliseconds since 1970.
///
/// A file that ends in .csv has a header with these names. Lists are separated by commas or spaces
/// there, and booleans may be t, f, 1 or 0. Columns with other names are mapped:
///
///   api-key import keys.csv --expires never --rate-limit-window hour --map key_hash=hash \
///     --map user_id=consumer_id --map last_used=last_used_at --map rate_limit=rate_limits
///
/// The file is read as a stream and stored in batches of 1,000 keys, one transaction each. Known
/// keys are counted and left unchanged: run an interrupted import again from the start.
///
/// Services must accept the format of such keys: see Builder::accept of the library, and for
/// verifiers Builder::legacy_hashes. Name the format with --accept, and a key that they would refuse
/// is not imported.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Import {
    /// The file, or - for standard input
    #[arg(required_unless_present = "hash", conflicts_with_all = ["hash", "description"])]
    file: Option<String>,

    /// The format of the file [default: csv if its name ends in .csv, otherwise jsonl]
    #[arg(long, value_enum, conflicts_with = "hash", hide_possible_values = false)]
    format: Option<Format>,

    /// What a field or column of another name is: user_id=consumer_id, tier=metadata.tier to keep
    /// it as data of the application, email=- to leave it out; may be repeated
    #[arg(long = "map", value_name = "THEIRS=OURS", value_parser = Renaming::parse,
        conflicts_with = "hash")]
    renamings: Vec<Renaming>,

    /// The file has the keys themselves, in the field `key`: they are hashed at once and not kept
    #[arg(long, conflicts_with = "hash")]
    plaintext: bool,

    /// Store nothing: report how many keys would be imported, how many are known, and what is wrong
    /// with which lines, of which the first 20 are told. Exit code 2 if any is invalid
    ///
    /// A key that the file has twice, in different batches, counts twice.
    #[arg(long, conflicts_with = "hash")]
    dry_run: bool,

    /// Report invalid lines and go on [default: stop at the first one]
    #[arg(long, conflicts_with = "hash")]
    skip_invalid: bool,

    /// The window of limits that are only a number: second, minute, hour, day, 90s, 10m
    #[arg(long, value_name = "WINDOW", value_parser = Window::parse, conflicts_with = "hash")]
    rate_limit_window: Option<Window>,

    /// Import one key: its SHA-256, in hex or base64
    #[arg(long, value_name = "SHA256", requires = "consumer", requires = "expires")]
    hash: Option<String>,

    /// A format that the service accepts, as of `verify --accept`, or a prefix of issued keys; may
    /// be repeated. A key whose prefix and last4 no such key has is refused
    #[arg(long = "accept", value_name = "FORMAT")]
    accept: Vec<AcceptedFormat>,

    /// The consumer of the one key
    #[arg(long, value_name = "ID", requires = "hash")]
    consumer: Option<String>,

    /// When the one key stops working, or keys whose lines do not say: 30d, 2026-12-31, "never"
    #[arg(long, value_name = "WHEN", value_parser = values::new_expiry)]
    expires: Option<Expiry>,

    /// The prefix of the one key, or of the keys of the file, for display; with --plaintext, only of
    /// those that begin with it
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,

    /// The last four characters of the one key, for display
    #[arg(long, requires = "hash", default_value = "", hide_default_value = true)]
    last4: String,

    #[command(flatten)]
    what: Description,

    /// The reason, for the audit
    #[arg(long)]
    reason: Option<String>,

    #[command(flatten)]
    policy: Policy,
}

pub(crate) async fn run(import: Import, session: &Session) -> Result<(), Failure> {
    let issuer = import.policy.apply(session.issuer()?)?;
    let formats = Formats(import.accept);
    let report = match (&import.file, import.hash, import.consumer, import.expires) {
        (None, Some(hash), Some(consumer), Some(expiry)) => {
            let hash = formats.stored_hash(&hash, &import.prefix, &import.last4);
            let hash = hash.map_err(|problem| Failure::usage(format!("--{}", problem.text())))?;
            let new = import.what.into_key(consumer, expiry, import.reason)?;
            let key = KeyImport::new(hash, new).hint(import.prefix, import.last4);
            let imported = issuer.import(vec![key]).await?;
            let mut report = Report::default();
            (report.imported, report.known) = (imported.keys.len() as u64, imported.known);
            report
        }
        (Some(file), ..) => {
            let format = import.format.unwrap_or_else(|| Format::of(file));
            let source = Source::open(file, format, Mapping::new(import.renamings))?;
            let settings = Settings {
                formats,
                plaintext: import.plaintext,
                expiry: import.expires,
                prefix: import.prefix,
                window: import.rate_limit_window,
                reason: import.reason,
            };
            let skip_invalid = import.skip_invalid || import.dry_run;
            let report = if import.dry_run { Report::trial() } else { Report::default() };
            Run { issuer, settings, skip_invalid, report }.all(source).await?
        }
        // clap rejects all other combinations.
        _ => return Err(Failure::usage("name a file, or give --hash, --consumer and --expires")),
    };
    if session.global.json {
        output::line(&report.json().to_string())?;
    } else {
        output::note(&report.text());
    }
    if report.is_trial && report.invalid() > 0 {
        return Err(Failure::usage(report.summary()));
    }
    Ok(())
}

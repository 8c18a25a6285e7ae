//! No public type prints a secret, by any trait.
//!
//! The types are those that the sources declare as `pub`: the compiler's lint `unreachable_pub`
//! warns of any that is not reachable from outside, and warnings fail the build.

use std::{
    any::type_name,
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::Write as _,
    ops::ControlFlow,
    path::Path,
    sync::Mutex,
};

use axum::{body::Body, extract::FromRequestParts as _};
use proc_macro2::{TokenStream, TokenTree};
use serde::Serialize;
use tower::{Layer as _, Service as _, ServiceExt as _};
use tower_api_key::{
    ApiKeyLayer, ApiKeys, Authenticator, Consumer, RequireScope, account,
    admin::{self, Admin},
    auth::{Attempt, Event},
    clock::{Clock as _, SystemClock},
    key::{
        AcceptedFormat, Alphabet, Digest, ImportedFormat, KeyFinder, KeyFormat, KeyHash, KeyMask,
        LegacyHash, MaskingWriter, Pepper, RngError, SigningSecret,
    },
    layer::{
        ClientAddress, ConcurrencyLimit, Cost, DrainRejected, Granted, RateClass, Scheme,
        UntilKeyEnds, UntilKeyEndsLayer,
    },
    leaks::{GitHubPublicKeys, Leaks, PublicKeySet},
    manage::{
        Actor, Expiry, KeyImport, KeyIssuer, KeyUpdate, LeakPolicy, LeakReport, NewKey, Rotation,
    },
    rate_limit::{LocalRateLimiter, Plans, Quota, RateLimits, RedisRateLimiter, port::Subject},
    record::{
        EventFilter, KeyAction, KeyId, KeyKind, KeyStatus, Metadata, Network, Scope, Tags,
        WebOrigins, WebhookId,
    },
    store::{
        BucketWidth, EventQuery, KeyQuery, KeyStore as _, ManageKeys as _, PgKeyStore,
        PollingChangeFeed, SqliteKeyStore, UsageCursor, UsageQuery,
        port::{LegacyKey, Usage},
    },
    test_util::{
        TestKeys,
        contract::{self, Violation},
    },
    webhooks::Webhooks,
};

use super::{Leaky, leaks};
use crate::{
    app::{Handler, Keys, format, text, unknown_key, with_key},
    raw_store::ByHand as _,
    servers::postgres::Server,
};

/// The password of databases and Redis.
const PASSWORD: &str = "hunter2canary";

/// What each public type may print, sorted by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// A key, its hash, a password, or a text that may be one of them by mistake: printed as a
    /// test.
    ASecret,
    /// No text or bytes from outside.
    NoText,
    /// Names chosen by the application's code or its operators.
    Names,
    /// Ids of keys, which are not secret, and positions.
    Ids,
}

use Holds::{ASecret, Ids, Names, NoText};

const REGISTER: &[(&str, Holds)] = &[
    ("AcceptedFormat", ASecret),
    ("Account", ASecret),
    ("ActingAsService", ASecret),
    ("Actor", ASecret),
    ("Admin", ASecret),
    ("Admission", ASecret),
    ("Algorithm", NoText),
    ("Alphabet", NoText),
    ("ApiKey", ASecret),
    ("ApiKeyLayer", ASecret),
    ("ApiKeySecurity", Names),
    ("ApiKeyService", ASecret),
    ("ApiKeys", ASecret),
    ("ApiKeysBuilder", ASecret),
    ("Attempt", ASecret),
    ("AuditEntry", ASecret),
    ("AuditFrontier", NoText),
    ("AuditHistory", Names),
    ("AuditLine", Names),
    ("AuditTail", Ids),
    ("Authenticator", ASecret),
    ("BucketWidth", NoText),
    ("Builder", ASecret),
    ("CachePolicy", NoText),
    ("CatalogScope", Names),
    ("Change", Ids),
    ("ChangedKey", Ids),
    ("Changes", Ids),
    ("CharacterSet", NoText),
    ("Check", NoText),
    ("CheckFuture", ASecret),
    ("ClientAddress", ASecret),
    ("ClientNetwork", NoText),
    ("ConcurrencyLimit", ASecret),
    ("ConcurrencyLimitBody", ASecret),
    ("ConcurrencyLimitFuture", ASecret),
    ("ConcurrencyLimitService", ASecret),
    ("Consumer", ASecret),
    ("ConsumerBuilder", ASecret),
    ("ConsumerIds", Names),
    ("ConsumerRejection", ASecret),
    ("Cost", NoText),
    ("CountedPer", NoText),
    ("CountedUses", Names),
    ("Decision", NoText),
    ("Decisions", NoText),
    ("DeclaredScope", Names),
    ("Digest", ASecret),
    ("DrainRejected", NoText),
    ("DrainRejectedBody", ASecret),
    ("DrainRejectedFuture", ASecret),
    ("DrainRejectedService", ASecret),
    ("Event", ASecret),
    ("EventFilter", Names),
    ("EventPage", ASecret),
    ("EventQuery", ASecret),
    ("Expiry", NoText),
    ("FaultStore", ASecret),
    ("FeedHealth", NoText),
    ("Finding", ASecret),
    ("FoundKey", ASecret),
    ("GitHubPublicKeys", ASecret),
    ("Grant", Names),
    ("Granted", ASecret),
    ("GuardedRoutes", ASecret),
    ("Health", NoText),
    ("HourlyUse", Names),
    ("IdPart", Names),
    ("IdempotencyRecord", Ids),
    ("Imported", ASecret),
    ("ImportedFormat", ASecret),
    ("InvalidAction", ASecret),
    ("InvalidBucketWidth", ASecret),
    ("InvalidCachePolicy", NoText),
    ("InvalidCatalog", Names),
    ("InvalidDigest", ASecret),
    ("InvalidExpiry", ASecret),
    ("InvalidFormat", ASecret),
    ("InvalidHash", ASecret),
    ("InvalidKeyId", ASecret),
    ("InvalidKeyKind", ASecret),
    ("InvalidLegacyHash", ASecret),
    ("InvalidMetadata", ASecret),
    ("InvalidNetwork", ASecret),
    ("InvalidOrigin", NoText),
    ("InvalidPlan", ASecret),
    ("InvalidPolicy", Names),
    ("InvalidQuota", ASecret),
    ("InvalidRealm", ASecret),
    ("InvalidRedisRateLimiter", ASecret),
    ("InvalidRow", ASecret),
    ("InvalidScheme", ASecret),
    ("InvalidScope", ASecret),
    ("InvalidSigningSecret", NoText),
    ("InvalidStatus", ASecret),
    ("InvalidTag", ASecret),
    ("InvalidUsageCursor", ASecret),
    ("InvalidWebOrigin", ASecret),
    ("InvalidWebhook", ASecret),
    ("IssueKey", ASecret),
    ("IssuePolicy", Names),
    ("IssueRules", Names),
    ("Issued", ASecret),
    ("KeyAction", NoText),
    ("KeyCheck", ASecret),
    ("KeyCountQuery", Names),
    ("KeyCounts", NoText),
    ("KeyEnded", ASecret),
    ("KeyEndedError", NoText),
    ("KeyEvent", ASecret),
    ("KeyFilter", Names),
    ("KeyFinder", ASecret),
    ("KeyFormat", ASecret),
    ("KeyHash", ASecret),
    ("KeyId", Ids),
    ("KeyImport", ASecret),
    ("KeyIssuer", ASecret),
    ("KeyKind", NoText),
    ("KeyMask", ASecret),
    ("KeyPage", ASecret),
    ("KeyQuery", ASecret),
    ("KeyRecord", ASecret),
    ("KeyStatus", NoText),
    ("KeyUpdate", ASecret),
    ("KeyView", ASecret),
    ("LeakOutcome", NoText),
    ("LeakPolicy", Names),
    ("LeakReport", ASecret),
    ("LeakResponse", NoText),
    ("Leaks", ASecret),
    ("Leases", NoText),
    ("LegacyHash", ASecret),
    ("LegacyKey", ASecret),
    ("LimiterHealth", NoText),
    ("ListedKey", ASecret),
    ("LoadOutcome", NoText),
    ("LocalRateLimiter", ASecret),
    ("LogPosition", Ids),
    ("MalformedKey", ASecret),
    ("ManageError", ASecret),
    ("ManageErrorKind", NoText),
    ("ManualClock", NoText),
    ("MaskingWriter", ASecret),
    ("Member", Names),
    ("MemoryKeyStore", ASecret),
    ("MemoryTransaction", ASecret),
    ("Metadata", Names),
    ("MeteredFuture", ASecret),
    ("MeteredLayer", ASecret),
    ("MeteredService", ASecret),
    ("Network", NoText),
    ("Networks", NoText),
    ("NeverExpires", NoText),
    ("NewKey", ASecret),
    ("Notice", NoText),
    ("OutagePolicy", NoText),
    ("PeerAddr", NoText),
    ("PendingAttempt", ASecret),
    ("Pepper", ASecret),
    ("PgChangeFeed", ASecret),
    ("PgKeyStore", ASecret),
    ("PgKeyStoreBuilder", ASecret),
    ("PgTransaction", ASecret),
    ("Plans", Names),
    ("PollingChangeFeed", ASecret),
    ("PresentedKey", ASecret),
    ("ProblemJson", NoText),
    ("Pruned", NoText),
    ("PublicKey", NoText),
    ("PublicKeySet", Names),
    ("PublicKeysError", ASecret),
    ("PublicKeysErrorKind", NoText),
    ("Quota", Names),
    ("RateClass", ASecret),
    ("RateLimitHeaders", NoText),
    ("RateLimitStatus", ASecret),
    ("RateLimits", Names),
    ("ReconcileOutcome", NoText),
    ("ReconciledKey", Ids),
    ("RedisRateLimiter", ASecret),
    ("RedisRateLimiterBuilder", ASecret),
    ("Rejection", ASecret),
    ("RejectionKind", NoText),
    ("Replica", Ids),
    ("RequireScope", ASecret),
    ("RequireScopeFuture", ASecret),
    ("RequireScopeService", ASecret),
    ("ResponseFuture", ASecret),
    ("Retirement", NoText),
    ("RevocationFilter", Names),
    ("Revocations", NoText),
    ("RngError", ASecret),
    ("Rotated", ASecret),
    ("Rotation", ASecret),
    ("Scheme", Names),
    ("Scope", Names),
    ("ScopeCatalog", Names),
    ("Scopes", Names),
    ("Severity", NoText),
    ("SignedIn", Names),
    ("SigningSecret", ASecret),
    ("SqliteKeyStore", ASecret),
    ("SqliteTransaction", ASecret),
    ("Staleness", NoText),
    ("StartError", ASecret),
    ("StartErrorKind", NoText),
    ("StatusOnly", NoText),
    ("StoreError", ASecret),
    ("StoreErrorKind", NoText),
    ("StoreHealth", NoText),
    ("Subject", ASecret),
    ("SystemClock", NoText),
    ("SystemEntropy", NoText),
    ("Tags", Names),
    ("TestKey", ASecret),
    ("TestKeys", ASecret),
    ("TextRule", NoText),
    ("UnknownScope", Names),
    ("UntilKeyEnds", ASecret),
    ("UntilKeyEndsFuture", ASecret),
    ("UntilKeyEndsLayer", ASecret),
    ("UntilKeyEndsService", ASecret),
    ("Usage", ASecret),
    ("UsageBatch", Names),
    ("UsageBucket", NoText),
    ("UsageCursor", Ids),
    ("UsageExport", Ids),
    ("UsageExportPage", Names),
    ("UsageQuery", ASecret),
    ("UsageReport", NoText),
    ("UseCounts", NoText),
    ("VerificationOutcome", NoText),
    ("Violation", ASecret),
    ("Violations", ASecret),
    ("WebOrigins", Names),
    ("WebhookEndpoint", ASecret),
    ("WebhookError", ASecret),
    ("WebhookErrorKind", NoText),
    ("WebhookId", Ids),
    ("WebhookState", NoText),
    ("WebhookTest", Names),
    ("WebhookWorker", NoText),
    ("Webhooks", NoText),
    ("Worker", ASecret),
];

/// The names after `pub struct`, `pub enum` and `pub union` in `tokens`, including macros.
fn declared(tokens: TokenStream, names: &mut Vec<String>) {
    let mut last = [const { String::new() }; 2];
    for token in tokens {
        let word = match token {
            TokenTree::Group(group) => {
                declared(group.stream(), names);
                String::new()
            }
            token => token.to_string(),
        };
        if last[0] == "pub" && ["struct", "enum", "union"].contains(&last[1].as_str()) {
            // Not the types that a macro makes in the application.
            if word != "$" {
                names.push(word.clone());
            }
        }
        last = [std::mem::take(&mut last[1]), word];
    }
}

fn declared_in(folder: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // The command line is not part of the library.
        if path.is_dir() && !path.ends_with("bin") {
            declared_in(&path, names);
        } else if path.extension().is_some_and(|it| it == "rs") {
            declared(fs::read_to_string(&path).unwrap().parse().unwrap(), names);
        }
    }
}

#[test]
fn a_declaration_is_found_wherever_it_is() {
    let mut names = Vec::new();
    let tokens = "
        pub struct A; struct B; pub(crate) enum C {} pub enum D {}
        pin_project! { #[derive(Debug)] pub struct E<F> { f: F } }
        pub mod g { pub union H {} } pub fn i(pub_: J) {}
        /// pub struct K
        pub trait L {} pub type M = N;";
    declared(tokens.parse().unwrap(), &mut names);
    assert_eq!(names, ["A", "D", "E", "H"]);
}

#[test]
fn every_public_type_is_registered_here() {
    let mut names = Vec::new();
    declared_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    names.sort();
    let registered: Vec<_> = REGISTER.iter().map(|(name, _)| *name).collect();
    assert!(registered.is_sorted());
    assert_eq!(
        names, registered,
        "say of a new type what it may hold, and print it below if that is a secret"
    );
}

/// The printed text of each type.
struct Heard {
    key: String,
    text: BTreeMap<String, String>,
}

/// `T`'s own name.
fn name_of<T: ?Sized>() -> &'static str {
    let name = type_name::<T>();
    let name = name.split('<').next().unwrap();
    name.rsplit("::").next().unwrap()
}

impl Heard {
    #[track_caller]
    fn add<T: ?Sized>(&mut self, _: &T, text: &str) {
        let name = name_of::<T>();
        assert!(!leaks(text, &self.key), "{name}: {text}");
        assert!(!text.contains(PASSWORD), "{name}: {text}");
        self.text.entry(name.to_owned()).or_default().push_str(text);
    }
}

/// Prints a value by `Display` and `Serialize`, if it implements them.
struct Print<'a, T>(&'a T);

trait Displayed {
    fn displayed(&self) -> String;
}

impl<T: fmt::Display> Displayed for Print<'_, T> {
    fn displayed(&self) -> String {
        self.0.to_string()
    }
}

/// Found only where the other is not.
trait NotDisplayed {
    fn displayed(&self) -> String {
        String::new()
    }
}

impl<T> NotDisplayed for &Print<'_, T> {}

trait Serialized {
    fn serialized(&self) -> String;
}

impl<T: Serialize> Serialized for Print<'_, T> {
    fn serialized(&self) -> String {
        serde_json::to_string(self.0).unwrap()
    }
}

/// Found only where the other is not.
trait NotSerialized {
    fn serialized(&self) -> String {
        String::new()
    }
}

impl<T> NotSerialized for &Print<'_, T> {}

macro_rules! say {
    ($heard:ident: $($value:expr),+ $(,)?) => {$({
        let value = &$value;
        let print = &Print(value);
        let text = format!("{value:?} {value:#?} {} {}", print.displayed(), print.serialized());
        $heard.add(value, &text);
    })+};
}

#[test]
fn a_value_is_printed_by_every_trait_it_has() {
    #[derive(Debug, Serialize)]
    struct Both(&'static str);

    impl fmt::Display for Both {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "displayed: {}", self.0)
        }
    }

    #[derive(Debug)]
    struct Neither;

    let mut heard = Heard { key: unknown_key(), text: BTreeMap::new() };
    say!(heard: Both("x"), Neither);
    assert_eq!(heard.text["Both"], "Both(\"x\") Both(\n    \"x\",\n) displayed: x \"x\"");
    assert_eq!(heard.text["Neither"], "Neither Neither  ");
}

#[test]
#[should_panic(expected = "Leaking: Leaking(\"")]
fn a_value_that_leaks_is_noticed() {
    #[derive(Debug)]
    struct Leaking(#[expect(dead_code, reason = "it is printed")] String);

    let key = unknown_key();
    let mut heard = Heard { key: key.clone(), text: BTreeMap::new() };
    say!(heard: Leaking(key));
}

#[tokio::test]
async fn no_public_type_that_may_hold_a_secret_prints_one() {
    let keys = Keys::new();
    let issued = keys.issue(NewKey::new("acme", Expiry::Never).name("nightly")).await;
    let key = text(&issued);
    let mut heard = Heard { key: key.clone(), text: BTreeMap::new() };
    of_keys(&mut heard, &key);
    of_legacy_hashes(&mut heard, &key, issued.record.id);
    of_records(&mut heard, &keys, &key, issued.record.id).await;
    of_management(&mut heard, &keys, &key).await;
    of_decisions(&mut heard, &keys, &key).await;
    of_layers(&mut heard, &keys, &key).await;
    of_the_test_kit(&mut heard, &key).await;
    of_limits(&mut heard, &key);
    of_databases(&mut heard, &key).await;
    of_webhooks(&mut heard, &key).await;
    say!(heard: issued, issued.key, issued.record, Usage::new(issued.record.id, issued.record.created_at));

    let printed: BTreeSet<_> = heard.text.keys().map(String::as_str).collect();
    let secret = REGISTER.iter().filter(|(_, holds)| *holds == ASecret).map(|(name, _)| *name);
    let missing: Vec<_> = secret.filter(|name| !printed.contains(name)).collect();
    assert!(missing.is_empty(), "not printed: {missing:?}");
    // The control: the printed text is not empty.
    assert!(heard.text.values().all(|text| text.trim().len() > 2), "{:?}", heard.text);
}

fn of_keys(heard: &mut Heard, key: &str) {
    say!(heard: Pepper::new(key), Digest::hmac_sha256(Pepper::new(key)));
    let presented = format().parse(key.as_bytes()).unwrap();
    let imported = ImportedFormat::new("", Alphabet::Hex, 64).unwrap();
    let mut writer = MaskingWriter::new(std::io::sink(), format());
    // Held back: more may follow.
    writer.write_all(&key.as_bytes()[..key.len() - 1]).unwrap();
    let mut finder = KeyFinder::new([format().into()]).unwrap();
    finder.scan(key.as_bytes(), |_| ControlFlow::Continue(())).unwrap();
    say!(heard:
        presented,
        presented.hash(),
        format(),
        imported,
        AcceptedFormat::from(imported),
        KeyMask::from(format()),
        finder,
        finder.find(key.as_bytes())[0],
        writer,
        format().parse(&key.as_bytes()[1..]).unwrap_err(),
        KeyFormat::new(key).unwrap_err(),
        key.parse::<KeyHash>().unwrap_err(),
        key.parse::<LegacyHash>().unwrap_err(),
        key.parse::<ImportedFormat>().unwrap_err(),
        Digest::salted_sha256(key.as_bytes(), key.as_bytes()),
        Digest::sha512().stored_hash_of_text(key).unwrap_err(),
        Scheme::new(&format!("{key} ")).unwrap_err(),
        RngError::new("no entropy"),
    );
}

/// The secret of an endpoint, and the token in its URL.
async fn of_webhooks(heard: &mut Heard, key: &str) {
    let store = SqliteKeyStore::in_memory().await.unwrap();
    store.migrate().await.unwrap();
    let webhooks = Webhooks::new(store);
    let url = format!("https://example.com/{key}?token={PASSWORD}");
    let endpoint = webhooks.add(&url, EventFilter::all()).await.unwrap();
    let secret = endpoint.secret.expose_secret();
    for printed in [format!("{endpoint:?}"), format!("{:?}", endpoint.secret)] {
        assert!(!printed.contains(secret), "{printed}");
    }
    say!(heard:
        endpoint.secret,
        endpoint,
        webhooks.add(&format!("ftp://{key}/"), EventFilter::all()).await.unwrap_err(),
        key.parse::<SigningSecret>().unwrap_err(),
        key.parse::<WebhookId>().unwrap_err(),
        EventFilter::parse([key]).unwrap_err(),
        webhooks.tail(0),
        webhooks.worker(),
        webhooks,
    );
}

/// A hash that holds the key as its salt: what is printed of it would show there.
fn of_legacy_hashes(heard: &mut Heard, key: &str, id: KeyId) {
    let hash: LegacyHash = format!("pbkdf2_sha256$1${key}${}", "A".repeat(43)).parse().unwrap();
    let import = KeyImport::of_legacy_hash(hash.clone(), NewKey::new("acme", Expiry::Never));
    say!(heard: LegacyKey::new(id, None, hash.clone()), hash, import);
}

async fn of_records(heard: &mut Heard, keys: &Keys, key: &str, id: KeyId) {
    let store = &keys.store.memory;
    let admission = keys.auth().check(key.as_bytes()).await.unwrap();
    let consumer = admission.consumer().clone();
    say!(heard:
        consumer,
        consumer.key_ended(),
        Consumer::builder("acme").key_name("ci"),
        key.parse::<KeyAction>().unwrap_err(),
        key.parse::<KeyStatus>().unwrap_err(),
        key.parse::<KeyId>().unwrap_err(),
        Scope::new(format!("{key} {key}")).unwrap_err(),
        Metadata::from_json(key).unwrap_err(),
        key.parse::<Network>().unwrap_err(),
        key.parse::<KeyKind>().unwrap_err(),
        Tags::parse([format!("{key} {key}")]).unwrap_err(),
        WebOrigins::parse([key.to_owned()]).unwrap_err(),
        *store,
        store.begin().await.unwrap(),
        KeyQuery::new().consumer_id("acme"),
        EventQuery::new().key_id(id),
        UsageQuery::until(keys.clock.now(), BucketWidth::Day).consumer_id("acme").key_id(id),
        key.parse::<BucketWidth>().unwrap_err(),
        key.parse::<UsageCursor>().unwrap_err(),
    );
    let page = store.list(&KeyQuery::new()).await.unwrap();
    say!(heard: page.keys[0], admin::KeyView::from(&page.keys[0]), page);
    let page = store.events(&EventQuery::new()).await.unwrap();
    say!(heard: page.events[0], page.events[0].entry, page);
}

async fn of_management(heard: &mut Heard, keys: &Keys, key: &str) {
    let store = keys.store.memory.clone();
    let issuer = KeyIssuer::new(store, format()).clock(keys.clock.clone());
    let new = || NewKey::new("acme", Expiry::Never).idempotency_key("one");
    let first = issuer.issue(new()).await.unwrap();
    let actor = Actor::key(&Consumer::from(first.record.clone()));
    let rotated = issuer.rotate(first.record.id, Rotation::new()).await.unwrap();
    let hash = format().parse(key.as_bytes()).unwrap().hash();
    let import = KeyImport::new(hash, new());
    let imported = KeyImport::new(KeyHash::from_bytes([7; 32]), NewKey::new("b", Expiry::Never));
    say!(heard:
        issuer,
        actor,
        new(),
        import,
        rotated,
        Rotation::new(),
        KeyUpdate::new().name(Some("n".to_owned())),
        issuer.import(vec![imported]).await.unwrap(),
        issuer.issue(new()).await.unwrap_err(),
        key.parse::<Expiry>().unwrap_err(),
        issuer.by(actor.clone()).import(vec![import.clone()]).await.unwrap_err(),
        issuer.issue(NewKey::new("acme", Expiry::Never).plan(format!("{key} "))).await.unwrap_err(),
        Admin::new(issuer.clone(), keys.auth()),
        admin::router(issuer.clone(), keys.auth()),
        account::Account::new(issuer.clone(), keys.auth()),
    );
    let token = GitHubPublicKeys::new().bearer_token(key).unwrap();
    say!(heard:
        token,
        LeakReport::new(key.as_bytes()),
        Leaks::new(issuer, LeakPolicy::new()).github(token).reporters(keys.auth()),
        PublicKeySet::from_json(format!("\"{key}\"").as_bytes()).unwrap_err(),
        GitHubPublicKeys::at(key).unwrap_err(),
    );
}

async fn of_decisions(heard: &mut Heard, keys: &Keys, key: &str) {
    let builder = keys.builder().default_rate_limits(Quota::per_hour(1).unwrap());
    say!(heard: builder);
    let (auth, worker) = builder.build();
    let attempt = auth.check(key.as_bytes()).try_now();
    say!(heard: attempt);
    let Attempt::Pending(lookup) = attempt else { panic!("the key is not cached") };
    say!(heard: lookup);
    let admission = lookup.await.unwrap();
    say!(heard: admission, *admission.rate_limit_status(), auth, worker);
    let rejection = auth.check(key.as_bytes()).await.unwrap_err();
    say!(heard: rejection, auth.check(key.as_bytes()), auth.check(key.as_bytes()).into_future());

    let failing = unknown_key();
    let events =
        std::sync::Arc::new(Mutex::new(Heard { key: failing.clone(), text: BTreeMap::new() }));
    let observer = {
        let events = std::sync::Arc::clone(&events);
        move |event: &Event<'_>| {
            let mut heard = events.lock().unwrap();
            say!(heard: *event);
        }
    };
    let store = Leaky(failing.clone());
    say!(heard: store.error());
    let (auth, _worker) = Authenticator::builder(store, format()).observer(observer).build();
    let rejection = auth.check(failing.as_bytes()).await.unwrap_err();
    let mut events = std::mem::take(&mut events.lock().unwrap().text);
    assert!(events["Event"].contains("LoadFailed"), "{events:?}");
    heard.text.append(&mut events);
    heard.key = failing;
    say!(heard: rejection, auth.check(key.as_bytes()), auth.check(key.as_bytes()).into_future());
    heard.key = key.to_owned();
}

tower_api_key::scopes! {
    enum Permission {
        Any = "a",
    }
    mod permission;
}

async fn of_layers(heard: &mut Heard, keys: &Keys, key: &str) {
    let layer = ApiKeyLayer::new(keys.auth());
    let mut service = layer.layer(Handler::default());
    let mut scoped = RequireScope::one("a").unwrap().layer(Handler::default());
    let class = RateClass::new("search", Quota::per_minute(10).unwrap()).unwrap();
    let metered = Cost::new(2).of(&keys.auth());
    let mut metering = metered.layer(Handler::default());
    let limit = ConcurrencyLimit::per_key(1).unwrap();
    let mut limited = limit.layer(Handler::default());
    let returned = async |request: http::Request<_>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
    };
    let mut drained = DrainRejected::new().layer(tower::service_fn(returned));
    let mut ending = UntilKeyEndsLayer::new().layer(Handler::default());
    let upload = || with_key(key).map(|_| Body::from(key.to_owned()));
    let (mut parts, _) = with_key(key).into_parts();
    let consumer = keys.auth().check(key.as_bytes()).await.unwrap().consumer().clone();
    let (mut granting, ()) = http::Request::new(()).into_parts();
    let holder =
        Consumer::builder("acme").scopes(["a"]).metadata(&serde_json::json!({ "key": key }));
    granting.extensions.insert(holder.build());
    let granted = Granted::<permission::Any>::from_request_parts(&mut granting, &()).await.unwrap();
    say!(heard:
        layer,
        service,
        // Once looked up, and once from the cache.
        service.call(with_key(key)),
        service.ready().await.unwrap().call(with_key(key)).await.unwrap(),
        service.call(with_key(key)),
        service.call(with_key("junk")),
        RequireScope::one("a").unwrap(),
        scoped,
        scoped.call(with_key(key)),
        class,
        metered,
        metering,
        metering.call(with_key(key)),
        limit,
        limited,
        limited.call(with_key(key)),
        limited.call(with_key(key)).await.unwrap().into_body(),
        DrainRejected::new(),
        drained,
        drained.call(upload()),
        drained.call(upload()).await.unwrap().into_body(),
        UntilKeyEnds::new(Body::empty(), &consumer),
        UntilKeyEndsLayer::new(),
        ending,
        ending.call(with_key(key)),
        Consumer::from_request_parts(&mut parts, &()).await.unwrap_err(),
        granted,
        ClientAddress::forwarded(1),
        ApiKeyLayer::new(keys.auth()).realm(&format!("{key}\n")).unwrap_err(),
    );
}

async fn of_the_test_kit(heard: &mut Heard, key: &str) {
    let kit = TestKeys::new();
    let issued = kit.issue("acme").await;
    kit.go_down();
    let checked = contract::key_store(async || (kit.store().clone(), ())).await;
    let acting = Consumer::acting_as("acme").layer(Handler::default());
    say!(heard: Violation::from(Scope::new(format!("{key} {key}")).unwrap_err()));
    heard.key = issued.expose_secret().to_owned();
    say!(heard: kit, *kit.store(), kit.issue("acme"), issued, acting, checked.unwrap_err());
    heard.key = key.to_owned();
}

fn of_limits(heard: &mut Heard, key: &str) {
    let url = format!("redis://app:{PASSWORD}@127.0.0.1:1");
    let limiter = RedisRateLimiter::builder(&url).build().unwrap();
    let invalid = format!("redis://app:{PASSWORD}@[nowhere:1");
    say!(heard:
        LocalRateLimiter::new(),
        Subject::of_key("acme", 1),
        RedisRateLimiter::builder(&url),
        limiter,
        RedisRateLimiter::builder(&invalid).build().unwrap_err(),
        Quota::per_second(1).unwrap().named(format!("{key} ")).unwrap_err(),
        Plans::new().plan(format!("{key} "), RateLimits::unlimited()).unwrap_err(),
    );
}

async fn of_databases(heard: &mut Heard, key: &str) {
    let url = format!("postgres://app:{PASSWORD}@127.0.0.1:1/app");
    let away = PgKeyStore::connect_lazy(&url).unwrap();
    let findings = away.diagnose(&SystemClock::new()).await;
    let hash = format().parse(key.as_bytes()).unwrap().hash();
    say!(heard:
        PgKeyStore::builder(),
        away,
        away.change_feed(),
        findings[0],
        away.find(&hash).await.unwrap_err(),
        PgKeyStore::connect_lazy(&url.replace("postgres", "mysql")).unwrap_err(),
        PgKeyStore::connect_lazy(&url.replace(":1/", ":many/")).unwrap_err(),
    );
    let there = ApiKeys::builder(SqliteKeyStore::in_memory().await.unwrap(), format());
    say!(heard: ApiKeys::open(&url, key), there, ApiKeys::open(&url, key).await.unwrap_err());
    let there = there.await.unwrap();
    say!(heard: there, ApiKeys::open(&url, crate::app::PREFIX).await.unwrap_err());
    there.stop().await;
    let database = Server::shared().database().await;
    let there = PgKeyStore::connect(database.url()).await.unwrap();
    there.migrate().await.unwrap();
    say!(heard: there.begin().await.unwrap());

    let sqlite = SqliteKeyStore::connect("sqlite::memory:").await.unwrap();
    sqlite.migrate().await.unwrap();
    let mut record = Keys::new().issue(NewKey::new("acme", Expiry::Never)).await.record;
    record.key_hash = hash;
    sqlite.insert(&record).await.unwrap();
    let spoil = r#"update api_keys set rate_limits = '[{"limit": "many"}]'"#;
    sqlx::raw_sql(spoil).execute(sqlite.pool()).await.unwrap();
    let page = sqlite.list(&KeyQuery::new()).await.unwrap();
    say!(heard:
        sqlite,
        sqlite.begin().await.unwrap(),
        PollingChangeFeed::new(sqlite.clone()),
        page.invalid[0],
        page,
        // An unreadable row.
        sqlite.find(&hash).await.unwrap_err(),
    );
    record.consumer_id = String::new();
    // A database error may quote its query.
    say!(heard: sqlite.insert(&record).await.unwrap_err());
}

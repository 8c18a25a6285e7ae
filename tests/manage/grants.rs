//! No sequence of requests makes a key that holds more than the calling key, or than the member who
//! sends them may give.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body, response::IntoResponse};
use http::{StatusCode, request::Parts};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select, subsequence},
    test_runner::TestRunner,
};
use serde_json::{Value, json};
use tower_api_key::{
    Authenticator, Consumer,
    account::Account,
    clock::{Clock, ManualClock},
    key::KeyFormat,
    manage::{
        self, Actor, ConsumerIds, Expiry, KeyIssuer, KeyUpdate, ManageErrorKind, Member, NewKey,
        Rotation,
    },
    rate_limit::{Quota, RateLimits},
    record::{KeyId, KeyRecord, Scope, Scopes},
    store::{KeyQuery, MemoryKeyStore},
};

use crate::app::send;

const SCOPES: [&str; 5] = ["api-keys:write", "api-keys:all-consumers", "a", "b", "c"];
/// The store defines the first two, the service the third, and the last is undefined.
const PLANS: [&str; 4] = ["free", "pro", "team", "lost"];
const CONSUMERS: [&str; 2] = ["acme", "other"];
const HOUR: Duration = Duration::from_secs(3600);

/// The properties of a requested key.
#[derive(Clone, Debug)]
struct Grant {
    consumer: &'static str,
    scopes: Vec<&'static str>,
    /// In hours; `None` for no expiry.
    hours: Option<u32>,
    limits: Option<RateLimits>,
    plan: Option<&'static str>,
    /// Requests within the caller's grants: consumer, scopes, expiry, limits and plan. Most random
    /// requests would be denied, and prove little.
    modest: [bool; 4],
}

#[derive(Clone, Debug)]
enum Request {
    Issue(Grant),
    Rotate { expiry: Option<Option<u32>>, grace_hours: u32 },
    Update { grant: Grant, fields: [bool; 4], is_active: Option<bool> },
    Revoke,
}

fn limits() -> impl Strategy<Value = RateLimits> {
    let quota = (1..4_u32, 0..3_usize, 1..6_u32).prop_map(|(limit, window, burst)| {
        let window = [1, 60, 3600][window];
        let quota = Quota::per(limit * 10, Duration::from_secs(window)).unwrap();
        quota.burst(burst * 5).unwrap().named(format!("{window}")).unwrap()
    });
    vec(quota, 0..3).prop_map(|mut quotas| {
        quotas.dedup_by(|a, b| a.name() == b.name());
        RateLimits::new(quotas).unwrap_or_default()
    })
}

fn grant() -> impl Strategy<Value = Grant> {
    (
        prop_oneof![3 => Just(CONSUMERS[0]), 1 => Just(CONSUMERS[1])],
        subsequence(SCOPES.to_vec(), 0..=SCOPES.len()),
        option::of(1..50_u32),
        option::of(limits()),
        option::of(select(PLANS.to_vec())),
        prop_oneof![Just([true; 4]), any::<[bool; 4]>()],
    )
        .prop_map(|(consumer, scopes, hours, limits, plan, modest)| Grant {
            consumer,
            scopes,
            hours,
            limits,
            plan,
            modest,
        })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        4 => grant().prop_map(Request::Issue),
        2 => (option::of(option::of(1..60_u32)), 0..30_u32)
            .prop_map(|(expiry, grace_hours)| Request::Rotate { expiry, grace_hours }),
        4 => (grant(), any::<[bool; 4]>(), any::<Option<bool>>())
            .prop_map(|(grant, fields, is_active)| Request::Update { grant, fields, is_active }),
        1 => Just(Request::Revoke),
    ]
}

fn expiry(hours: Option<u32>) -> Expiry {
    hours.map_or(Expiry::Never, |hours| Expiry::In(HOUR * hours))
}

fn scopes(scopes: &[&'static str]) -> Scopes {
    Scopes::parse(scopes.iter().copied()).unwrap()
}

impl Request {
    fn modest(self, caller: &KeyRecord, now: SystemTime) -> Self {
        match self {
            Self::Issue(grant) => Self::Issue(grant.modest(caller, now)),
            Self::Update { grant, fields, is_active } => {
                Self::Update { grant: grant.modest(caller, now), fields, is_active }
            }
            other => other,
        }
    }
}

impl Grant {
    fn modest(mut self, caller: &KeyRecord, now: SystemTime) -> Self {
        let [consumer, scopes, expiry, limits] = self.modest;
        if consumer {
            let is_callers = |name: &&&str| **name == &*caller.consumer_id;
            self.consumer = CONSUMERS.iter().find(is_callers).unwrap();
        }
        if scopes {
            self.scopes.retain(|scope| caller.has(scope));
        }
        if let Some(end) = caller.expires_at.filter(|_| expiry) {
            let left = end.duration_since(now).unwrap_or_default().as_nanos() / HOUR.as_nanos();
            let left = u32::try_from(left).unwrap();
            self.hours = Some(self.hours.map_or(left, |hours| hours.min(left)));
        }
        if limits {
            let is_callers = |name: &&&str| caller.plan.as_deref() == Some(**name);
            self.limits = caller.rate_limits.clone();
            self.plan = PLANS.iter().find(is_callers).copied();
        }
        self
    }

    fn new_key(&self) -> NewKey {
        let new = NewKey::new(self.consumer, expiry(self.hours)).scopes(scopes(&self.scopes));
        let new = match self.plan {
            Some(plan) => new.plan(plan),
            None => new,
        };
        match &self.limits {
            Some(limits) => new.rate_limits(limits.clone()),
            None => new,
        }
    }
}

/// The grants of a key, computed independently of the library's comparison.
struct Worth<'a> {
    key: &'a KeyRecord,
    world: &'a World,
}

impl Worth<'_> {
    /// Its own and its plan's, or the default.
    fn quotas(&self) -> Vec<&Quota> {
        let own = self.key.rate_limits.as_ref();
        let plan = self.key.plan.as_ref().and_then(|plan| self.world.plans.get(&**plan));
        if own.is_none() && plan.is_none() {
            return self.world.default_limits.iter().collect();
        }
        let mut quotas = BTreeMap::new();
        for limits in [plan, own].into_iter().flatten() {
            quotas.extend(limits.iter().map(|quota| (quota.name(), quota)));
        }
        quotas.into_values().collect()
    }

    fn admits(&self, window: Duration) -> u64 {
        self.quotas().iter().map(|quota| quota.most_in(window)).min().unwrap_or(u64::MAX)
    }

    fn ends(&self) -> SystemTime {
        self.key.expires_at.unwrap_or(SystemTime::UNIX_EPOCH + HOUR * 1_000_000)
    }

    /// The properties that exceed `bound`.
    fn beyond(&self, bound: &Self) -> Option<String> {
        for scope in self.key.scopes.iter() {
            if !bound.key.has(scope.as_str()) {
                return Some(format!("the scope {scope}"));
            }
        }
        let is_free = bound.key.plan.is_none() && bound.quotas().is_empty();
        if self.key.plan != bound.key.plan && !is_free {
            return Some(format!("the plan {:?}", self.key.plan));
        }
        if self.ends() > bound.ends() {
            return Some(format!("{:?} is after {:?}", self.ends(), bound.ends()));
        }
        for secs in [0, 1, 2, 7, 59, 60, 61, 600, 3600, 86_400] {
            let window = Duration::from_secs(secs);
            let (here, there) = (self.admits(window), bound.admits(window));
            if here > there {
                return Some(format!("{here} requests in {secs} s instead of {there}"));
            }
        }
        None
    }
}

trait Has {
    fn has(&self, scope: &str) -> bool;
}

impl Has for KeyRecord {
    fn has(&self, scope: &str) -> bool {
        self.scopes.contains(scope)
    }
}

/// The properties that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Issue,
    IssueForAnotherConsumer,
    IssueWithScopes,
    IssueForEver,
    IssueWithLimits,
    IssueWithAPlan,
    Rotate,
    RotateToAnotherExpiry,
    ChangeScopes,
    ChangeExpiry,
    ChangeLimits,
    ChangePlan,
    SwitchOff,
    SwitchOn,
    ChangeAnotherConsumers,
    Revoke,
    RevokeAnotherConsumers,
}

impl Kind {
    const ALL: [Self; 17] = [
        Self::Issue,
        Self::IssueForAnotherConsumer,
        Self::IssueWithScopes,
        Self::IssueForEver,
        Self::IssueWithLimits,
        Self::IssueWithAPlan,
        Self::Rotate,
        Self::RotateToAnotherExpiry,
        Self::ChangeScopes,
        Self::ChangeExpiry,
        Self::ChangeLimits,
        Self::ChangePlan,
        Self::SwitchOff,
        Self::SwitchOn,
        Self::ChangeAnotherConsumers,
        Self::Revoke,
        Self::RevokeAnotherConsumers,
    ];

    /// The result of `request`, made by `caller`.
    fn of(request: &Request, caller: &KeyRecord, target: &KeyRecord) -> Vec<Self> {
        let is_foreign = target.consumer_id != caller.consumer_id;
        let kinds = match request {
            Request::Issue(grant) => vec![
                (Self::Issue, true),
                (Self::IssueForAnotherConsumer, *caller.consumer_id != *grant.consumer),
                (Self::IssueWithScopes, !grant.scopes.is_empty()),
                (Self::IssueForEver, grant.hours.is_none()),
                (Self::IssueWithLimits, grant.limits.is_some()),
                (Self::IssueWithAPlan, grant.plan.is_some()),
            ],
            Request::Rotate { expiry, .. } => {
                vec![(Self::Rotate, true), (Self::RotateToAnotherExpiry, expiry.is_some())]
            }
            Request::Update { fields: [scopes, expiry, limits, plan], is_active, .. } => vec![
                (Self::ChangeScopes, *scopes),
                (Self::ChangeExpiry, *expiry),
                (Self::ChangeLimits, *limits),
                (Self::ChangePlan, *plan),
                (Self::SwitchOff, *is_active == Some(false)),
                (Self::SwitchOn, *is_active == Some(true)),
                (Self::ChangeAnotherConsumers, is_foreign),
            ],
            Request::Revoke => {
                vec![(Self::Revoke, true), (Self::RevokeAnotherConsumers, is_foreign)]
            }
        };
        kinds.into_iter().filter_map(|(kind, is_so)| is_so.then_some(kind)).collect()
    }
}

/// The number of granted and denied requests.
#[derive(Default)]
struct Tally {
    granted: u32,
    denied: u32,
    by_kind: BTreeMap<Kind, [u32; 2]>,
}

impl Tally {
    fn count(&mut self, kinds: Vec<Kind>, is_granted: bool) {
        *if is_granted { &mut self.granted } else { &mut self.denied } += 1;
        for kind in kinds {
            self.by_kind.entry(kind).or_default()[usize::from(!is_granted)] += 1;
        }
    }
}

struct World {
    clock: ManualClock,
    operator: KeyIssuer,
    tally: Arc<Mutex<Tally>>,
    default_limits: RateLimits,
    /// From the store or the service.
    plans: HashMap<&'static str, RateLimits>,
}

impl World {
    async fn keys(&self) -> Vec<KeyRecord> {
        let query = KeyQuery::new().limit(1000);
        let page = self.operator.list(&query).await.unwrap();
        let mut keys: Vec<_> = page.keys.into_iter().map(|key| key.record).collect();
        keys.reverse();
        keys
    }

    fn worth<'a>(&'a self, key: &'a KeyRecord) -> Worth<'a> {
        Worth { key, world: self }
    }

    /// Sends a request of `caller` about `target`, and compares the result with the caller's
    /// grants.
    async fn ask(&self, caller: &KeyRecord, target: &KeyRecord, request: Request) {
        let scope = |scope: &str| Scope::new(scope).unwrap();
        let actor = Actor::key(&Consumer::from(caller.clone()))
            .required_scope(scope(SCOPES[0]))
            .all_consumers_scope(scope(SCOPES[1]))
            .default_rate_limits(self.default_limits.clone());
        let issuer = self.operator.by(actor);
        let request = request.modest(caller, self.clock.now());
        let kinds = Kind::of(&request, caller, target);
        let minted = match request {
            Request::Issue(grant) => {
                issuer.issue(grant.new_key()).await.map(|issued| Some(issued.record))
            }
            Request::Rotate { expiry: new, grace_hours } => {
                let rotation = Rotation::new().grace(HOUR * grace_hours);
                let rotation = match new {
                    Some(hours) => rotation.expiry(expiry(hours)),
                    None => rotation,
                };
                issuer.rotate(target.id, rotation).await.map(|rotated| Some(rotated.record))
            }
            Request::Update { grant, fields, is_active } => {
                let mut update = KeyUpdate::new();
                if fields[0] {
                    update = update.scopes(scopes(&grant.scopes));
                }
                if fields[1] {
                    update = update.expiry(expiry(grant.hours));
                }
                if fields[2] {
                    update = update.rate_limits(grant.limits);
                }
                if fields[3] {
                    update = update.plan(grant.plan.map(Into::into));
                }
                if let Some(is_active) = is_active {
                    update = update.is_active(is_active);
                }
                issuer.update(target.id, update).await.map(|_| None)
            }
            Request::Revoke => issuer.revoke(target.id, None).await.map(|_| None),
        };
        self.tally.lock().unwrap().count(kinds, minted.is_ok());
        let is_alive = caller.status(self.clock.now()) == tower_api_key::record::KeyStatus::Active;
        match minted {
            Ok(minted) => {
                assert!(is_alive && caller.has(SCOPES[0]), "{caller:?} may change nothing");
                let reach = |key: &KeyRecord| {
                    assert!(
                        key.consumer_id == caller.consumer_id || caller.has(SCOPES[1]),
                        "{key:?} is none of its business"
                    );
                };
                match minted {
                    Some(minted) => {
                        reach(&minted);
                        let beyond = self.worth(&minted).beyond(&self.worth(caller));
                        assert_eq!(beyond, None, "{minted:?} by {caller:?}");
                    }
                    None => reach(target),
                }
            }
            Err(error) => assert!(
                !matches!(error.kind(), ManageErrorKind::Store | ManageErrorKind::Rng),
                "{error}"
            ),
        }
        // No key except the new one has more grants than before, unless the caller holds them.
        for after in self.keys().await {
            if after.id == target.id {
                let grown = self.worth(&after).beyond(&self.worth(target));
                let woken = !target.is_active && after.is_active;
                let moved = after.plan != target.plan;
                if grown.is_some() || woken || moved {
                    let beyond = self.worth(&after).beyond(&self.worth(caller));
                    assert_eq!(beyond, None, "{after:?} of {target:?} by {caller:?}");
                }
            }
        }
    }
}

#[test]
fn nobody_makes_a_key_that_holds_more() {
    const STORIES: u32 = 2048;
    let parts = (
        (limits(), [limits(), limits(), limits()]),
        (grant(), vec(grant(), 0..3)),
        vec((any::<Index>(), any::<Index>(), 0..4_u32, request()), 1..12),
    );
    let config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(STORIES) };
    let tally = Arc::<Mutex<Tally>>::default();
    let outcome = TestRunner::new(config).run(&parts, |parts| {
        let ((default_limits, plans), (root, strangers), requests) = parts;
        let tally = Arc::clone(&tally);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let clock = ManualClock::default();
            let store = MemoryKeyStore::with_clock(clock.clone());
            let format = KeyFormat::new("sk_test_").unwrap();
            let operator = KeyIssuer::new(store, format).clock(clock.clone());
            let plans: HashMap<_, _> = PLANS.into_iter().zip(plans).collect();
            for name in &PLANS[..2] {
                operator.set_plan(name, &plans[name]).await.unwrap();
            }
            let world = World { clock, operator, tally, default_limits, plans };
            for stranger in strangers {
                world.operator.issue(stranger.new_key()).await.unwrap();
            }
            let mut root = root;
            root.scopes.push(SCOPES[0]);
            let root = world.operator.issue(root.new_key()).await.unwrap().record;
            let mut offspring = vec![root.id];
            for (by, to, hours, request) in requests {
                world.clock.advance(HOUR * hours + Duration::from_secs(1));
                let before = world.keys().await;
                let callers: Vec<_> =
                    before.iter().filter(|key| offspring.contains(&key.id)).collect();
                let (caller, target) = (by.get(&callers), to.get(&before));
                world.ask(caller, target, request).await;
                let known = |key: &KeyRecord| before.iter().any(|old| old.id == key.id);
                let after = world.keys().await;
                offspring.extend(after.iter().filter(|key| !known(key)).map(|key| key.id));
                // The invariants hold over any number of steps.
                for key in after.iter().filter(|key| offspring.contains(&key.id)) {
                    prop_assert!(
                        key.consumer_id == root.consumer_id || root.has(SCOPES[1]),
                        "{key:?} is out of reach"
                    );
                    prop_assert_eq!(world.worth(key).beyond(&world.worth(&root)), None);
                }
            }
            Ok(())
        })
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));

    // If everything were denied, or nothing critical requested, all of this would hold trivially.
    let Tally { granted, denied, by_kind } = &*tally.lock().unwrap();
    println!("{granted} granted, {denied} denied: {by_kind:#?}");
    assert!(*granted * 5 >= granted + denied, "{granted} granted, {denied} denied");
    assert!(*denied * 5 >= granted + denied, "{granted} granted, {denied} denied");
    for kind in Kind::ALL {
        let [granted, denied] = by_kind.get(&kind).copied().unwrap_or_default();
        assert!(granted >= 5, "{kind:?}: {granted} granted, {denied} denied");
        assert!(denied >= 5, "{kind:?}: {granted} granted, {denied} denied");
    }
}

/// A user of the application, and the ceiling on what it may give.
#[derive(Clone, Debug)]
struct Person {
    consumers: BTreeSet<&'static str>,
    ceiling: Grant,
}

fn person() -> impl Strategy<Value = Person> {
    let consumers = prop_oneof![
        1 => Just(BTreeSet::from([CONSUMERS[0]])),
        1 => Just(BTreeSet::from(CONSUMERS)),
    ];
    (consumers, grant()).prop_map(|(consumers, ceiling)| Person { consumers, ceiling })
}

impl Person {
    /// As the application hands it over.
    fn member(&self) -> Member {
        let Grant { scopes: held, hours, limits, plan, .. } = &self.ceiling;
        let lifetime = hours.map_or(Duration::MAX, |hours| HOUR * hours);
        let mut grant = manage::Grant::new(lifetime).scopes(scopes(held));
        if let Some(limits) = limits {
            grant = grant.rate_limits(limits.clone());
        }
        if let Some(plan) = plan {
            grant = grant.plans([*plan]);
        }
        Member::new("ann", ConsumerIds::from_iter(self.consumers.iter().copied())).grant(grant)
    }

    /// A key that holds what the member may give, by which requests are made modest and told apart.
    fn as_key(&self, now: SystemTime) -> KeyRecord {
        let hash = KeyFormat::new("sk_test_").unwrap().generate().unwrap().hash();
        let consumer = *self.consumers.last().unwrap();
        let mut key = KeyRecord::new(KeyId::from_bytes([7; 16]), hash, consumer, now);
        key.scopes = scopes(&self.ceiling.scopes);
        key.expires_at = self.ceiling.hours.map(|hours| now + HOUR * hours);
        key.rate_limits.clone_from(&self.ceiling.limits);
        key.plan = self.ceiling.plan.map(Into::into);
        key
    }

    /// What a key has beyond the ceiling, computed independently of the library's comparison.
    fn beyond(&self, key: &KeyRecord, world: &World) -> Option<String> {
        let ceiling = &self.ceiling;
        if !self.consumers.contains(&*key.consumer_id) {
            return Some(format!("the consumer {}", key.consumer_id));
        }
        if let Some(scope) =
            key.scopes.iter().find(|scope| !ceiling.scopes.contains(&scope.as_str()))
        {
            return Some(format!("the scope {scope}"));
        }
        if key.plan.as_deref() != ceiling.plan {
            return Some(format!("the plan {:?}", key.plan));
        }
        if let Some(hours) = ceiling.hours {
            let lifetime = key.expires_at.map(|end| end.duration_since(key.created_at).unwrap());
            if lifetime.is_none_or(|lifetime| lifetime > HOUR * hours) {
                return Some(format!("the lifetime {lifetime:?}"));
            }
        }
        let Some(most) = &ceiling.limits else {
            return key.rate_limits.as_ref().map(|limits| format!("{limits:?}"));
        };
        if most.is_unlimited() {
            return None;
        }
        // On a plan, the plan alone is allowed too.
        let with = |own: Option<&RateLimits>| {
            let mut key = key.clone();
            key.rate_limits = own.cloned();
            key
        };
        let (most, plan) = (with(Some(most)), with(None));
        for secs in [0, 1, 2, 7, 59, 60, 61, 600, 3600, 86_400] {
            let window = Duration::from_secs(secs);
            let here = world.worth(key).admits(window);
            let there = world.worth(&most).admits(window);
            let of_plan = world.worth(&plan).admits(window);
            if here > there && (key.plan.is_none() || here > of_plan) {
                return Some(format!("{here} requests in {secs} s instead of {there}"));
            }
        }
        None
    }
}

impl Request {
    /// As a page of the application sends it.
    fn http(&self, target: KeyId) -> http::Request<Body> {
        let expires =
            |hours: Option<u32>| hours.map_or_else(|| "never".into(), |hours| format!("{hours}h"));
        let (method, path, body) = match self {
            Self::Issue(grant) => {
                let body = json!({
                    "consumer_id": grant.consumer,
                    "scopes": grant.scopes,
                    "expires": expires(grant.hours),
                    "rate_limits": grant.limits,
                    "plan": grant.plan,
                });
                ("POST", String::new(), body)
            }
            Self::Rotate { expiry, grace_hours } => {
                let mut body = json!({ "grace": format!("{grace_hours}h") });
                if let Some(hours) = expiry {
                    body["expires"] = json!(expires(*hours));
                }
                ("POST", format!("/{target}/rotate"), body)
            }
            Self::Update { grant, fields, is_active } => {
                let values = [
                    ("scopes", json!(grant.scopes)),
                    ("expires", json!(expires(grant.hours))),
                    ("rate_limits", json!(grant.limits)),
                    ("plan", json!(grant.plan)),
                ];
                let mut body = json!({});
                for ((field, value), _) in values.into_iter().zip(fields).filter(|(_, is)| **is) {
                    body[field] = value;
                }
                if let Some(is_active) = is_active {
                    body["is_active"] = json!(is_active);
                }
                ("PATCH", format!("/{target}"), body)
            }
            Self::Revoke => ("POST", format!("/{target}/revoke"), Value::Null),
        };
        let request = http::Request::builder()
            .method(method)
            .uri(format!("/api-keys{path}"))
            .header("sec-fetch-site", "same-origin");
        match body {
            Value::Null => request.body(Body::empty()),
            body => request
                .header("content-type", "application/json")
                .body(Body::from(body.to_string())),
        }
        .unwrap()
    }
}

/// The same stories, told by a member through the account router. Now and then its session ends.
#[test]
fn no_member_makes_a_key_beyond_its_grant_and_none_that_signed_out_changes_one() {
    const STORIES: u32 = 512;
    let parts = (
        (limits(), [limits(), limits(), limits()]),
        (person(), vec(grant(), 1..4)),
        vec((any::<Index>(), 0..4_u32, prop::bool::weighted(0.9), request()), 1..12),
    );
    let config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(STORIES) };
    let tally = Arc::<Mutex<Tally>>::default();
    let outcome = TestRunner::new(config).run(&parts, |parts| {
        let ((default_limits, plans), (person, stock), requests) = parts;
        let tally = Arc::clone(&tally);
        // Denials are delayed, but not in real time.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let clock = ManualClock::default();
            let store = MemoryKeyStore::with_clock(clock.clone());
            let format = KeyFormat::new("sk_test_").unwrap();
            let (auth, _worker) = Authenticator::builder(store.clone(), format)
                .clock(clock.clone())
                .default_rate_limits(default_limits.clone())
                .build();
            let operator = auth.issuer(store);
            let plans: HashMap<_, _> = PLANS.into_iter().zip(plans).collect();
            for name in &PLANS[..2] {
                operator.set_plan(name, &plans[name]).await.unwrap();
            }
            let session = Arc::new(Mutex::new(None));
            let account = {
                let session = Arc::clone(&session);
                Account::signed_in_by(operator.clone(), move |_: &mut Parts| {
                    let member: Option<Member> = session.lock().unwrap().clone();
                    async move { member.ok_or_else(|| StatusCode::UNAUTHORIZED.into_response()) }
                })
            };
            let app = Router::new().fallback_service(account.router());
            let world = World { clock, operator, tally, default_limits, plans };
            for key in stock {
                world.operator.issue(key.new_key()).await.unwrap();
            }
            for (to, hours, is_signed_in, request) in requests {
                world.clock.advance(HOUR * hours + Duration::from_secs(1));
                let before = world.keys().await;
                let target = to.get(&before);
                let caller = person.as_key(world.clock.now());
                let request = request.modest(&caller, world.clock.now());
                let kinds = Kind::of(&request, &caller, target);
                *session.lock().unwrap() = is_signed_in.then(|| person.member());
                let answer = send(app.clone(), request.http(target.id)).await;
                let after = world.keys().await;
                if !is_signed_in {
                    prop_assert_eq!(answer.status, 401);
                    prop_assert_eq!(unread(&before), unread(&after));
                    continue;
                }
                prop_assert!(answer.status.as_u16() < 500, "{}", answer.text());
                world.tally.lock().unwrap().count(kinds, answer.status.is_success());
                for key in &after {
                    let Some(old) = before.iter().find(|old| old.id == key.id) else {
                        prop_assert_eq!(person.beyond(key, &world), None, "{:?}", key);
                        prop_assert_eq!(key.created_by.as_deref(), Some("member:ann"));
                        continue;
                    };
                    if !person.consumers.contains(&*key.consumer_id) {
                        prop_assert_eq!(old.version, key.version, "{:?} is not the member's", key);
                    }
                    let grown = world.worth(key).beyond(&world.worth(old));
                    let woken = !old.is_active && key.is_active;
                    if grown.is_some() || woken || key.plan != old.plan {
                        prop_assert_eq!(person.beyond(key, &world), None, "{:?} of {:?}", key, old);
                    }
                }
            }
            Ok(())
        })
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));

    let Tally { granted, denied, by_kind } = &*tally.lock().unwrap();
    println!("{granted} granted, {denied} denied: {by_kind:#?}");
    assert!(*granted * 5 >= granted + denied, "{granted} granted, {denied} denied");
    assert!(*denied * 5 >= granted + denied, "{granted} granted, {denied} denied");
    for kind in Kind::ALL {
        let [granted, denied] = by_kind.get(&kind).copied().unwrap_or_default();
        assert!(granted >= 5, "{kind:?}: {granted} granted, {denied} denied");
        assert!(denied >= 5, "{kind:?}: {granted} granted, {denied} denied");
    }
}

/// The records without the time at which they were read.
fn unread(keys: &[KeyRecord]) -> Vec<KeyRecord> {
    let unread = |key: &KeyRecord| {
        let mut key = key.clone();
        key.read_at = SystemTime::UNIX_EPOCH;
        key
    };
    keys.iter().map(unread).collect()
}

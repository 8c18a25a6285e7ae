//! The driver changes keys: in code, by SQL, and through the admin router of a node. It tells the
//! oracle when each change began, and when it was known to be committed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use sqlx::{PgConnection, Row as _, query, types::Uuid};
use tokio::{sync::watch, time::sleep};
use tower_api_key::{
    key::ApiKey,
    manage::{Expiry, KeyIssuer, KeyUpdate, ManageError, NewKey, Rotation},
    rate_limit::{Quota, RateLimits},
    record::{KeyId, KeyRecord, Metadata, Scopes},
    store::PgKeyStore,
};

use crate::{
    client::Connection,
    clock::{Clock, Micros},
    fleet::Fleet,
    node::format,
    oracle::{self, Oracle, State},
    random::Random,
};

const PLANS: [&str; 2] = ["free", "pro"];
const SCOPES: [&[&str]; 4] =
    [&[], &["orders:read"], &["orders:read", "orders:write"], &["orders:write"]];

pub(crate) struct Driver {
    fleet: Arc<Fleet>,
    oracle: Oracle,
    clock: Clock,
    random: Random,
    issuer: KeyIssuer,
    /// The key of an operator, which may change all keys over HTTP.
    admin: String,
    session: Option<PgConnection>,
    made: BTreeMap<String, u64>,
}

/// How many times each change was made.
pub(crate) type Changes = BTreeMap<String, u64>;

impl Driver {
    pub(crate) async fn new(
        fleet: &Arc<Fleet>,
        oracle: &Oracle,
        clock: Clock,
        random: Random,
    ) -> Self {
        let store = PgKeyStore::connect(&fleet.url()).await.expect("the database");
        let issuer = KeyIssuer::new(store, format());
        let scopes = ["api-keys:read", "api-keys:write", "api-keys:all-consumers"];
        let operator = NewKey::new("operator", Expiry::Never);
        let operator = operator.scopes(Scopes::parse(scopes).expect("scopes"));
        let operator = issuer.issue(operator).await.expect("the operator's key");
        let admin = operator.key.expose_secret().to_owned();
        let (fleet, oracle) = (Arc::clone(fleet), oracle.clone());
        let made = BTreeMap::new();
        let mut driver = Self { fleet, oracle, clock, random, issuer, admin, session: None, made };
        for plan in PLANS {
            driver.change_plan(plan).await;
        }
        driver
    }

    pub(crate) async fn issue_many(&mut self, count: usize) {
        for _ in 0..count {
            self.issue().await;
        }
    }

    /// Makes changes until stopped, and returns the number of each.
    pub(crate) async fn run(mut self, stopped: watch::Receiver<bool>) -> Changes {
        while !*stopped.borrow() {
            if self.random.one_in(40) {
                let plan = *self.random.pick(&PLANS);
                self.change_plan(plan).await;
            } else if self.random.one_in(3) {
                self.issue().await;
            } else {
                self.change().await;
            }
            sleep(Duration::from_millis(self.random.between(10, 80))).await;
        }
        self.made
    }

    fn note(&mut self, how: &str) {
        *self.made.entry(how.to_owned()).or_default() += 1;
    }

    async fn issue(&mut self) {
        let consumer = format!("consumer-{}", self.random.below(50));
        let expiry = match self.random.below(4) {
            0 => Expiry::In(Duration::from_millis(self.random.between(1_000, 20_000))),
            _ => Expiry::Never,
        };
        let scopes = Scopes::parse(self.random.pick(&SCOPES).iter().copied()).expect("scopes");
        let mut new = NewKey::new(consumer, expiry).scopes(scopes).metadata(stamp(0));
        match self.random.below(6) {
            0 => new = new.plan(*self.random.pick(&PLANS)),
            1 => new = new.rate_limits(self.quota()),
            _ => {}
        }
        let begun = self.clock.now();
        // If the outcome is unknown, no client gets the key.
        if let Ok(issued) = self.issuer.issue(new).await {
            self.add(&issued.key, &issued.record, begun).await;
            self.note("issued by the service");
        }
    }

    async fn add(&mut self, key: &ApiKey, record: &KeyRecord, begun: Micros) {
        let (id, text) = (record.id.to_string(), key.expose_secret().to_owned());
        let state = self.read(&id).await;
        self.oracle.add(id, text, state, begun);
    }

    /// A small quota, so that it is used up all the time.
    fn quota(&mut self) -> Quota {
        let limit = u32::try_from(self.random.between(2, 10)).expect("a limit");
        let window = Duration::from_secs(self.random.between(1, 6));
        let quota = Quota::per(limit, window).expect("a quota").named("small").expect("a name");
        let burst = u32::try_from(self.random.between(1, 5)).expect("a burst");
        quota.burst(burst).expect("a quota")
    }

    /// Gives all keys on the plan another quota.
    async fn change_plan(&mut self, plan: &'static str) {
        let quota = self.quota();
        let limits = RateLimits::from(quota.clone());
        self.oracle.begin_plan(plan, told(&quota));
        let changed = self.issuer.set_plan(plan, &limits).await;
        self.note(if changed.is_ok() { "a plan changed" } else { "with an unknown outcome" });
        if changed.is_ok() {
            self.oracle.plan_done(plan);
        }
    }

    /// Changes one of the newer keys.
    async fn change(&mut self) {
        let count = self.oracle.len();
        let back = usize::try_from(self.random.below(300)).expect("an index");
        let key = count.saturating_sub(1 + back);
        let Some(state) = self.oracle.settled(key) else { return };
        if !state.exists || state.is_revoked {
            return;
        }
        let id = self.oracle.id(key);
        let kind = self.random.below(14);
        self.oracle.begin(key);
        let began = self.clock.now();
        let (how, outcome) = match kind {
            0 => ("revoked by the service", self.by_service(&id, Change::Revoke).await),
            1 => ("switched by the service", self.by_service(&id, switch(&state)).await),
            2 => ("given scopes by the service", self.scopes(&id).await),
            3 => ("given a quota by the service", self.limits(&id).await),
            4 => ("given metadata by the service", self.metadata(&id).await),
            5 => ("given an expiry by the service", self.expiry(&id).await),
            6 => ("rotated by the service", self.rotate(&id, began).await),
            7 => ("revoked by SQL", self.by_sql(&id, REVOKE).await),
            8 => ("switched by SQL", self.by_sql(&id, SWITCH).await),
            9 => ("narrowed by SQL", self.by_sql(&id, NARROW).await),
            10 => ("deleted by SQL", self.by_sql(&id, DELETE).await),
            11 => ("revoked over HTTP", self.over_http(&id, "POST", "/revoke", json!({})).await),
            12 => {
                let patch = json!({ "is_active": !state.is_active });
                ("switched over HTTP", self.over_http(&id, "PATCH", "", patch).await)
            }
            _ => {
                let plan = if state.plan.is_some() { Value::Null } else { json!("pro") };
                let patch = json!({ "plan": plan, "rate_limits": null });
                ("given a plan over HTTP", self.over_http(&id, "PATCH", "", patch).await)
            }
        };
        if outcome.is_err() {
            self.session = None;
            // A statement that a lost session had sent may still be executed.
            drop(self.fleet.session().await);
            sleep(Duration::from_secs(1)).await;
        }
        let state = self.read(&id).await;
        self.oracle.done(key, state, how);
        self.note(if outcome.is_ok() { how } else { "with an unknown outcome" });
    }

    async fn by_service(&self, id: &str, change: Change) -> Result<(), Unknown> {
        let id: KeyId = id.parse().expect("an id");
        match change {
            Change::Revoke => self.issuer.revoke(id, Some("it leaked")).await.map(drop)?,
            Change::Update(update) => self.issuer.update(id, *update).await.map(drop)?,
        }
        Ok(())
    }

    async fn update(&self, id: &str, update: KeyUpdate) -> Result<(), Unknown> {
        self.by_service(id, Change::Update(Box::new(update))).await
    }

    async fn scopes(&mut self, id: &str) -> Result<(), Unknown> {
        let scopes = Scopes::parse(self.random.pick(&SCOPES).iter().copied()).expect("scopes");
        self.update(id, KeyUpdate::new().scopes(scopes)).await
    }

    async fn limits(&mut self, id: &str) -> Result<(), Unknown> {
        let limits = (!self.random.one_in(3)).then(|| RateLimits::from(self.quota()));
        self.update(id, KeyUpdate::new().rate_limits(limits)).await
    }

    async fn metadata(&mut self, id: &str) -> Result<(), Unknown> {
        let metadata = stamp(self.random.below(1_000_000));
        self.update(id, KeyUpdate::new().metadata(metadata)).await
    }

    async fn expiry(&mut self, id: &str) -> Result<(), Unknown> {
        let expiry = match self.random.below(3) {
            0 => Expiry::Never,
            _ => Expiry::In(Duration::from_millis(self.random.between(200, 10_000))),
        };
        self.update(id, KeyUpdate::new().expiry(expiry)).await
    }

    async fn rotate(&mut self, id: &str, began: Micros) -> Result<(), Unknown> {
        let grace = Duration::from_millis(self.random.between(0, 5_000));
        let id = id.parse().expect("an id");
        let rotated = self.issuer.rotate(id, Rotation::new().grace(grace)).await?;
        self.add(&rotated.key, &rotated.record, began).await;
        Ok(())
    }

    /// The persistent session, or a new one if it was lost.
    async fn session(&mut self) -> PgConnection {
        match self.session.take() {
            Some(session) => session,
            None => self.fleet.session().await,
        }
    }

    async fn by_sql(&mut self, id: &str, sql: &'static str) -> Result<(), Unknown> {
        let mut session = self.session().await;
        query(sql).bind(uuid(id)).execute(&mut session).await.map_err(|_| Unknown)?;
        self.session = Some(session);
        Ok(())
    }

    async fn over_http(
        &mut self,
        id: &str,
        method: &str,
        verb: &str,
        body: Value,
    ) -> Result<(), Unknown> {
        let node = usize::try_from(self.random.below(self.fleet.len() as u64)).expect("a node");
        let is_http2 = self.random.one_in(2);
        let address = self.fleet.address(node).ok_or(Unknown)?;
        let mut connection = Connection::open(address, is_http2).await.ok_or(Unknown)?;
        let path = format!("{id}{verb}");
        let response = connection.manage(&self.admin, method, &path, &body).await;
        match response.map(|response| response.status) {
            Some(200..300) => Ok(()),
            _ => Err(Unknown),
        }
    }

    /// The state of the key in the database.
    async fn read(&mut self, id: &str) -> State {
        loop {
            let mut session = self.session().await;
            if let Ok(state) = read(&mut session, id, self.clock).await {
                self.session = Some(session);
                return state;
            }
        }
    }
}

/// The outcome of the change is not known yet.
struct Unknown;

impl From<ManageError> for Unknown {
    fn from(_: ManageError) -> Self {
        Self
    }
}

enum Change {
    Revoke,
    Update(Box<KeyUpdate>),
}

fn switch(state: &State) -> Change {
    Change::Update(Box::new(KeyUpdate::new().is_active(!state.is_active)))
}

fn stamp(number: u64) -> Metadata {
    Metadata::new(&json!({ "stamp": number })).expect("metadata")
}

const REVOKE: &str = "update api_keys set revoked_at = now(), version = version + 1 where id = $1";
const SWITCH: &str =
    "update api_keys set is_active = not is_active, version = version + 1 where id = $1";
const NARROW: &str = "update api_keys set scopes = array_remove(scopes, 'orders:write'), \
    version = version + 1 where id = $1";
const DELETE: &str = "delete from api_keys where id = $1";

fn uuid(id: &str) -> Uuid {
    id.parse().expect("a UUID")
}

async fn read(session: &mut PgConnection, id: &str, clock: Clock) -> sqlx::Result<State> {
    let sql = "select consumer_id, scopes, is_active, revoked_at is not null as is_revoked, plan, \
        (extract(epoch from expires_at) * 1000000)::bigint as expires_at, \
        rate_limits::text as rate_limits, metadata::text as metadata \
        from api_keys where id = $1";
    let Some(row) = query(sql).bind(uuid(id)).fetch_optional(session).await? else {
        return Ok(State::gone());
    };
    let expires_at: Option<i64> = row.try_get("expires_at")?;
    let scopes: Vec<String> = row.try_get("scopes")?;
    let limits: Option<String> = row.try_get("rate_limits")?;
    let metadata: String = row.try_get("metadata")?;
    Ok(State {
        exists: true,
        is_active: row.try_get("is_active")?,
        is_revoked: row.try_get("is_revoked")?,
        expires_at: expires_at.map(|at| clock.of_wall(at)),
        consumer: row.try_get("consumer_id")?,
        scopes: scopes.into_iter().collect(),
        plan: row.try_get("plan")?,
        quota: limits.as_deref().and_then(quota),
        metadata: serde_json::from_str(&metadata).expect("JSON"),
    })
}

/// The quota in the oracle's form.
fn told(quota: &Quota) -> oracle::Quota {
    let (limit, burst) = (quota.limit().into(), quota.burst_size().get().into());
    oracle::Quota { limit, window: crate::clock::micros(quota.window()), burst }
}

fn quota(limits: &str) -> Option<oracle::Quota> {
    let limits: Value = serde_json::from_str(limits).expect("JSON");
    let quota = limits.get(0)?;
    let number = |name: &str| quota[name].as_u64();
    let limit = number("limit")?;
    let burst = number("burst").unwrap_or(limit);
    Some(oracle::Quota { limit, window: number("window_ms")? * 1_000, burst })
}

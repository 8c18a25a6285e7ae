//! Judges responses by the commit times of changes and the promises of the manual. It shares no
//! code with the library.
//!
//! A change is committed at some instant between its beginning and its end, which the driver
//! reports. A response is decided at some instant between its request and its arrival. A state of a
//! key explains a response if it was current at the decision, or had been superseded for no longer
//! than the node may use it; that bound depends on the disturbances of the node at the time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{sleep, timeout},
};

use crate::{
    clock::{Clock, MILLI, Micros, SECOND, micros},
    random::Random,
    uses::{Audit, Ledger, Uses},
};

/// The settings of a node that determine bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) fresh: Duration,
    pub(crate) fresh_during_gap: Duration,
    pub(crate) stale_if_error: Duration,
    pub(crate) load_deadline: Duration,
    pub(crate) heartbeat: Duration,
}

/// The delay that scheduling may add to a bound, on a machine that runs the whole fleet.
pub(crate) const NOISE: Micros = 750 * MILLI;
/// A feed reconnects after 5 s at most; then all keys in use are confirmed.
const RECOVERY: Micros = 6 * SECOND;
/// How far before the end of a state quotas are considered when looking for the most generous one.
const MEMORY: Micros = 12 * SECOND;

/// The state of a key in its database row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    pub(crate) exists: bool,
    pub(crate) is_active: bool,
    pub(crate) is_revoked: bool,
    pub(crate) expires_at: Option<Micros>,
    pub(crate) consumer: String,
    pub(crate) scopes: BTreeSet<String>,
    pub(crate) plan: Option<String>,
    pub(crate) quota: Option<Quota>,
    pub(crate) metadata: Value,
}

/// `limit` units in `window`, and `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quota {
    pub(crate) limit: u64,
    pub(crate) window: Micros,
    pub(crate) burst: u64,
}

impl Quota {
    fn most_in(&self, time: Micros) -> u64 {
        self.burst + time * self.limit / self.window
    }
}

impl State {
    /// The state of a deleted row.
    pub(crate) fn gone() -> Self {
        Self {
            exists: false,
            is_active: false,
            is_revoked: false,
            expires_at: None,
            consumer: String::new(),
            scopes: BTreeSet::new(),
            plan: None,
            quota: None,
            metadata: Value::Null,
        }
    }
}

struct Version {
    state: State,
    begun: Micros,
    /// `None` while the driver does not know the outcome.
    done: Option<Micros>,
    how: String,
}

struct Key {
    id: String,
    text: String,
    versions: Vec<Version>,
    admitted: VecDeque<(Micros, Micros)>,
}

/// A quota of a plan, and the time in which it may have been in the database.
struct PlanVersion {
    quota: Quota,
    begun: Micros,
    /// When a later quota was known to be in the database.
    superseded: Option<Micros>,
}

/// A disturbance of a node, or of something it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Situation {
    /// The feed's connection ends: the node knows that it may miss changes.
    FeedBroken,
    /// The feed's connection is dead, and the node cannot have noticed yet.
    FeedSilent,
    /// Look-ups fail or are late.
    StoreAway,
    /// The process is frozen.
    Frozen,
    /// The process is ending, gone or just started.
    Down,
    /// Limits are not shared.
    RedisAway,
    /// The node's wall clock differs from the machine's.
    WallStepped,
}

#[derive(Clone, Debug)]
struct Disturbance {
    /// `None`: all nodes.
    node: Option<usize>,
    situation: Situation,
    begun: Micros,
    ended: Option<Micros>,
    what: String,
}

/// Ends a disturbance.
#[derive(Clone, Copy)]
pub(crate) struct DisturbanceId(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Read,
    Write,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) node: usize,
    pub(crate) key: usize,
    pub(crate) route: Route,
    pub(crate) sent: Micros,
    pub(crate) answered: Micros,
    /// `None`: the connection failed or ended.
    pub(crate) response: Option<Response>,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Option<Value>,
    pub(crate) retry_after: Option<u64>,
    pub(crate) remaining: Option<u64>,
}

/// The verdict of the oracle.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Judgement {
    pub(crate) judged: u64,
    pub(crate) by_status: BTreeMap<String, u64>,
    /// 5xx responses and lost connections, by the disturbance of the node.
    pub(crate) failures_by_cause: BTreeMap<String, u64>,
    /// By disturbance: the longest time that a superseded state was used, in milliseconds, and its
    /// bound.
    pub(crate) worst: BTreeMap<String, Worst>,
    /// The histories of the first few wrong responses.
    pub(crate) wrong: Vec<String>,
    pub(crate) wrong_count: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Worst {
    pub(crate) answers: u64,
    pub(crate) delay_ms: u64,
    pub(crate) bound_ms: u64,
}

#[derive(Clone)]
pub(crate) struct Oracle {
    clock: Clock,
    policy: Policy,
    nodes: u64,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    keys: Vec<Key>,
    plans: BTreeMap<&'static str, Vec<PlanVersion>>,
    disturbances: Vec<Disturbance>,
    /// When each pending change began.
    pending: BTreeMap<usize, Micros>,
    uses: Uses,
}

impl Oracle {
    pub(crate) fn new(clock: Clock, policy: Policy, nodes: usize) -> Self {
        Self { clock, policy, nodes: nodes as u64, known: Arc::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("the oracle's knowledge")
    }

    /// Adds a key, which clients use from now on.
    pub(crate) fn add(&self, id: String, text: String, state: State, begun: Micros) {
        let how = "issued".to_owned();
        let versions = vec![Version { state, begun, done: Some(self.clock.now()), how }];
        self.known().keys.push(Key { id, text, versions, admitted: VecDeque::new() });
    }

    /// Begins a change of the key. Until its outcome is known, no later response is judged.
    pub(crate) fn begin(&self, key: usize) {
        let now = self.clock.now();
        let earlier = self.known().pending.insert(key, now);
        assert!(earlier.is_none(), "one change of a key at a time");
    }

    /// Ends a change, with the resulting state of the key.
    pub(crate) fn done(&self, key: usize, state: State, how: &str) {
        let now = self.clock.now();
        let mut known = self.known();
        let begun = known.pending.remove(&key).expect("a change that has begun");
        let versions = &mut known.keys[key].versions;
        if versions.last().is_none_or(|last| last.state != state) {
            versions.push(Version { state, begun, done: Some(now), how: how.into() });
        }
    }

    /// Begins a change of the plan, which may have this quota from now on.
    pub(crate) fn begin_plan(&self, plan: &'static str, quota: Quota) {
        let version = PlanVersion { quota, begun: self.clock.now(), superseded: None };
        self.known().plans.entry(plan).or_default().push(version);
    }

    /// Ends a change of the plan: it has the latest quota and none of the earlier ones.
    pub(crate) fn plan_done(&self, plan: &'static str) {
        let now = self.clock.now();
        let mut known = self.known();
        let versions = known.plans.entry(plan).or_default();
        let before = versions.len().saturating_sub(1);
        for version in &mut versions[..before] {
            version.superseded.get_or_insert(now);
        }
    }

    /// The last known state of a key without a pending change.
    pub(crate) fn settled(&self, key: usize) -> Option<State> {
        let known = self.known();
        let is_pending = known.pending.contains_key(&key);
        let last = known.keys.get(key)?.versions.last()?;
        (!is_pending).then(|| last.state.clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.known().keys.len()
    }

    pub(crate) fn id(&self, key: usize) -> String {
        self.known().keys[key].id.clone()
    }

    /// A key for the next request: mostly one of the newest, sometimes one that ended long ago.
    pub(crate) fn pick(&self, random: &mut Random) -> (usize, String) {
        let known = self.known();
        let count = known.keys.len() as u64;
        let back = if random.one_in(10) { count } else { count.min(300) };
        let key = usize::try_from(count - 1 - random.below(back)).expect("an index");
        (key, known.keys[key].text.clone())
    }

    pub(crate) fn disturb(
        &self,
        node: Option<usize>,
        situation: Situation,
        what: &str,
    ) -> DisturbanceId {
        let begun = self.clock.now();
        let mut known = self.known();
        let what = what.to_owned();
        known.disturbances.push(Disturbance { node, situation, begun, ended: None, what });
        DisturbanceId(known.disturbances.len() - 1)
    }

    /// Moves the beginning of a disturbance to an earlier time.
    pub(crate) fn began(&self, disturbance: DisturbanceId, at: Micros) {
        self.known().disturbances[disturbance.0].begun = at;
    }

    pub(crate) fn end(&self, disturbance: DisturbanceId) {
        let now = self.clock.now();
        self.known().disturbances[disturbance.0].ended = Some(now);
    }

    /// A process of the node has ended: killed, or after it had written the rest to the ledger, unless
    /// the store was away.
    pub(crate) fn node_ended(&self, node: usize, is_killed: bool, written_until: Micros) {
        let now = self.clock.now();
        let mut known = self.known();
        let since = written_until.saturating_sub(RECOVERY);
        let is_away = |it: &Disturbance| it.situation == Situation::StoreAway;
        if is_killed || known.during(node, since, now).any(is_away) {
            known.uses.lose(node, written_until, now);
        }
    }

    /// Compares the ledger with what clients counted.
    pub(crate) fn audit(&self, hourly: &Ledger, daily: &Ledger) -> Audit {
        let known = self.known();
        let keys = known.keys.iter().map(|key| {
            let was_deleted = key.versions.iter().any(|version| !version.state.exists);
            (&*key.id, was_deleted)
        });
        known.uses.audit(keys, hourly, daily)
    }

    /// Judges responses until the channel closes.
    pub(crate) async fn judge(self, mut answers: UnboundedReceiver<Answer>) -> Judgement {
        let mut waiting = Vec::new();
        let mut judgement = Judgement::default();
        let mut is_open = true;
        while is_open || !waiting.is_empty() {
            match timeout(Duration::from_millis(50), answers.recv()).await {
                Ok(Some(answer)) => {
                    waiting.push(answer);
                    while let Ok(answer) = answers.try_recv() {
                        waiting.push(answer);
                    }
                }
                // The driver may still be determining the outcome of its last change.
                Ok(None) if !is_open => sleep(Duration::from_millis(50)).await,
                Ok(None) => is_open = false,
                Err(_) => {}
            }
            let mut known = self.known();
            // A disturbance of the machine itself is reported after it is over.
            let lag = if is_open { self.clock.now().saturating_sub(SECOND) } else { Micros::MAX };
            let horizon = known.pending.values().min().copied().unwrap_or(Micros::MAX).min(lag);
            let (ready, later): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|answer: &Answer| answer.answered < horizon);
            waiting = later;
            for answer in ready {
                known.judge(&answer, &self, &mut judgement);
            }
        }
        judgement
    }
}

impl Known {
    fn judge(&mut self, answer: &Answer, oracle: &Oracle, judgement: &mut Judgement) {
        judgement.judged += 1;
        self.uses.count(answer);
        let status = answer.response.as_ref().map(|response| response.status.to_string());
        let status = status.unwrap_or_else(|| "none".into());
        *judgement.by_status.entry(status).or_default() += 1;
        if let Err(problem) = self.explain(answer, oracle, judgement) {
            judgement.wrong_count += 1;
            if judgement.wrong.len() < 20 {
                judgement.wrong.push(self.story(answer, &problem));
            }
        }
    }

    fn explain(
        &mut self,
        answer: &Answer,
        oracle: &Oracle,
        judgement: &mut Judgement,
    ) -> Result<(), String> {
        let Some(response) = &answer.response else {
            return self.excuse(answer, "lost connection", judgement);
        };
        if response.status >= 500 {
            if response.status == 503 && response.retry_after.is_none() {
                return Err("503 without Retry-After".into());
            }
            return self.excuse(answer, &response.status.to_string(), judgement);
        }
        let versions = &self.keys[answer.key].versions;
        let mut why_not = Vec::new();
        let mut explained = None;
        // Newest first: a response explained by the current state used no superseded state.
        for (at, version) in versions.iter().enumerate().rev() {
            if version.begun > answer.answered {
                continue;
            }
            let superseded = versions.get(at + 1).and_then(|next| next.done);
            let latest = superseded.map(|at| (at, self.believed_until(answer.node, at, oracle)));
            if latest.as_ref().is_some_and(|(_, (until, _))| answer.sent > *until) {
                break;
            }
            match self.matches(&version.state, answer, response, oracle) {
                Ok(()) => {
                    explained = Some(latest);
                    break;
                }
                Err(problem) => why_not.push(format!("{}: {problem}", version.how)),
            }
        }
        let Some(latest) = explained else {
            return Err(format!("no state explains it: {}", why_not.join("; ")));
        };
        if let Some((superseded, (until, label))) = latest
            && answer.sent > superseded
        {
            let worst = judgement.worst.entry(label).or_default();
            worst.answers += 1;
            let delay_ms = (answer.sent - superseded) / MILLI;
            if delay_ms >= worst.delay_ms {
                (worst.delay_ms, worst.bound_ms) = (delay_ms, (until - superseded) / MILLI);
            }
        }
        if response.status == 200 {
            self.count(answer, oracle)?;
        }
        Ok(())
    }

    /// Checks that a disturbance explains a failure, and counts it.
    fn excuse(
        &self,
        answer: &Answer,
        failure: &str,
        judgement: &mut Judgement,
    ) -> Result<(), String> {
        let from = answer.sent.saturating_sub(RECOVERY);
        let causes = self.during(answer.node, from, answer.answered);
        let causes = causes.filter(|it| it.situation != Situation::RedisAway);
        let Some(cause) = causes.max_by_key(|it| it.begun) else {
            return Err(format!("{failure}, and nothing was wrong"));
        };
        let cause = format!("{failure}: {}", cause.what);
        *judgement.failures_by_cause.entry(cause).or_default() += 1;
        Ok(())
    }

    /// The disturbances of `node` at any time from `from` to `to`.
    fn during(&self, node: usize, from: Micros, to: Micros) -> impl Iterator<Item = &Disturbance> {
        self.disturbances.iter().filter(move |it| {
            it.node.is_none_or(|other| other == node)
                && it.begun <= to
                && it.ended.is_none_or(|ended| ended >= from)
        })
    }

    /// Until when `node` may use a state that was superseded at `at`, and the reason.
    fn believed_until(&self, node: usize, at: Micros, oracle: &Oracle) -> (Micros, String) {
        let policy = &oracle.policy;
        let gap = micros(policy.fresh_during_gap) + micros(policy.load_deadline);
        let silence = gap.max(2 * micros(policy.heartbeat));
        let outage = micros(policy.fresh + policy.stale_if_error);
        let (mut until, mut label) = (at + NOISE, "feed connected".to_owned());
        // A disturbance counts if it was active at the change, or began before the node had to know
        // of the change. One disturbance may lead into the next.
        loop {
            let from = at.saturating_sub(RECOVERY);
            let there: Vec<_> = self.during(node, from, until).collect();
            let has = |situation| there.iter().any(|it| it.situation == situation);
            let is_deaf = has(Situation::FeedBroken) || has(Situation::FeedSilent);
            let mut longest = (until, label.clone());
            let mut consider = |until: Micros, label: &str| {
                if until > longest.0 {
                    longest = (until, label.into());
                }
            };
            if has(Situation::FeedBroken) || has(Situation::Down) {
                consider(at + gap + NOISE, "feed broken");
            }
            if has(Situation::FeedSilent) {
                consider(at + silence + NOISE, "feed silent");
            }
            if is_deaf && has(Situation::StoreAway) {
                consider(at + outage + NOISE, "feed and store away");
            }
            let thawed = there.iter().filter(|it| it.situation == Situation::Frozen);
            if let Some(thawed) = thawed.map(|it| it.ended.unwrap_or(Micros::MAX / 2)).max() {
                // A frozen node notices within a second of running again.
                consider(thawed + SECOND + NOISE, "node stood still");
            }
            if longest.0 == until {
                return (until, label);
            }
            (until, label) = longest;
        }
    }

    fn matches(
        &self,
        state: &State,
        answer: &Answer,
        response: &Response,
        oracle: &Oracle,
    ) -> Result<(), String> {
        let expect = |statuses: &[u16]| {
            if statuses.contains(&response.status) {
                return Ok(());
            }
            Err(format!("{} would be one of {statuses:?}", response.status))
        };
        if !state.exists || state.is_revoked || !state.is_active {
            return expect(&[401]);
        }
        if response.status == 401 {
            return self.may_have_expired(state, answer, oracle);
        }
        if state.expires_at.is_some_and(|end| answer.sent > end + 20 * MILLI) {
            return expect(&[401]);
        }
        let is_limited = state.quota.is_some() || state.plan.is_some();
        if response.status == 429 && is_limited {
            return match response.retry_after {
                Some(1..) => Ok(()),
                _ => Err("429 without Retry-After".into()),
            };
        }
        if answer.route == Route::Write && !state.scopes.contains("orders:write") {
            return expect(&[403]);
        }
        expect(&[200])?;
        let body = response.body.as_ref().ok_or("200 without a body")?;
        let scopes: Vec<_> = state.scopes.iter().cloned().collect();
        let told = serde_json::json!({
            "consumer": state.consumer,
            "key": self.keys[answer.key].id,
            "scopes": scopes,
            "plan": state.plan,
            "metadata": state.metadata,
        });
        if told != *body {
            return Err(format!("handlers were told {body}, not {told}"));
        }
        if let (Some(remaining), Some(quota)) = (response.remaining, state.quota)
            && remaining >= quota.burst.max(1)
            && state.plan.is_none()
        {
            return Err(format!("{remaining} units remain of {quota:?}"));
        }
        Ok(())
    }

    /// A key may expire early by the duration of its look-up.
    fn may_have_expired(
        &self,
        state: &State,
        answer: &Answer,
        oracle: &Oracle,
    ) -> Result<(), String> {
        let end = state.expires_at.ok_or("the key does not expire")?;
        let mut early = micros(oracle.policy.load_deadline) + 20 * MILLI;
        // While the store is away, a wall clock that has run ahead makes keys expire.
        let from = answer.sent.saturating_sub(RECOVERY);
        if self
            .during(answer.node, from, answer.answered)
            .any(|it| matches!(it.situation, Situation::WallStepped))
        {
            early += 60 * SECOND;
        }
        if answer.answered + early >= end { Ok(()) } else { Err("it expires later".into()) }
    }

    /// Checks that no more passed than the most generous of the key's quotas allows.
    fn count(&mut self, answer: &Answer, oracle: &Oracle) -> Result<(), String> {
        let key = &self.keys[answer.key];
        let from = answer.sent.saturating_sub(MEMORY);
        let quotas = |from: Micros| {
            let versions = &key.versions;
            let believed = versions.iter().enumerate().filter(move |(at, version)| {
                let superseded = versions.get(at + 1).and_then(|next| next.done);
                version.begun <= answer.answered && superseded.is_none_or(|at| at + MEMORY >= from)
            });
            believed.map(|(_, version)| &version.state)
        };
        if quotas(from).any(|state| state.quota.is_none() && state.plan.is_none()) {
            self.keys[answer.key].admitted.clear();
            return Ok(());
        }
        let mut problem = None;
        for (later, (begun, _)) in key.admitted.iter().rev().enumerate() {
            let passed = later as u64 + 2;
            let time = answer.answered.saturating_sub(*begun);
            let most = quotas(*begun).flat_map(|state| {
                let plan = state.plan.as_deref().and_then(|plan| self.plans.get(plan));
                let of_plan = plan.into_iter().flatten().filter(|version| {
                    version.begun <= answer.answered
                        && version.superseded.is_none_or(|at| at + MEMORY >= *begun)
                });
                of_plan.map(|version| version.quota).chain(state.quota)
            });
            let most = most.map(|quota| quota.most_in(time)).max().unwrap_or_default();
            let from = begun.saturating_sub(RECOVERY);
            let mut disturbances = self.during(answer.node, from, answer.answered);
            // Each node admits the whole quota while it cannot reach Redis.
            let is_alone = disturbances
                .any(|it| matches!(it.situation, Situation::RedisAway | Situation::Frozen));
            let buckets = if is_alone { oracle.nodes + 1 } else { 1 };
            if passed > most * buckets {
                problem = Some(format!(
                    "{passed} requests passed in {} ms, of {most} in {buckets} buckets",
                    time / MILLI
                ));
                break;
            }
        }
        let admitted = &mut self.keys[answer.key].admitted;
        let at = admitted.partition_point(|(sent, _)| *sent <= answer.sent);
        admitted.insert(at, (answer.sent, answer.answered));
        if admitted.len() > 100 {
            admitted.pop_front();
        }
        problem.map_or(Ok(()), Err)
    }

    fn story(&self, answer: &Answer, problem: &str) -> String {
        let key = &self.keys[answer.key];
        let ms = |at: Micros| at / MILLI;
        let mut story = format!(
            "key {} on node {}: asked at {} ms, answered at {} ms: {:?}\n  {problem}\n",
            key.id,
            answer.node,
            ms(answer.sent),
            ms(answer.answered),
            answer.response,
        );
        for version in key.versions.iter().rev().take(5).rev() {
            let done = version.done.map(ms);
            let Version { how, state, begun, .. } = version;
            story += &format!("  {how} from {} ms to {done:?} ms: {state:?}\n", ms(*begun));
        }
        let from = answer.sent.saturating_sub(MEMORY);
        for it in self.during(answer.node, from, answer.answered) {
            let Disturbance { situation, what, begun, .. } = it;
            let ended = it.ended.map(ms);
            story += &format!("  {situation:?} ({what}) from {} ms to {ended:?} ms\n", ms(*begun));
        }
        story
    }
}

#[cfg(test)]
#[path = "oracle_tests.rs"]
mod tests;

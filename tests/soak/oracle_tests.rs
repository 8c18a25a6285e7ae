//! The oracle accepts right responses, and rejects each kind of wrong response.

use serde_json::json;

use super::*;

const NODE: usize = 0;

fn state() -> State {
    State {
        exists: true,
        is_active: true,
        consumer: "acme".into(),
        scopes: BTreeSet::from(["orders:read".to_owned()]),
        metadata: json!({ "stamp": 1 }),
        ..State::gone()
    }
}

fn told(state: &State) -> Value {
    let scopes: Vec<_> = state.scopes.iter().collect();
    let State { consumer, plan, metadata, .. } = state;
    json!({
        "consumer": consumer, "key": "id", "scopes": scopes, "plan": plan, "metadata": metadata,
    })
}

/// The history of one key, and the disturbances of the nodes.
struct Story {
    oracle: Oracle,
    known: Known,
}

impl Story {
    /// A key with these states, each from its instant in milliseconds on.
    fn of(states: impl IntoIterator<Item = (u64, State)>) -> Self {
        let version = |(at, state)| {
            let at = at * MILLI;
            Version { state, begun: at, done: Some(at), how: "changed".into() }
        };
        let versions = states.into_iter().map(version).collect();
        let (id, text) = ("id".into(), String::new());
        let keys = vec![Key { id, text, versions, admitted: VecDeque::new() }];
        let oracle = Oracle::new(Clock::start(), crate::node::POLICY, 3);
        Self { oracle, known: Known { keys, ..Known::default() } }
    }

    fn disturbed(mut self, situation: Situation, begun: u64, ended: u64) -> Self {
        let (begun, ended) = (begun * MILLI, Some(ended * MILLI));
        let what = "a fault".to_owned();
        let disturbance = Disturbance { node: Some(NODE), situation, begun, ended, what };
        self.known.disturbances.push(disturbance);
        self
    }

    /// Judges the response to a request that was sent at this millisecond and took one millisecond.
    fn judge(&mut self, at: u64, route: Route, response: Option<Response>) -> bool {
        let (sent, answered) = (at * MILLI, (at + 1) * MILLI);
        let answer = Answer { node: NODE, key: 0, route, sent, answered, response };
        let mut judgement = Judgement::default();
        self.known.judge(&answer, &self.oracle, &mut judgement);
        judgement.wrong_count == 0
    }

    fn admits(&mut self, at: u64, state: &State) -> bool {
        let body = Some(told(state));
        let response = Response { status: 200, body, retry_after: None, remaining: None };
        self.judge(at, Route::Read, Some(response))
    }

    fn refuses(&mut self, at: u64, status: u16) -> bool {
        let response = Response { status, body: None, retry_after: Some(1), remaining: None };
        self.judge(at, Route::Read, Some(response))
    }
}

fn revoked() -> State {
    State { is_revoked: true, ..state() }
}

#[test]
fn what_is_true_is_right_and_what_never_was_is_wrong() {
    let mut story = Story::of([(0, state())]);
    assert!(story.admits(5_000, &state()));
    assert!(!story.refuses(5_000, 401), "a valid key is unknown");
    assert!(!story.refuses(5_000, 429), "a limit that the key does not have");
    assert!(!story.refuses(5_000, 403), "a scope that the route does not need");
    let another = State { consumer: "other".into(), ..state() };
    assert!(!story.admits(5_000, &another), "another consumer");
    let wider = State { scopes: BTreeSet::from(["admin".to_owned()]), ..state() };
    assert!(!story.admits(5_000, &wider), "another scope");
    let forbidden = Response { status: 403, body: None, retry_after: None, remaining: None };
    assert!(story.judge(5_000, Route::Write, Some(forbidden)));
    let body = Some(told(&state()));
    let let_in = Response { status: 200, body, retry_after: None, remaining: None };
    assert!(!story.judge(5_000, Route::Write, Some(let_in)), "without the scope");
}

#[test]
fn a_revoked_key_may_be_let_in_for_the_bound_of_the_situation_and_no_longer() {
    let states = || [(0, state()), (20_000, revoked())];
    let noise = NOISE / MILLI;
    let longest = |story: Story| {
        let mut story = story;
        (0..30_000).rev().find(|after| story.admits(20_000 + after, &state())).unwrap_or_default()
    };
    assert_eq!(longest(Story::of(states())), noise);
    let broken = Story::of(states()).disturbed(Situation::FeedBroken, 19_000, 40_000);
    assert_eq!(longest(broken), 3_000 + noise);
    let long_over = Story::of(states()).disturbed(Situation::FeedBroken, 1_000, 13_999);
    assert_eq!(longest(long_over), noise);
    let silent = Story::of(states()).disturbed(Situation::FeedSilent, 19_000, 40_000);
    assert_eq!(longest(silent), 3_000 + noise);
    let store = Story::of(states()).disturbed(Situation::StoreAway, 19_000, 40_000);
    assert_eq!(longest(store), noise, "the change is told, and then nothing old is believed");
    let both = Story::of(states()).disturbed(Situation::FeedBroken, 19_000, 40_000).disturbed(
        Situation::StoreAway,
        19_000,
        40_000,
    );
    assert_eq!(longest(both), 7_000 + noise);
    let frozen = Story::of(states()).disturbed(Situation::Frozen, 19_000, 24_000);
    assert_eq!(longest(frozen), 5_000 + noise);
    let redis = Story::of(states()).disturbed(Situation::RedisAway, 19_000, 40_000);
    assert_eq!(longest(redis), noise);
}

#[test]
fn a_change_may_be_seen_from_its_beginning_on() {
    let mut story = Story::of([(0, state()), (20_000, revoked())]);
    story.known.keys[0].versions[1].done = Some(21_000 * MILLI);
    assert!(!story.refuses(19_000, 401));
    assert!(story.refuses(20_500, 401));
    assert!(story.admits(20_500, &state()));
}

#[test]
fn a_key_ends_when_it_expires() {
    let mut story = Story::of([(0, State { expires_at: Some(10 * SECOND), ..state() })]);
    assert!(story.admits(9_999, &state()));
    assert!(!story.admits(10_100, &state()));
    assert!(story.refuses(10_000, 401));
    assert!(story.refuses(8_100, 401), "as much earlier as its look-up took");
    assert!(!story.refuses(7_900, 401));
}

#[test]
fn failures_need_a_cause() {
    let mut story = Story::of([(0, state())]);
    assert!(!story.refuses(20_000, 503));
    assert!(!story.judge(20_000, Route::Read, None), "a lost connection");
    for situation in [Situation::StoreAway, Situation::Down, Situation::Frozen] {
        let mut story = Story::of([(0, state())]).disturbed(situation, 19_000, 21_000);
        assert!(story.refuses(20_000, 503));
        assert!(!story.refuses(18_000, 503));
        assert!(!story.refuses(28_000, 503));
    }
    let mut redis = Story::of([(0, state())]).disturbed(Situation::RedisAway, 19_000, 21_000);
    assert!(!redis.refuses(20_000, 503), "no request fails for a Redis that is away");
    let mut both = Story::of([(0, state())]).disturbed(Situation::StoreAway, 18_000, 19_000);
    both = both.disturbed(Situation::RedisAway, 19_900, 21_000);
    assert!(both.refuses(20_000, 503), "the store was away, whatever came later");
    let mut silent = Story::of([(0, state())]).disturbed(Situation::StoreAway, 19_000, 21_000);
    let response = Response { status: 503, body: None, retry_after: None, remaining: None };
    assert!(!silent.judge(20_000, Route::Read, Some(response)), "without Retry-After");
}

#[test]
fn no_more_passes_than_the_quota_allows() {
    let quota = Some(Quota { limit: 10, window: SECOND, burst: 3 });
    let limited = State { quota, ..state() };
    let mut story = Story::of([(0, limited.clone())]);
    assert!((0..3).all(|at| story.admits(5_000 + at, &limited)), "a burst");
    assert!(!story.admits(5_003, &limited), "more than that");
    let mut story = Story::of([(0, limited.clone())]);
    assert!((0..3).all(|at| story.admits(5_000 + at, &limited)));
    assert!(story.admits(5_100, &limited), "one comes back every 100 ms");
    assert!(!story.admits(5_110, &limited));
    let mut story = Story::of([(0, limited.clone())]);
    let mut alone = Story::of([(0, limited.clone())]).disturbed(Situation::RedisAway, 0, 9_000);
    let passed =
        |story: &mut Story| (0..20).take_while(|at| story.admits(5_000 + at, &limited)).count();
    assert_eq!((passed(&mut story), passed(&mut alone)), (3, 12));
    assert!(story.refuses(5_500, 429));
}

#[test]
fn no_more_passes_than_the_quotas_that_a_plan_has_had_lately_allow() {
    let on_plan = State { plan: Some("pro".into()), ..state() };
    let quota = |burst| Quota { limit: 1, window: SECOND, burst };
    let passed = |versions: Vec<PlanVersion>| {
        let mut story = Story::of([(0, on_plan.clone())]);
        story.known.plans.insert("pro", versions);
        (0..20).take_while(|at| story.admits(30_000 + at, &on_plan)).count()
    };
    let version = |burst, begun, superseded: Option<u64>| PlanVersion {
        quota: quota(burst),
        begun: begun * MILLI,
        superseded: superseded.map(|at| at * MILLI),
    };
    assert_eq!(passed(vec![version(3, 0, None)]), 3);
    assert_eq!(passed(vec![version(5, 0, Some(29_000)), version(3, 28_000, None)]), 5);
    assert_eq!(passed(vec![version(5, 0, Some(10_000)), version(3, 9_000, None)]), 3);
}

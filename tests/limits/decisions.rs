//! What a key is told while its quotas change, case by case.
//!
//! The invariants in `limiter_contract` bound what passes from above, and say that in the end
//! everything comes back. How soon it does after a change of quotas is a matter of choice, and
//! `decisions.txt` records the choice. A change of the limiter that changes this file is read line
//! by line: `UPDATE_DECISIONS=1 cargo test --all-features --test limits decisions`.

use std::{collections::VecDeque, fmt::Write, fs, num::NonZeroU32, sync::Arc, time::Duration};

use tower_api_key::rate_limit::{
    Decision, LocalRateLimiter, Quota, RateLimiter, RateLimits,
    port::{Buckets, Check, Decisions, Subject},
};

const CASES: u64 = 300;
const STEPS: u32 = 24;
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/limits/decisions.txt");

/// `SplitMix64`: the same numbers everywhere and always.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (bits ^ (bits >> 31)) % end
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        let at = self.below(all.len() as u64);
        all[usize::try_from(at).unwrap()].clone()
    }

    fn number(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(end.into())).unwrap()
    }
}

/// A quota and how it is written here.
fn quota(random: &mut Random) -> (Quota, String) {
    let limit = random.of(&[1, 2, 3, 4, 5, 6, 12, 32, 40]);
    let millis = random.of(&[100, 200, 300, 320, 1_000]);
    let window = Duration::from_millis(millis);
    let burst = 1 + random.number(limit);
    let (quota, text) = match random.below(5) {
        0 => (Quota::per(limit, window), format!("{limit}/{millis}ms")),
        1 => {
            let quota = Quota::per(limit, window).and_then(|quota| quota.burst(burst));
            (quota, format!("{limit}/{millis}ms burst {burst}"))
        }
        2 => (Quota::at_most(limit, window), format!("at most {limit}/{millis}ms")),
        _ => (Quota::sliding(limit, window), format!("sliding {limit}/{millis}ms")),
    };
    let quota = quota.unwrap();
    if random.below(3) == 0 {
        (quota.per_consumer(), format!("{text} shared"))
    } else {
        (quota, text)
    }
}

fn list(random: &mut Random) -> (RateLimits, String) {
    let (quotas, texts): (Vec<_>, Vec<_>) = (0..=random.below(3)).map(|_| quota(random)).unzip();
    let named = |(at, quota): (usize, Quota)| quota.named(format!("q{at}")).unwrap();
    let limits = RateLimits::new(quotas.into_iter().enumerate().map(named)).unwrap();
    (limits, texts.join(", "))
}

fn decided(check: Check) -> Decisions {
    let Check::Ready(decisions) = check else { panic!("{check:?}") };
    decisions
}

/// `3+25ms`: three units are left, and the next comes in 25 ms.
fn told(decision: &Decision) -> String {
    let denied = if decision.is_admitted() { "" } else { "no " };
    if decision.next_unit_in() == Duration::MAX {
        return format!("{denied}{}+never", decision.remaining());
    }
    format!("{denied}{}+{:?}", decision.remaining(), decision.next_unit_in())
}

fn all_told(decisions: &Decisions) -> String {
    decisions.iter().map(told).collect::<Vec<_>>().join(" ")
}

/// The lists of a case, and a line for each step.
fn case(number: u64) -> String {
    let mut random = Random(number);
    let limiter = LocalRateLimiter::new();
    let lists: Vec<_> = (0..=random.below(4)).map(|_| list(&mut random)).collect();
    let mut text = format!("case {number}\n");
    for (at, (_, quotas)) in lists.iter().enumerate() {
        writeln!(text, "  list {at}: {quotas}").unwrap();
    }
    let mut now = Duration::from_secs(1_000);
    let mut loaded: VecDeque<(String, Arc<dyn Buckets>)> = VecDeque::new();
    let mut last = None;
    for _ in 0..STEPS {
        let step = random.below(16);
        if loaded.is_empty() || step < 3 {
            let (key, at) = (random.below(2), random.number(u32::try_from(lists.len()).unwrap()));
            let (limits, _) = &lists[usize::try_from(at).unwrap()];
            let subject = Subject::of_key("acme", key.into());
            loaded.push_back((format!("{key}.{at}"), limiter.buckets(&subject, limits, now)));
            // The cache forgets, too.
            if loaded.len() > 3 {
                loaded.pop_front();
            }
            continue;
        }
        let (name, buckets) = random.of(loaded.make_contiguous());
        let line = match step {
            3..=6 => {
                let mut admitted = 0;
                let decisions = loop {
                    let decisions = decided(buckets.take(NonZeroU32::MIN, now));
                    if !decisions.is_admitted() {
                        break decisions;
                    }
                    admitted += 1;
                };
                format!("{name} takes {admitted}: {}", all_told(&decisions))
            }
            7 | 8 => {
                let units = NonZeroU32::new(1 + random.number(4)).unwrap();
                let decisions = decided(buckets.take(units, now));
                last = decisions.is_admitted().then(|| (Arc::clone(&buckets), units));
                format!("{name} wants {units}: {}", all_told(&decisions))
            }
            9 => match last.take() {
                Some((buckets, units)) => {
                    buckets.give_back(units, now);
                    format!("{units} given back: {}", all_told(&decided(buckets.peek(now))))
                }
                None => continue,
            },
            10 => {
                let units = NonZeroU32::new(1 + random.number(6)).unwrap();
                buckets.charge(units, now);
                format!("{name} owes {units}: {}", all_told(&decided(buckets.peek(now))))
            }
            11 => {
                limiter.sweep(now);
                format!("swept: {}", limiter.len())
            }
            _ => {
                let millis =
                    random.of(&[1, 3, 10, 25, 50, 100, 101, 150, 300, 350, 1_100, 650_000]);
                now += Duration::from_millis(millis);
                continue;
            }
        };
        writeln!(text, "  {} ms: {line}", now.as_millis() - 1_000_000).unwrap();
    }
    text
}

#[test]
fn a_key_is_told_the_same_as_ever_while_its_quotas_change() {
    let found: String = (0..CASES).map(case).collect();
    if std::env::var_os("UPDATE_DECISIONS").is_some() {
        fs::write(FILE, &found).unwrap();
    }
    let known = fs::read_to_string(FILE).unwrap();
    for (known, found) in known.split("case ").zip(found.split("case ")) {
        assert_eq!(known, found, "a case of {FILE}");
    }
    assert_eq!(known.len(), found.len(), "cases of {FILE}");
}

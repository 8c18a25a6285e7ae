//! What limiters admit: exactly what they should. One suite for all limiters.

use std::{future::Future, num::NonZeroU32, sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};
use tower_api_key::rate_limit::{Algorithm, Decision, LocalRateLimiter, Quota, RateLimiter};

use crate::simulator::{
    Simulator,
    changes::{check, scenario},
    requests::{
        Act, END, Key, Requests, Script, gap, quotas, requests, script, small, units, wait,
    },
};

const NANO: Duration = Duration::from_nanos(1);

/// Runs every fact on every limiter.
macro_rules! contract {
    (
        $limiter:ident, $new:expr, $scripts:literal scripts,
        $cases:literal cases of up to $most:literal requests in $windows:literal windows
    ) => {
        mod $limiter {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases($scripts))]

                #[test]
                fn it_does_as_the_simulator(script in script(), start in 0..u64::MAX / 8) {
                    run(super::it_does_as_the_simulator(&$new, script, Duration::from_nanos(start)));
                }
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases($cases))]

                #[test]
                fn whoever_waits_as_told_is_admitted_and_nobody_sooner(
                    quotas in quotas(), requests in requests($most),
                ) {
                    run(super::whoever_waits_as_told_is_admitted_and_nobody_sooner(&$new, &quotas, requests));
                }

                #[test]
                fn no_window_holds_more_than_promised(
                    quotas in quotas(), requests in requests($most), odd in 1..5_000_u32,
                ) {
                    run(super::no_window_holds_more_than_promised(&$new, &quotas, requests, odd));
                }

                #[test]
                fn a_client_that_always_wants_more_gets_all_there_is(quota in small($most), start in 0..u64::MAX / 8) {
                    let start = Duration::from_nanos(start);
                    run(super::a_client_that_always_wants_more_gets_all_there_is(&$new, &quota, start, $windows));
                }

                #[test]
                fn what_is_denied_changes_nothing(quotas in quotas(), requests in requests($most)) {
                    run(super::what_is_denied_changes_nothing(&$new, &quotas, requests));
                }

                #[test]
                fn a_peek_tells_what_a_take_would_and_changes_nothing(
                    quotas in quotas(), requests in requests($most),
                ) {
                    run(super::a_peek_tells_what_a_take_would_and_changes_nothing(&$new, &quotas, requests));
                }

                #[test]
                fn what_is_given_back_at_once_was_never_taken(
                    quotas in quotas(), requests in requests($most),
                ) {
                    run(super::what_is_given_back_at_once_was_never_taken(&$new, &quotas, requests));
                }

                #[test]
                fn what_is_given_back_later_makes_room_for_as_much(
                    quotas in quotas(), requests in requests($most),
                ) {
                    run(super::what_is_given_back_later_makes_room_for_as_much(&$new, &quotas, requests));
                }

                #[test]
                fn what_is_charged_is_waited_for(quota in small($most), units in units()) {
                    run(super::what_is_charged_is_waited_for(&$new, &quota, units));
                }

                #[test]
                fn nothing_but_time_refills_a_bucket(quotas in quotas(), others in quotas()) {
                    run(super::nothing_but_time_refills_a_bucket(&$new, &quotas, &others));
                }
            }

            #[test]
            fn the_extremes_are_quotas_like_others() {
                run(super::the_extremes_are_quotas_like_others(&$new));
            }
        }
    };
}

contract!(local, LocalRateLimiter::new(), 500 scripts, 500 cases of up to 100 requests in 20 windows);
// Each decision is a round trip. Short scenarios are enough to use a bucket up, wait and refill.
contract!(redis, crate::redis_limiter::limiter(), 100 scripts, 64 cases of up to 16 requests in 4 windows);

fn run(fact: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(fact);
}

async fn it_does_as_the_simulator(limiter: &dyn RateLimiter, script: Script, start: Duration) {
    let mut simulator = Simulator::new();
    let mut key = Key::new(limiter, &script.quotas, start);
    simulator.buckets(&key.quotas, start);
    let (mut now, mut told, mut taken, mut renamed) = (start, Duration::ZERO, None, 0);
    for (gap, act) in script.acts {
        now = (now + gap.length(&key, told)).min(END);
        match act {
            Act::Take(units) => {
                let decisions = key.take(units, now).await;
                assert_eq!(
                    decisions,
                    simulator.take(&key.quotas, units, now),
                    "{units} at {now:?}"
                );
                taken = decisions.is_admitted().then_some(units);
                told = wait(&decisions);
            }
            Act::Peek => {
                assert_eq!(key.peek(now).await, simulator.peek(&key.quotas, now), "at {now:?}");
            }
            Act::Charge(units) => {
                key.buckets.charge(units, now);
                simulator.charge(&key.quotas, units, now);
            }
            Act::GiveBack => {
                if let Some(units) = taken.take() {
                    key.buckets.give_back(units, now);
                    simulator.give_back(&key.quotas, units, now);
                }
            }
            Act::AskAgain => key.ask_again(limiter, now),
            Act::Sweep => limiter.sweep(now),
            Act::Rename => {
                let before = key.quotas.clone();
                renamed += 1;
                let name = |quota: &Quota| {
                    let (stem, _) =
                        quota.name().split_once('-').unwrap_or_else(|| (quota.name(), ""));
                    quota.clone().named(format!("{stem}-{renamed}")).unwrap()
                };
                let quotas: Vec<_> = before.iter().map(name).collect();
                key.change(limiter, &quotas, now);
                simulator.rename(&before, &key.quotas);
            }
        }
    }
}

async fn whoever_waits_as_told_is_admitted_and_nobody_sooner(
    limiter: &dyn RateLimiter,
    quotas: &[Quota],
    requests: Requests,
) {
    let mut now = Duration::ZERO;
    let key = Key::new(limiter, quotas, now);
    for (gap, units) in requests {
        now = (now + gap.length(&key, Duration::ZERO)).min(END);
        let decisions = key.take(units, now).await;
        if decisions.is_admitted() {
            continue;
        }
        let most = quotas.iter().map(Quota::burst_size).min();
        let wait = wait(&decisions);
        assert!(wait > Duration::ZERO);
        assert_eq!(Some(units) > most, wait == Duration::MAX, "{wait:?}");
        if now + (wait.min(END)) < END {
            assert!(!key.admits(units, now + wait - NANO).await, "sooner than after {wait:?}");
            now += wait;
            assert!(key.admits(units, now).await, "not after {wait:?}");
        }
    }
}

async fn no_window_holds_more_than_promised(
    limiter: &dyn RateLimiter,
    quotas: &[Quota],
    requests: Requests,
    odd: u32,
) {
    let (mut now, mut told, mut admitted) = (Duration::ZERO, Duration::ZERO, Vec::new());
    let key = Key::new(limiter, quotas, now);
    for (gap, units) in requests {
        now = (now + gap.length(&key, told)).min(END);
        let decisions = key.take(units, now).await;
        told = wait(&decisions);
        if decisions.is_admitted() {
            admitted.push((now, u64::from(units.get())));
        }
        // Half the time, everything that is left.
        if units.get() == 1 {
            admitted.push((now, key.drain(now).await));
        }
    }
    for quota in quotas {
        let window = quota.window();
        for window in [window, 2 * window, window / 1_000 * odd, quota.interval(), NANO] {
            assert_promised(quota, &admitted, window);
        }
    }
}

#[track_caller]
fn assert_promised(quota: &Quota, admitted: &[(Duration, u64)], window: Duration) {
    let (mut from, mut held) = (0, 0);
    for (at, units) in admitted {
        held += units;
        while admitted[from].0 + window < *at {
            held -= admitted[from].1;
            from += 1;
        }
        let most = quota.most_in(window);
        assert!(held <= most, "{held} of at most {most} in {window:?} until {at:?}: {quota:?}");
    }
}

async fn a_client_that_always_wants_more_gets_all_there_is(
    limiter: &dyn RateLimiter,
    quota: &Quota,
    start: Duration,
    windows: u32,
) {
    let key = Key::new(limiter, std::slice::from_ref(quota), start);
    let (mut now, mut taken) = (start, key.drain(start).await);
    let elapsed = quota.window() * windows;
    loop {
        let next = now + key.peek(now).await[0].next_unit_in();
        if next > start + elapsed {
            break;
        }
        assert!(next > now, "there is a unit at once, and it was not given: {quota:?}");
        now = next;
        taken += key.drain(now).await;
    }
    match quota.algorithm() {
        Algorithm::Gcra => assert_eq!(taken, quota.most_in(elapsed)),
        // One slot of 33 is lost. The total covers the windows and the first burst before them.
        _ => {
            let (limit, windows) = (u64::from(quota.limit()), u64::from(windows));
            assert_eq!(taken, limit * (windows * 32 / 33 + 1), "{quota:?}");
            assert!(taken * 1_000 >= windows * limit * 969);
        }
    }
}

async fn what_is_denied_changes_nothing(
    limiter: &dyn RateLimiter,
    quotas: &[Quota],
    requests: Requests,
) {
    let mut now = Duration::ZERO;
    let [asked, spared] = [(); 2].map(|()| Key::new(limiter, quotas, now));
    for (gap, units) in requests {
        now = (now + gap.length(&asked, Duration::ZERO)).min(END);
        let decisions = asked.take(units, now).await;
        if decisions.is_admitted() {
            assert_eq!(decisions, spared.take(units, now).await);
        }
        assert_eq!(asked.peek(now).await, spared.peek(now).await, "{decisions:?}");
    }
}

async fn a_peek_tells_what_a_take_would_and_changes_nothing(
    limiter: &dyn RateLimiter,
    quotas: &[Quota],
    requests: Requests,
) {
    let (mut now, mut told) = (Duration::ZERO, Duration::ZERO);
    let [peeked, spared] = [(); 2].map(|()| Key::new(limiter, quotas, now));
    for (gap, units) in requests {
        now = (now + gap.length(&peeked, told)).min(END);
        let peek = peeked.peek(now).await;
        assert_eq!(peek, peeked.peek(now).await);
        let decisions = peeked.take(units, now).await;
        assert_eq!(decisions, spared.take(units, now).await);
        let fits = peek.iter().all(|decision| decision.remaining() >= units.get());
        assert_eq!(decisions.is_admitted(), fits, "{peek:?}");
        let taken = if fits { units.get() } else { 0 };
        for (peek, decision) in peek.iter().zip(decisions.iter()) {
            assert_eq!(decision.remaining(), peek.remaining() - taken);
        }
        if units.get() == 1 && !fits {
            assert_eq!(peek, decisions);
        }
        told = wait(&decisions);
    }
}

async fn what_is_given_back_at_once_was_never_taken(
    limiter: &dyn RateLimiter,
    quotas: &[Quota],
    requests: Requests,
) {
    let (mut now, mut told) = (Duration::ZERO, Duration::ZERO);
    let [generous, spared] = [(); 2].map(|()| Key::new(limiter, quotas, now));
    for (turn, (gap, units)) in requests.into_iter().enumerate() {
        now = (now + gap.length(&generous, told)).min(END);
        let decisions = generous.take(units, now).await;
        told = wait(&decisions);
        if turn % 2 == 0 {
            assert_eq!(decisions, spared.take(units, now).await);
        } else if decisions.is_admitted() {
            generous.buckets.give_back(units, now);
        }
        assert_eq!(generous.peek(now).await, spared.peek(now).await);
    }
}

/// Checks that in any window, the units taken minus those given back keep the promise.
async fn what_is_given_back_later_makes_room_for_as_much(
    limiter: &dyn RateLimiter,
    quotas: &[Quota],
    requests: Requests,
) {
    let (mut now, mut told) = (Duration::ZERO, Duration::ZERO);
    let key = Key::new(limiter, quotas, now);
    let (mut taken, mut returned) = (Vec::new(), Vec::new());
    for (turn, (gap, units)) in requests.into_iter().enumerate() {
        now = (now + gap.length(&key, told)).min(END);
        let before = key.peek(now).await;
        let decisions = key.take(units, now).await;
        told = wait(&decisions);
        if decisions.is_admitted() {
            taken.push((now, u64::from(units.get())));
            if turn % 3 == 0 {
                now = (now + gap.length(&key, told)).min(END);
                let before = key.peek(now).await;
                key.buckets.give_back(units, now);
                returned.push((now, u64::from(units.get())));
                let after = key.peek(now).await;
                for ((quota, before), after) in
                    key.quotas.iter().zip(before.iter()).zip(after.iter())
                {
                    let most = before.remaining().saturating_add(units.get());
                    let most = most.min(quota.burst_size().get());
                    assert!((before.remaining()..=most).contains(&after.remaining()));
                }
            }
        } else {
            let after = key.peek(now).await;
            assert_eq!(before, after);
        }
    }
    for quota in quotas {
        for window in [quota.window(), quota.interval(), Duration::ZERO] {
            for (from, _) in &taken {
                let held = |of: &[(Duration, u64)]| -> u64 {
                    let within = of.iter().filter(|(at, _)| at >= from && *at <= *from + window);
                    within.map(|(_, units)| units).sum()
                };
                let most = quota.most_in(window) + held(&returned);
                assert!(held(&taken) <= most, "{} of at most {most}", held(&taken));
            }
        }
    }
}

async fn what_is_charged_is_waited_for(
    limiter: &dyn RateLimiter,
    quota: &Quota,
    units: NonZeroU32,
) {
    let now = quota.window() / 7;
    let key = Key::new(limiter, std::slice::from_ref(quota), now);
    let all = quota.burst_size();
    key.buckets.charge(units, now);
    assert_eq!(key.peek(now).await[0].remaining(), all.get().saturating_sub(units.get()));
    assert_eq!(key.drain(now).await, u64::from(all.get().saturating_sub(units.get())));

    let wait = wait(&key.take(NonZeroU32::MIN, now).await);
    let one = quota.interval();
    match quota.algorithm() {
        Algorithm::Gcra => {
            let owed = units.get().saturating_sub(all.get()).min(all.get());
            assert_eq!(wait, one * (owed + 1));
        }
        _ => assert!(wait > quota.window() && wait <= one),
    }
    assert!(!key.admits(NonZeroU32::MIN, now + wait - NANO).await);
    assert!(key.admits(NonZeroU32::MIN, now + wait).await);
}

async fn nothing_but_time_refills_a_bucket(
    limiter: &dyn RateLimiter,
    quotas: &[Quota],
    others: &[Quota],
) {
    let now = Duration::from_secs(1);
    let mut key = Key::new(limiter, quotas, now);
    key.drain(now).await;
    let held = Arc::clone(&key.buckets);
    for turn in 0..6 {
        match turn % 3 {
            0 => key.change(limiter, others, now),
            1 => key.change(limiter, quotas, now),
            _ => {}
        }
        if turn == 3 {
            limiter.sweep(now);
        }
        if turn % 3 != 0 {
            assert!(!key.admits(NonZeroU32::MIN, now).await);
        }
    }
    drop(held);
    drop(std::mem::replace(&mut key.buckets, Key::new(limiter, quotas, now).buckets));
    limiter.sweep(now);
    key.change(limiter, quotas, now);
    assert!(!key.admits(NonZeroU32::MIN, now).await, "it was swept");
}

async fn the_extremes_are_quotas_like_others(limiter: &dyn RateLimiter) {
    let one = NonZeroU32::MIN;
    let years = |years: u32| Duration::from_secs(365 * 86_400) * years;
    let millis = Duration::from_millis;
    let quotas = [
        Quota::sliding(1, millis(100)),
        Quota::sliding(u32::MAX / 2, millis(100)),
        Quota::sliding(u32::MAX / 2, years(146)),
        Quota::sliding(1, years(146)),
        Quota::per(1, years(146)),
        Quota::at_most(1, years(145)),
        Quota::per_second(1_000_000_000),
        Quota::per(1, millis(1)).and_then(|quota| quota.burst(u32::MAX)),
    ];
    for quota in quotas.map(Result::unwrap) {
        for now in [Duration::ZERO, years(99), Duration::from_nanos(u64::MAX), Duration::MAX] {
            let key = Key::new(limiter, std::slice::from_ref(&quota), now);
            let all = quota.burst_size();
            assert_eq!(key.drain(now).await, u64::from(all.get()), "{quota:?} at {now:?}");
            assert!(!key.admits(one, now).await);
            assert!(!key.admits(NonZeroU32::MAX, now).await);
            for _ in 0..3 {
                key.buckets.charge(NonZeroU32::MAX, now);
            }
            assert!(!key.admits(one, now).await);
            let owed = key.peek(now).await[0].next_unit_in();
            key.buckets.give_back(all, now);
            assert!(!key.admits(one, now).await, "{quota:?} owed as much");
            key.buckets.give_back(one, now);
            assert!(key.admits(one, now).await, "{quota:?} owed more");
            key.buckets.give_back(NonZeroU32::MAX, now);
            key.buckets.give_back(NonZeroU32::MAX, now);
            assert_eq!(key.peek(now).await[0], Decision::admit(all.get(), Duration::ZERO));
            if now.saturating_add(owed) < END {
                assert!(owed >= quota.interval() / 33 * 32, "{quota:?}: {owed:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn no_change_of_quotas_lets_more_through(scenario in scenario()) {
        run(check(&LocalRateLimiter::new(), &scenario));
    }
}

/// Facts about in-process limiters: they decide by the times passed to their calls, in any order of
/// the calls.
mod late {
    use super::*;

    proptest! {
        #[test]
        fn no_window_holds_more_than_promised_by_the_times_that_requests_bring(
            quotas in quotas(),
            requests in vec((gap(), units(), 0..1_000_u32), 1..200),
        ) {
            run(async {
                let limiter = LocalRateLimiter::new();
                let (mut now, mut admitted) = (Duration::ZERO, Vec::new());
                let key = Key::new(&limiter, &quotas, now);
                // The lateness that a sliding window tolerates; GCRA tolerates any.
                let most = quotas.iter().map(Quota::window).min().unwrap() / 32 * 31;
                for (gap, units, late) in requests {
                    now = (now + gap.length(&key, Duration::ZERO)).min(END);
                    let late = now.saturating_sub(most / 1_000 * late);
                    if key.admits(units, late).await {
                        admitted.push((late, u64::from(units.get())));
                    }
                    if units.get() == 1 {
                        admitted.push((late, key.drain(late).await));
                    }
                }
                admitted.sort_unstable();
                for quota in &quotas {
                    for window in [quota.window(), 2 * quota.window(), quota.interval(), NANO] {
                        assert_promised(quota, &admitted, window);
                    }
                }
            });
        }
    }

    #[tokio::test]
    async fn one_that_comes_a_whole_lap_late_breaks_nothing() {
        let limiter = LocalRateLimiter::new();
        let quota = Quota::sliding(10, Duration::from_secs(32)).unwrap();
        let key = Key::new(&limiter, &[quota], Duration::ZERO);
        let (one, now) = (NonZeroU32::MIN, Duration::from_secs(1_000));
        assert_eq!(key.drain(now).await, 10);
        for late in 0..=1_000 {
            let late = Duration::from_secs(late);
            assert!(!key.admits(one, late).await, "at {late:?}");
            key.buckets.give_back(one, late);
            assert!(key.admits(one, late).await, "at {late:?}");
        }
        assert!(!key.admits(one, now + Duration::from_secs(32)).await);
        assert!(key.admits(one, now + Duration::from_secs(33)).await);
    }
}

//! Two threads at once, compared with every order in which one could have gone after the other.

use std::collections::BTreeSet;

use loom::{sync::Arc, thread};
use proptest::prelude::*;

use self::Act::{GiveBack, Take};
use crate::ring;

const SLOTS: u64 = 2;
const PLACES: usize = 4;
type Ring = ring::Ring<SLOTS, PLACES>;

const LIMIT: u32 = 3;

/// The results of one thread, of the other, and of the calls after both.
type Told = (Vec<bool>, Vec<bool>, Vec<bool>);

/// With the number of the current slot by the caller's clock.
#[derive(Clone, Copy, Debug)]
enum Act {
    Take(u64, u32),
    GiveBack(u64, u32),
}

impl Act {
    fn number(self) -> u64 {
        let (Take(number, _) | GiveBack(number, _)) = self;
        number
    }
}

fn act(ring: &Ring, act: Act) -> bool {
    match act {
        Take(number, units) => ring.take(number, units, LIMIT).is_ok(),
        GiveBack(number, units) => {
            ring.give_back(number, units);
            true
        }
    }
}

/// The ring as a list, for sequential use.
#[derive(Clone, Default)]
struct List {
    latest: u64,
    taken: Vec<(u64, u32)>,
}

impl List {
    fn act(&mut self, act: Act) -> bool {
        self.latest = self.latest.max(act.number());
        match act {
            Take(number, units) => self.take(number, units),
            GiveBack(number, units) => {
                self.give_back(number, units);
                true
            }
        }
    }

    /// The slots that count for the caller.
    fn first(&self, number: u64) -> u64 {
        let late = (self.latest + 1).saturating_sub(PLACES as u64);
        number.saturating_sub(SLOTS).max(late)
    }

    fn take(&mut self, number: u64, units: u32) -> bool {
        let first = self.first(number);
        let used = self.taken.iter().filter(|(slot, _)| *slot >= first);
        let fits = used.map(|(_, units)| units).sum::<u32>() + units <= LIMIT;
        if fits {
            self.taken.push((self.latest, units));
        }
        fits
    }

    fn give_back(&mut self, number: u64, mut rest: u32) {
        let first = self.first(number);
        for (_, units) in self.taken.iter_mut().rev().filter(|(slot, _)| *slot >= first) {
            let returned = rest.min(*units);
            *units -= returned;
            rest -= returned;
        }
    }

    /// The possible results of the acts of two threads, and of those after them.
    fn outcomes(&self, one: &[Act], other: &[Act], last: &[Act]) -> BTreeSet<Told> {
        let mut outcomes = BTreeSet::new();
        // Before an act is complete, other threads may already see that time has advanced: slot by
        // slot, because a thread that finds a slot closed knows only that it is over.
        if [one, other].iter().filter_map(|acts| acts.first()).any(|act| act.number() > self.latest)
        {
            let later = Self { latest: self.latest + 1, ..self.clone() };
            outcomes.extend(later.outcomes(one, other, last));
        }
        if let [act, one @ ..] = one {
            let mut list = self.clone();
            let told = list.act(*act);
            for (rest, by_other, last) in list.outcomes(one, other, last) {
                outcomes.insert(([vec![told], rest].concat(), by_other, last));
            }
        }
        if let [act, other @ ..] = other {
            let mut list = self.clone();
            let told = list.act(*act);
            for (by_one, rest, last) in list.outcomes(one, other, last) {
                outcomes.insert((by_one, [vec![told], rest].concat(), last));
            }
        }
        if one.is_empty() && other.is_empty() {
            let mut list = self.clone();
            outcomes.insert((vec![], vec![], last.iter().map(|act| list.act(*act)).collect()));
        }
        outcomes
    }
}

/// Lets two threads act concurrently after `before`, and then calls `last`: the results must be
/// those of some sequential order.
fn check(before: &[Act], one: &[Act], other: &[Act], last: &[Act]) {
    let mut list = List::default();
    before.iter().for_each(|act| _ = list.act(*act));
    let expected = list.outcomes(one, other, last);

    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    let [before, one, other, last] = [before, one, other, last].map(<[Act]>::to_vec);
    model.check(move || {
        let ring = Arc::new(Ring::default());
        let all = |acts: &[Act]| acts.iter().map(|each| act(&ring, *each)).collect::<Vec<_>>();
        all(&before);
        let thread = thread::spawn({
            let (ring, other) = (Arc::clone(&ring), other.clone());
            move || other.iter().map(|each| act(&ring, *each)).collect()
        });
        let by_one = all(&one);
        let told = (by_one, thread.join().unwrap(), all(&last));
        assert!(expected.contains(&told), "{told:?} is none of {expected:?}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn whatever_two_threads_do_they_could_have_done_one_after_the_other(
        before in acts(2), one in acts(2), other in acts(2), last in acts(3),
    ) {
        check(&before, &one, &other, &last);
    }
}

fn acts(most: usize) -> impl Strategy<Value = Vec<Act>> {
    let take = (0..7_u64, 1..=LIMIT).prop_map(|(number, units)| Take(number, units));
    // Several units are given back slot by slot, and other threads may interleave.
    let give_back = (0..7_u64).prop_map(|number| GiveBack(number, 1));
    proptest::collection::vec(prop_oneof![4 => take, 1 => give_back], 0..=most)
}

#[test]
fn the_last_unit_is_given_to_one_of_two() {
    check(&[Take(0, 2)], &[Take(0, 1)], &[Take(0, 1)], &[Take(0, 1)]);
}

#[test]
fn of_two_that_want_more_than_is_left_one_gets_it() {
    check(&[], &[Take(0, 2)], &[Take(0, 2)], &[Take(0, 1), Take(0, 1)]);
}

#[test]
fn a_small_request_is_not_turned_away_for_a_large_one_that_is() {
    check(&[Take(0, 1)], &[Take(0, 3)], &[Take(0, 2)], &[Take(0, 1)]);
}

#[test]
fn one_that_is_overtaken_by_a_new_slot_counts_what_is_in_it() {
    check(&[Take(0, 1)], &[Take(0, 2)], &[Take(1, 2)], &[Take(1, 1), Take(3, 3)]);
}

#[test]
fn one_that_is_overtaken_as_its_window_ends_counts_both() {
    check(&[Take(0, 2), Take(2, 1)], &[Take(2, 1)], &[Take(3, 2)], &[Take(3, 1)]);
}

#[test]
fn one_that_is_late_is_judged_by_its_own_window_too() {
    check(&[Take(0, 2)], &[Take(2, 2)], &[Take(3, 1)], &[Take(2, 1), Take(3, 2)]);
    check(&[Take(0, 1)], &[Take(0, 2)], &[Take(3, 2)], &[Take(0, 1), Take(4, 1)]);
}

#[test]
fn one_that_is_late_finds_the_slots_of_its_window_as_they_were_left() {
    check(&[], &[Take(0, 2), Take(1, 1)], &[Take(0, 2)], &[Take(2, 1)]);
    check(&[], &[Take(4, 1)], &[Take(0, 3)], &[Take(5, 1)]);
}

#[test]
fn two_that_begin_the_same_slot_share_it() {
    check(&[Take(0, 3)], &[Take(3, 2)], &[Take(3, 2)], &[Take(3, 1), Take(5, 1), Take(6, 3)]);
}

#[test]
fn one_that_is_overtaken_by_a_whole_lap_overwrites_nothing() {
    check(&[Take(1, 1)], &[Take(1, 1)], &[Take(2, 1), Take(5, 3)], &[Take(5, 1), Take(8, 3)]);
}

#[test]
fn what_is_given_back_is_there_for_the_next() {
    check(&[Take(0, 3)], &[GiveBack(0, 1), Take(0, 1)], &[Take(0, 1)], &[Take(0, 1)]);
}

#[test]
fn what_is_given_back_late_is_given_back_where_it_was_taken() {
    check(
        &[Take(3, 2)],
        &[GiveBack(0, 2)],
        &[GiveBack(6, 1), Take(0, 2)],
        &[Take(0, 2), Take(0, 1)],
    );
}

#[test]
fn what_is_given_back_as_a_slot_ends_is_given_back_once() {
    check(&[Take(0, 2)], &[GiveBack(0, 1)], &[Take(1, 1)], &[Take(1, 1), Take(1, 1), Take(3, 3)]);
}

#[test]
fn what_others_gave_back_instead_of_theirs_is_undone_where_theirs_is() {
    loom::model(|| {
        let ring = Ring::default();
        assert!(act(&ring, Take(0, 1)) && act(&ring, Take(1, 1)));
        ring.give_back(1, 1);
        assert_eq!([0, 1].map(|slot| ring.units(slot)), [1, 0]);
        ring.undo(1, 1);
        assert_eq!([0, 1].map(|slot| ring.units(slot)), [0, 0]);
    });
}

/// A request that found the slot open before has not seen what was taken in the next one.
#[test]
fn a_slot_that_is_over_stays_so_when_units_are_added_to_it() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let ring = Arc::new(Ring::default());
        assert!(act(&ring, Take(0, 1)));
        let [next, added] = [(); 2].map(|()| Arc::clone(&ring));
        let next = thread::spawn(move || _ = act(&next, Take(1, 2)));
        let added = thread::spawn(move || {
            added.undo(0, 1);
            added.add_to(0, 1);
        });
        act(&ring, Take(0, 2));
        next.join().unwrap();
        added.join().unwrap();
        let used = [0, 1].map(|slot| ring.units(slot));
        assert!(used.iter().sum::<u32>() <= LIMIT, "{used:?}");
    });
}

#[test]
fn what_was_taken_in_a_place_long_ago_is_not_in_its_later_slots() {
    loom::model(|| {
        let ring = Ring::default();
        assert!(act(&ring, Take(1, 1)));
        for laps in (0..31).map(|bit| 1 << bit) {
            assert_eq!(ring.units(1 + laps * PLACES as u64), 0, "{laps} laps later");
        }
    });
}

#[cfg(feature = "redis")]
#[test]
fn the_slots_of_another_ring_replace_those_of_this_one() {
    loom::model(|| {
        let ring = Ring::default();
        assert!(act(&ring, Take(5, 1)));
        ring.set(5, [0, 1, 1].into_iter());
        assert_eq!([2, 3, 4, 5].map(|slot| ring.units(slot)), [0, 1, 1, 0]);
        assert!(act(&ring, Take(5, 1)));
        assert_eq!(ring.units(5), 1);
        assert!(!act(&ring, Take(5, 1)));
    });
}

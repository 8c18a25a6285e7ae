//! Counts the unknown keys tried per client network.

use std::{
    hash::{BuildHasher, RandomState},
    sync::OnceLock,
    time::Duration,
};

use super::{
    client_network::ClientNetwork,
    gcra::{Rate, Used},
};

/// A count-min sketch of failures per network, whose counters decay. Fixed size, lock-free.
///
/// Each network has one cell per row, shared with other networks, and exceeds its limit only if
/// both cells do. While *n* other networks exceed theirs, that is a false positive with probability
/// (1 - e^(-n / 131072))². The hash is seeded, so clients cannot choose networks that share a cell.
pub(super) struct FailureSketch {
    rate: Rate,
    seed: RandomState,
    rows: OnceLock<[Row; 2]>,
}

type Row = Box<[Used]>;

/// A query that may fail, and the rows in which a unit is reserved for that.
#[derive(Clone, Copy)]
pub(in crate::auth) struct Reservation {
    network: ClientNetwork,
    held: [bool; 2],
}

impl Reservation {
    /// A query without a reservation.
    pub(super) fn of(network: ClientNetwork) -> Self {
        Self { network, held: [false; 2] }
    }

    fn is_held(self) -> bool {
        self.held.contains(&true)
    }
}

/// 1 MiB per row. While 1,000 clients are guessing, one in 17,000 others is blocked by mistake.
const CELLS: usize = 1 << 17;

impl FailureSketch {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, seed: RandomState::new(), rows: OnceLock::new() }
    }

    /// The time until `network` may try another key.
    pub(super) fn wait(&self, network: ClientNetwork, now: Duration) -> Duration {
        let waits = self.cells(self.rows.get(), network).map(|cell| cell.wait(self.rate, now));
        waits.min().unwrap_or_default()
    }

    /// Counts a failure of `network`.
    pub(super) fn count(&self, network: ClientNetwork, now: Duration) {
        let rows = self.rows.get_or_init(|| [row(), row()]);
        for cell in self.cells(Some(rows), network) {
            cell.take_saturating(self.rate, now);
        }
    }

    /// Begins a query for `network`, whose outcome is not known yet, or returns the time until one
    /// is allowed.
    ///
    /// While half of the burst is left, any number of queries may run at once, since their keys may
    /// be valid. Below that, each query reserves the unit that its failure would take. Calls must
    /// be serialized, or two concurrent queries could each get one of the two cells.
    pub(super) fn begin(
        &self,
        network: ClientNetwork,
        now: Duration,
    ) -> Result<Reservation, Duration> {
        let mut attempt = Reservation::of(network);
        let rows = self.rows.get();
        let is_trusted = |cell: &Used| cell.wait(self.rate.half(), now).is_zero();
        if rows.is_none() || self.cells(rows, network).any(is_trusted) {
            return Ok(attempt);
        }
        for (held, cell) in attempt.held.iter_mut().zip(self.cells(rows, network)) {
            *held = cell.take(self.rate, now);
        }
        if attempt.is_held() { Ok(attempt) } else { Err(self.wait(network, now)) }
    }

    pub(super) fn fail(&self, attempt: Reservation, now: Duration) {
        if !attempt.is_held() {
            self.count(attempt.network, now);
        }
    }

    pub(super) fn release(&self, attempt: Reservation) {
        let cells = self.cells(self.rows.get(), attempt.network).zip(attempt.held);
        cells.filter(|(_, is_held)| *is_held).for_each(|(cell, _)| cell.give_back(self.rate));
    }

    fn cells<'a>(
        &self,
        rows: Option<&'a [Row; 2]>,
        network: ClientNetwork,
    ) -> impl Iterator<Item = &'a Used> + use<'a> {
        let hash = self.seed.hash_one(network);
        let place = |bits: u64| usize::try_from(bits % CELLS as u64).ok();
        let places = [place(hash), place(hash >> 32)];
        rows.into_iter().flatten().zip(places).filter_map(|(row, place)| row.get(place?))
    }
}

fn row() -> Row {
    std::iter::repeat_with(Used::default).take(CELLS).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const BURST: u32 = 20;

    fn failures() -> FailureSketch {
        FailureSketch::new(Rate::new(SECOND, BURST))
    }

    fn network(number: u32) -> ClientNetwork {
        IpAddr::from(Ipv4Addr::from_bits(number)).into()
    }

    fn has_failed_too_often(failures: &FailureSketch, number: u32, now: Duration) -> bool {
        !failures.wait(network(number), now).is_zero()
    }

    #[test]
    fn a_network_may_fail_so_often_and_then_once_each_interval() {
        let failures = failures();
        for _ in 0..BURST {
            assert!(!has_failed_too_often(&failures, 1, SECOND));
            failures.count(network(1), SECOND);
        }
        assert_eq!(failures.wait(network(1), SECOND), SECOND);
        assert!(!has_failed_too_often(&failures, 2, SECOND));
        assert!(!has_failed_too_often(&failures, 1, 2 * SECOND));
        failures.count(network(1), 2 * SECOND);
        assert_eq!(failures.wait(network(1), 2 * SECOND), SECOND);
    }

    /// 8,192 of 131,072 cells per row: 6.1 % of each row, so 0.37 % of innocent networks share
    /// both.
    #[test]
    fn an_innocent_network_is_taken_for_a_guesser_as_seldom_as_is_said() {
        const GUESSERS: u32 = 8192;
        const INNOCENT: u32 = 200_000;
        let failures = failures();
        for guesser in 0..GUESSERS {
            for _ in 0..BURST {
                failures.count(network(guesser), SECOND);
            }
        }
        assert!((0..GUESSERS).all(|guesser| has_failed_too_often(&failures, guesser, SECOND)));

        let innocent = GUESSERS..GUESSERS + INNOCENT;
        let wrong = innocent.filter(|number| has_failed_too_often(&failures, *number, SECOND));
        let share = 1.0 - (-f64::from(GUESSERS) / CELLS as f64).exp();
        let expected = share * share * f64::from(INNOCENT);
        let wrong = wrong.count() as f64;
        // Within nine standard deviations.
        assert!((wrong - expected).abs() < 9.0 * expected.sqrt(), "{wrong}, not {expected}");
    }

    /// The size is fixed, so this checks that networks are told apart again once the failures have
    /// decayed.
    #[test]
    fn ten_million_networks_that_fail_once_harm_nobody_for_long() {
        const NETWORKS: u32 = 10_000_000;
        let failures = failures();
        for number in 0..NETWORKS {
            failures.count(network(number), SECOND);
        }
        let rows = failures.rows.get().unwrap();
        assert!(rows.iter().all(|row| size_of_val(&**row) == 1 << 20));
        assert_eq!(failures.wait(network(NETWORKS), SECOND), SECOND, "all cells are full");
        let empty = SECOND + BURST * SECOND;
        for _ in 0..BURST {
            assert!(!has_failed_too_often(&failures, NETWORKS, empty));
            failures.count(network(NETWORKS), empty);
        }
        assert!(has_failed_too_often(&failures, NETWORKS, empty));
    }
}

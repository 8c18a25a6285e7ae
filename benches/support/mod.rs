//! Timing that is robust on a machine whose speed fluctuates: every round runs each case once, and
//! the results are minima, medians, and medians of differences within a round.

mod stats;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use self::stats::median;

/// One timed case.
pub(crate) struct Case<'a> {
    name: String,
    run: Box<dyn FnMut(u64) -> Duration + 'a>,
    /// Nanoseconds per turn, by round.
    times: Vec<f64>,
}

/// Cases that are compared with each other.
#[derive(Default)]
pub(crate) struct Cases<'a>(Vec<Case<'a>>);

impl<'a> Cases<'a> {
    /// Adds a case whose turns are calls of `turn`.
    pub(crate) fn add<T>(&mut self, name: impl Into<String>, mut turn: impl FnMut() -> T + 'a) {
        let run = move |turns| {
            let begin = Instant::now();
            for _ in 0..turns {
                black_box(turn());
            }
            begin.elapsed()
        };
        self.add_timed(name, run);
    }

    /// Adds a case that times itself: `run` gets the number of turns to make.
    pub(crate) fn add_timed(
        &mut self,
        name: impl Into<String>,
        run: impl FnMut(u64) -> Duration + 'a,
    ) {
        self.0.push(Case { name: name.into(), run: Box::new(run), times: Vec::new() });
    }

    /// Runs every case in every round, for about `slice` each.
    pub(crate) fn run(&mut self, rounds: usize, slice: Duration) {
        let turns: Vec<u64> = self.0.iter_mut().map(|case| case.calibrate(slice)).collect();
        for _ in 0..rounds {
            for (case, turns) in self.0.iter_mut().zip(&turns) {
                let time = (case.run)(*turns);
                case.times.push(time.as_nanos() as f64 / *turns as f64);
            }
        }
    }

    /// The fastest round of a case, in nanoseconds per turn.
    pub(crate) fn min(&self, name: &str) -> f64 {
        self.times(name).iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The median round of a case.
    pub(crate) fn median(&self, name: &str) -> f64 {
        median(self.times(name).to_vec())
    }

    /// The median of the extra time of `name` over `base` in the same round.
    pub(crate) fn more_than(&self, base: &str, name: &str) -> f64 {
        let pairs = self.times(name).iter().zip(self.times(base));
        median(pairs.map(|(time, base)| time - base).collect())
    }

    /// Prints a line for each case.
    pub(crate) fn print(&self) {
        println!("{:<58} {:>9} {:>9}", "ns", "min", "median");
        for case in &self.0 {
            let name = &case.name;
            println!("{name:<58} {:>9.1} {:>9.1}", self.min(name), self.median(name));
        }
    }

    fn times(&self, name: &str) -> &[f64] {
        let case = self.0.iter().find(|case| case.name == name);
        &case.unwrap_or_else(|| panic!("there is no case {name:?}")).times
    }
}

impl Case<'_> {
    fn calibrate(&mut self, slice: Duration) -> u64 {
        let mut turns = 1;
        loop {
            let time = (self.run)(turns);
            if time >= slice / 4 {
                let per_turn = time.as_nanos() as f64 / turns as f64;
                return ((slice.as_nanos() as f64 / per_turn) as u64).max(1);
            }
            turns *= 4;
        }
    }
}

//! Calls of the script, and its replies.

use std::{fmt::Write as _, num::NonZeroU32, sync::Arc, time::Duration};

use redis::{Cmd, Value, cmd};
use smallvec::SmallVec;

use super::{cell::Cell, name};
use crate::rate_limit::{
    Algorithm, CountedPer, Decision, Quota, RateLimits, bucket_snapshot::BucketSnapshot,
    port::Subject, quota::SLOTS,
};

pub(super) const SOURCE: &str = include_str!("buckets.lua");
/// The script counts windows in slots of whole ticks of 31,250 ns.
const _: () = assert!(SLOTS == 32);

const BILLION: u64 = 1_000_000_000;
/// Calls with more quotas are not made. Stores and routers accept no more.
pub(super) const MOST_QUOTAS: usize = 8;
/// A healthy server's reply to a probe.
const PROBED: &str = "probed";
/// The script's error for a key that holds something else, or a cell of a later version.
const NOT_A_CELL: &str = "NOTACELL";

/// What to do with the cells.
#[derive(Clone, Copy)]
pub(super) enum Action {
    /// Gives back `returned`, takes `units`, and up to `extra` more if available.
    Take {
        units: NonZeroU32,
        extra: u32,
        returned: u32,
    },
    Peek,
    Charge(NonZeroU32),
    GiveBack(NonZeroU32),
}

/// The quotas of a key, and the cells in Redis that count them.
pub(super) struct Counted {
    pub(super) quotas: Box<[Quota]>,
    pub(super) cells: SmallVec<[Named; 2]>,
}

/// A cell in Redis.
pub(super) struct Named {
    pub(super) key: Arc<str>,
    /// One digit per quota: 1 if the cell counts it.
    counted: String,
    /// Whether this process's copy of a quota's state is a copy of this cell's.
    is_home: fn(&Quota) -> bool,
}

/// One call of the script.
pub(super) struct Call {
    pub(super) action: Action,
    pub(super) counted: Arc<Counted>,
    /// This process's copy of each quota's state.
    pub(super) known: SmallVec<[Known; 1]>,
    /// The time in nanoseconds; `None` for the server's.
    pub(super) now: Option<u64>,
}

pub(super) struct Known {
    pub(super) level: BucketSnapshot,
    /// Whether the copy has diverged: units were taken without Redis since it was last updated.
    pub(super) diverged: bool,
}

/// The reply of the script.
pub(super) struct Reply {
    pub(super) taken: bool,
    pub(super) extra: u32,
    cells: SmallVec<[Cell; 2]>,
}

impl Counted {
    /// The key's cell counts all quotas, so that it knows what the key itself took under a
    /// per-consumer quota; the consumer's cell counts the per-consumer ones.
    pub(super) fn new(prefix: &str, subject: &Subject<'_>, limits: &RateLimits) -> Self {
        let is_of_consumer = |quota: &Quota| quota.counted_per() == CountedPer::Consumer;
        let digit = |is_counted| if is_counted { '1' } else { '0' };
        let mut cells = SmallVec::new();
        cells.push(Named {
            key: name::of_key(prefix, subject).into(),
            counted: limits.iter().map(|_| digit(true)).collect(),
            is_home: |quota| quota.counted_per() != CountedPer::Consumer,
        });
        if limits.iter().any(is_of_consumer) {
            cells.push(Named {
                key: name::of_consumer(prefix, subject).into(),
                counted: limits.iter().map(|quota| digit(is_of_consumer(quota))).collect(),
                is_home: |quota| quota.counted_per() == CountedPer::Consumer,
            });
        }
        Self { quotas: limits.iter().cloned().collect(), cells }
    }

    /// Whether the call is cheap enough for Redis.
    pub(super) fn is_small(&self) -> bool {
        self.quotas.len() <= MOST_QUOTAS
    }
}

impl Call {
    pub(super) fn command(&self, hash: &str) -> Cmd {
        let Counted { quotas, cells } = &*self.counted;
        let mut command = cmd("EVALSHA");
        command.arg(hash).arg(cells.len());
        for cell in cells {
            command.arg(&*cell.key);
        }
        let (name, units, extra, returned) = match self.action {
            Action::Take { units, extra, returned } => ("take", units.get(), extra, returned),
            Action::Peek => ("peek", 0, 0, 0),
            Action::Charge(units) => ("charge", units.get(), 0, 0),
            Action::GiveBack(units) => ("give_back", units.get(), 0, 0),
        };
        command.arg(name).arg(units).arg(extra).arg(returned);
        match self.now {
            Some(nanos) => command.arg(nanos / BILLION).arg(nanos % BILLION),
            None => command.arg("").arg(""),
        };
        command.arg(quotas.len());
        for quota in quotas {
            let burst = quota.burst_size().get();
            match quota.algorithm() {
                Algorithm::Gcra => {
                    let nanos = nanos(quota.interval());
                    command.arg("g").arg(burst).arg(nanos / BILLION).arg(nanos % BILLION);
                }
                Algorithm::SlidingWindow => {
                    command.arg("w").arg(burst).arg(millis(quota)).arg("");
                }
            }
        }
        for cell in cells {
            let (text, diverged) = self.known(cell);
            command.arg(&cell.counted).arg(text).arg(u8::from(diverged));
        }
        command
    }

    /// The text of a cell as this process knows it, and whether that has diverged. For the key's
    /// cell, the consumer's usage stands for the key's own, which is at most as much.
    fn known(&self, cell: &Named) -> (String, bool) {
        let quotas = self.counted.quotas.iter().zip(&self.known).zip(cell.counted.bytes());
        let (mut text, mut count, mut goes_on) = (String::new(), 0_u32, false);
        let mut written: SmallVec<[&Quota; 4]> = SmallVec::new();
        for ((quota, known), _) in quotas.filter(|(_, counted)| *counted == b'1') {
            goes_on |= known.diverged;
            if !known.level.is_full() && !written.iter().any(|other| is_same(other, quota)) {
                count += 1;
                write(&mut text, quota, &known.level);
                written.push(quota);
            }
        }
        if count == 0 { (text, goes_on) } else { (format!("1 0 0 0 {count}{text}"), goes_on) }
    }

    /// `None` if this is not an answer to the call.
    pub(super) fn reply(&self, value: Value) -> Option<Reply> {
        let Value::Array(values) = value else { return None };
        let mut values = values.into_iter();
        let taken = number(&values.next()?)? == 1;
        let extra = u32::try_from(number(&values.next()?)?).ok()?;
        let cell = |_: &Named| match values.next()? {
            Value::BulkString(text) => Cell::parse(std::str::from_utf8(&text).ok()?),
            _ => None,
        };
        let cells = self.counted.cells.iter().map(cell).collect::<Option<_>>()?;
        let reply = Reply { taken, extra, cells };
        let is_whole =
            (0..self.counted.quotas.len()).all(|at| reply.level(&self.counted, at).is_some());
        (values.next().is_none() && is_whole).then_some(reply)
    }
}

impl Reply {
    /// The decisions on `units` of each quota.
    pub(super) fn decisions<'r>(
        &'r self,
        counted: &'r Counted,
        units: NonZeroU32,
    ) -> impl Iterator<Item = Decision> + 'r {
        let decision = move |(at, quota): (usize, &Quota)| {
            let cells = self.cells_of(counted, at);
            let decisions = cells.filter_map(|cell| cell.look(quota, units.get().into()));
            decisions.reduce(super::cell::both).unwrap_or(Decision::deny(Duration::ZERO))
        };
        counted.quotas.iter().enumerate().map(decision)
    }

    /// The state of the quota at this position, in its home cell.
    pub(super) fn level(&self, counted: &Counted, at: usize) -> Option<BucketSnapshot> {
        let quota = counted.quotas.get(at)?;
        let mut homes = counted.cells.iter().zip(&self.cells);
        let (_, home) = homes.find(|(named, _)| (named.is_home)(quota))?;
        home.level(quota)
    }

    fn cells_of<'r>(&'r self, counted: &'r Counted, at: usize) -> impl Iterator<Item = &'r Cell> {
        let is_counted =
            move |(named, _): &(&Named, &Cell)| named.counted.as_bytes().get(at) == Some(&b'1');
        counted.cells.iter().zip(&self.cells).filter(is_counted).map(|(_, cell)| cell)
    }
}

/// Whether two quotas share their state in a cell.
fn is_same(one: &Quota, other: &Quota) -> bool {
    let of = |quota: &Quota| (quota.algorithm(), quota.burst_size(), quota.interval());
    of(one) == of(other)
}

/// Writes a state as the script reads it.
fn write(text: &mut String, quota: &Quota, level: &BucketSnapshot) {
    let burst = quota.burst_size();
    // Writing to a string never fails.
    let _ = match level {
        BucketSnapshot::Gcra(missing) => {
            let interval = nanos(quota.interval());
            let [interval, missing] = [interval, *missing]
                .map(|nanos| format!("{} {}", nanos / BILLION, nanos % BILLION));
            write!(text, " g {burst} {interval} {missing} 0 0")
        }
        BucketSnapshot::Window { slots, .. } => {
            // All slots up to the oldest that holds units.
            let held = slots.iter().rposition(|units| *units > 0).map_or(0, |oldest| oldest + 1);
            let _ = write!(text, " w {burst} {} 0 0 0 {held}", millis(quota));
            slots.iter().take(held).for_each(|units| {
                text.push(' ');
                text.push_str(itoa::Buffer::new().format(*units));
            });
            write!(text, " 0")
        }
    };
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn millis(quota: &Quota) -> u64 {
    u64::try_from(quota.window().as_millis()).unwrap_or(u64::MAX)
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// A probe: checks that Redis can count, with a short-lived value beside this key. It is too small
/// to say anything about large requests.
pub(super) fn probe(hash: &str, key: &str) -> Cmd {
    let mut command = cmd("EVALSHA");
    command.arg(hash).arg(1).arg(format!("{key}:probe")).arg("probe").arg(PROBED);
    command
}

/// Whether this is a healthy server's reply to a probe.
pub(super) fn is_well(value: &Value) -> bool {
    matches!(value, Value::BulkString(text) if text == PROBED.as_bytes())
}

/// Whether the key holds something other than a cell of this version.
pub(super) fn is_not_a_cell(error: &redis::RedisError) -> bool {
    matches!(error.code(), Some("WRONGTYPE" | NOT_A_CELL))
}

pub(super) fn load() -> Cmd {
    let mut command = cmd("SCRIPT");
    command.arg("LOAD").arg(SOURCE);
    command
}

//! What is said to Redis, and what it answers.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use redis::{Cmd, Value, cmd};
use smallvec::SmallVec;

use crate::rate_limit::{Algorithm, Quota, level::Level, local::nanos::nanos, quota::SLOTS};

pub(super) const SOURCE: &str = include_str!("buckets.lua");
/// The script counts windows in slots of whole ticks, which are 31,250 ns.
const _: () = assert!(SLOTS == 32);

const BILLION: u64 = 1_000_000_000;

/// What is to happen to the buckets.
#[derive(Clone, Copy)]
pub(super) enum Action {
    /// Puts `returned` back, takes `units`, and up to `extra` more where they are there.
    Take {
        units: NonZeroU32,
        extra: u32,
        returned: u32,
    },
    Peek,
    Charge(NonZeroU32),
    GiveBack(NonZeroU32),
}

/// A bucket in Redis.
pub(super) struct Named {
    pub(super) key: Arc<str>,
    pub(super) quota: Quota,
    /// What the text in Redis begins with, so that it is known under which quota it was written.
    header: String,
}

/// One run of the script.
pub(super) struct Call {
    pub(super) action: Action,
    pub(super) buckets: Arc<[Named]>,
    /// The same buckets, as this process knows them.
    pub(super) known: SmallVec<[Known; 1]>,
    /// The time in nanoseconds. `None`: the server's.
    pub(super) now: Option<u64>,
}

pub(super) struct Known {
    pub(super) level: Level,
    /// Whether this process went on without Redis since it heard of the bucket.
    pub(super) went_on: bool,
}

/// What came of it.
pub(super) struct Reply {
    pub(super) taken: bool,
    pub(super) extra: u32,
    pub(super) levels: SmallVec<[Level; 1]>,
}

impl Call {
    pub(super) fn command(&self, hash: &str) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(hash).arg(self.buckets.len());
        for bucket in &*self.buckets {
            command.arg(&*bucket.key);
        }
        let (name, units, extra, returned) = match self.action {
            Action::Take { units, extra, returned } => ("take", units.get(), extra, returned),
            Action::Peek => ("peek", 0, 0, 0),
            Action::Charge(units) => ("charge", units.get(), 0, 0),
            Action::GiveBack(units) => ("give_back", units.get(), 0, 0),
        };
        command.arg(name).arg(units).arg(extra).arg(returned);
        match self.now {
            Some(nanos) => halves(&mut command, nanos),
            None => command.arg("").arg(""),
        };
        for (bucket, known) in self.buckets.iter().zip(&self.known) {
            bucket.write(known, &mut command);
        }
        command
    }

    /// `None` if this is no answer to the call.
    pub(super) fn reply(&self, value: Value) -> Option<Reply> {
        let Value::Array(values) = value else { return None };
        let mut values = values.into_iter();
        let taken = number(&values.next()?)? == 1;
        let extra = u32::try_from(number(&values.next()?)?).ok()?;
        let level = |bucket: &Named| bucket.level(&mut values);
        let levels = self.buckets.iter().map(level).collect::<Option<_>>()?;
        values.next().is_none().then_some(Reply { taken, extra, levels })
    }
}

impl Named {
    pub(super) fn new(key: String, quota: &Quota) -> Self {
        let header = match quota.algorithm() {
            Algorithm::Gcra => {
                format!("gcra {} {} ", quota.burst_size(), quota.interval().as_nanos())
            }
            Algorithm::SlidingWindow => {
                format!("window {} {} ", quota.limit(), quota.window().as_millis())
            }
        };
        Self { key: key.into(), quota: quota.clone(), header }
    }

    fn write(&self, known: &Known, command: &mut Cmd) {
        command.arg(&self.header).arg(self.quota.burst_size().get());
        match self.quota.algorithm() {
            Algorithm::Gcra => halves(command, nanos(self.quota.interval())),
            Algorithm::SlidingWindow => {
                let millis = u64::try_from(self.quota.window().as_millis()).unwrap_or(u64::MAX);
                command.arg(millis).arg("")
            }
        };
        match &known.level {
            Level::Gcra(missing) => halves(command, *missing),
            Level::Window { slots, .. } => command.arg(list(slots)).arg(""),
        };
        command.arg(u8::from(known.went_on));
    }

    fn level(&self, values: &mut impl Iterator<Item = Value>) -> Option<Level> {
        let (high, low) = (number(&values.next()?)?, number(&values.next()?)?);
        let nanos = high.checked_mul(BILLION)?.checked_add(low)?;
        if self.quota.algorithm() == Algorithm::Gcra {
            return Some(Level::Gcra(nanos));
        }
        let Value::BulkString(list) = values.next()? else { return None };
        let list = std::str::from_utf8(&list).ok()?;
        let units = |text: &str| text.parse().ok();
        let slots = list.split(',').filter(|text| !text.is_empty()).map(units);
        let slots = slots.collect::<Option<_>>()?;
        Some(Level::Window { slot_ends_in: Duration::from_nanos(nanos), slots })
    }
}

/// All slots up to the oldest that holds anything.
fn list(slots: &[u32]) -> String {
    let held = slots.iter().rposition(|units| *units > 0).map_or(0, |oldest| oldest + 1);
    let mut list = String::new();
    for units in slots.iter().take(held) {
        list.push_str(itoa::Buffer::new().format(*units));
        list.push(',');
    }
    list
}

/// Nanoseconds as the script counts them.
fn halves(command: &mut Cmd, nanos: u64) -> &mut Cmd {
    command.arg(nanos / BILLION).arg(nanos % BILLION)
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// Whether Redis can count, written down for a moment beside this key.
pub(super) fn probe(hash: &str, key: &str) -> Cmd {
    let mut command = cmd("EVALSHA");
    command.arg(hash).arg(1).arg(format!("{key}:probe")).arg("probe");
    command
}

pub(super) fn load() -> Cmd {
    let mut command = cmd("SCRIPT");
    command.arg("LOAD").arg(SOURCE);
    command
}

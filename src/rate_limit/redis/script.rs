//! What is said to Redis, and what it answers.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use redis::{Cmd, Value, cmd};
use smallvec::SmallVec;

use crate::rate_limit::{Algorithm, Quota, level::Level, quota::SLOTS};

pub(super) const SOURCE: &str = include_str!("buckets.lua");
/// The script counts windows in slots of whole ticks, which are 31,250 ns.
const _: () = assert!(SLOTS == 32);

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
            Some(nanos) => command.arg(nanos),
            None => command.arg(""),
        };
        for (bucket, known) in self.buckets.iter().zip(&self.known) {
            bucket.write(known, &mut command);
        }
        command
    }

    /// `None` if this is no answer to the call.
    pub(super) fn reply(&self, value: Value) -> Option<Reply> {
        let Value::Array(values) = value else { return None };
        let [Value::Int(taken), Value::Int(extra), levels @ ..] = values.as_slice() else {
            return None;
        };
        let levels = levels.iter().zip(&*self.buckets).map(|(value, bucket)| match value {
            Value::BulkString(text) => bucket.level(std::str::from_utf8(text).ok()?),
            _ => None,
        });
        let levels: SmallVec<[Level; 1]> = levels.collect::<Option<_>>()?;
        let is_whole = levels.len() == self.buckets.len();
        let extra = u32::try_from(*extra).ok()?;
        is_whole.then_some(Reply { taken: *taken == 1, extra, levels })
    }
}

impl Named {
    fn write(&self, known: &Known, command: &mut Cmd) {
        match self.quota.algorithm() {
            Algorithm::Gcra => command
                .arg("gcra")
                .arg(self.quota.burst_size().get())
                .arg(nanos(self.quota.interval())),
            Algorithm::SlidingWindow => {
                let millis = u64::try_from(self.quota.window().as_millis()).unwrap_or(u64::MAX);
                command.arg("window").arg(self.quota.limit()).arg(millis)
            }
        };
        match &known.level {
            Level::Gcra(missing) => command.arg(*missing),
            Level::Window { slots, .. } => {
                let texts: Vec<_> = slots.iter().map(u32::to_string).collect();
                command.arg(texts.join(","))
            }
        };
        command.arg(u8::from(known.went_on));
    }

    fn level(&self, text: &str) -> Option<Level> {
        match self.quota.algorithm() {
            Algorithm::Gcra => Some(Level::Gcra(text.parse().ok()?)),
            Algorithm::SlidingWindow => {
                let (slot_ends_in, slots) = text.split_once(' ')?;
                let units = |text: &str| text.parse().ok();
                let slots = slots.split(',').filter(|units| !units.is_empty()).map(units);
                let slots = slots.collect::<Option<_>>()?;
                let slot_ends_in = Duration::from_nanos(slot_ends_in.parse().ok()?);
                Some(Level::Window { slot_ends_in, slots })
            }
        }
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

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

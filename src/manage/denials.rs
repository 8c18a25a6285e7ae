//! Limits how many denied attempts go into the audit, from which nothing is ever deleted: a few
//! entries a minute for each key, and a count of the rest.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::json;

use super::audit;
use crate::{
    record::{AuditEntry, KeyAction, KeyId},
    trace::warn,
};

/// Audit entries for the denials of one key in a [`WINDOW`]. Enough to see what was tried, too few
/// to fill a disk.
const LINES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// Keys that are counted separately. Further ones in the same minute are counted together.
const KEYS: usize = 1024;

/// Whose denials are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Denied {
    Key(KeyId),
    /// By the name in the audit.
    Member(String),
}

impl From<KeyId> for Denied {
    fn from(id: KeyId) -> Self {
        Self::Key(id)
    }
}

impl Denied {
    const fn key_id(&self) -> Option<KeyId> {
        match self {
            Self::Key(id) => Some(*id),
            Self::Member(_) => None,
        }
    }
}

/// Counts the denials of each minute, in memory only: counts are lost, and logged, when the process
/// ends.
#[derive(Default)]
pub(super) struct Denials(Mutex<Windows>);

#[derive(Default)]
struct Windows {
    /// By key or member; `None` for those that are counted together.
    by_key: HashMap<Option<Denied>, Window>,
    /// A lower bound of their beginnings: nothing is overdue until a minute after it.
    oldest: Duration,
}

/// The denials of one key or member, or of several counted together, in one minute.
struct Window {
    /// By the monotonic clock.
    began: Duration,
    /// The same instant by the wall clock, for the audit.
    since: SystemTime,
    lines: u32,
    more: u64,
    actor: String,
    consumer_id: Option<String>,
}

/// Counts of windows that are over and still have to be written to the audit.
pub(super) struct Overdue(Vec<(Option<Denied>, Window)>);

/// What to do with a denial.
pub(super) enum Admission {
    /// Write an entry, after those of the overdue counts.
    Write(Overdue),
    /// Nothing: it was counted.
    Counted,
}

impl Denials {
    /// Decides whether a denial of `who` gets an entry. `now` is monotonic, `wall` for the audit.
    pub(super) fn admit<'a>(
        &self,
        who: impl Into<Denied>,
        actor: &str,
        consumer_id: impl Into<Option<&'a str>>,
        now: Duration,
        wall: SystemTime,
    ) -> Admission {
        let who = Some(who.into());
        let mut windows = self.lock();
        let is_over = |window: &Window| now.saturating_sub(window.began) >= WINDOW;
        let known = windows.by_key.get_mut(&who);
        if let Some(window) = known.filter(|window| !is_over(window)) {
            return window.admit();
        }
        let overdue = windows.take_overdue(now);
        let (key, actor, consumer_id) = if windows.by_key.len() < KEYS {
            (who, actor, consumer_id.into().map(str::to_owned))
        } else {
            (None, "several keys", None)
        };
        let window = windows.by_key.entry(key).or_insert_with(|| Window {
            began: now,
            since: wall,
            lines: 0,
            more: 0,
            actor: actor.to_owned(),
            consumer_id,
        });
        match window.admit() {
            Admission::Write(_) => Admission::Write(overdue),
            Admission::Counted => {
                windows.restore(overdue);
                Admission::Counted
            }
        }
    }

    /// Removes the counts that are overdue at `now`, to be written with another entry.
    pub(super) fn take_overdue(&self, now: Duration) -> Overdue {
        self.lock().take_overdue(now)
    }

    /// Puts counts back that could not be written.
    pub(super) fn restore(&self, overdue: Overdue) {
        self.lock().restore(overdue);
    }

    fn lock(&self) -> MutexGuard<'_, Windows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Windows {
    fn take_overdue(&mut self, now: Duration) -> Overdue {
        let is_over = |began: Duration| now.saturating_sub(began) >= WINDOW;
        if !is_over(self.oldest) {
            return Overdue(Vec::new());
        }
        let over = self.by_key.extract_if(|_, window| is_over(window.began));
        let overdue = over.filter(|(_, window)| window.more > 0).collect();
        let oldest = self.by_key.values().map(|window| window.began).min();
        self.oldest = oldest.unwrap_or(now);
        Overdue(overdue)
    }

    fn restore(&mut self, overdue: Overdue) {
        for (key, window) in overdue.0 {
            let (more, began) = (window.more, window.began);
            let kept = self.by_key.entry(key).or_insert(Window { more: 0, ..window });
            kept.more += more;
            self.oldest = self.oldest.min(began);
        }
    }
}

impl Window {
    fn admit(&mut self) -> Admission {
        if self.lines < LINES {
            self.lines += 1;
            return Admission::Write(Overdue(Vec::new()));
        }
        self.more += 1;
        Admission::Counted
    }
}

impl Overdue {
    pub(super) fn entries(&self) -> impl Iterator<Item = AuditEntry> + '_ {
        self.0.iter().map(|(who, window)| {
            let since = audit::time(Some(window.since));
            let since = since.as_str().unwrap_or_default();
            let Window { more, .. } = window;
            AuditEntry {
                key_id: who.as_ref().and_then(Denied::key_id),
                consumer_id: window.consumer_id.clone(),
                reason: Some(format!("and {more} more denied attempts since {since}")),
                changes: Some(json!({ "more": more, "since": since }).to_string()),
                ..AuditEntry::new(KeyAction::Denied, window.actor.clone())
            }
        })
    }
}

impl Drop for Denials {
    fn drop(&mut self) {
        let windows = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let lost: u64 = windows.by_key.values().map(|window| window.more).sum();
        if lost > 0 {
            warn!(count = lost, "denied attempts dropped: counted but not written to the audit");
        }
    }
}

impl fmt::Debug for Denials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Denials").field("keys", &self.lock().by_key.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn key(number: u32) -> KeyId {
        let mut bytes = [0; 16];
        bytes[12..].copy_from_slice(&number.to_be_bytes());
        KeyId::from_bytes(bytes)
    }

    fn admit(denials: &Denials, number: u32, now: Duration) -> Option<Vec<AuditEntry>> {
        let wall = SystemTime::UNIX_EPOCH + now;
        match denials.admit(key(number), "key:a", "acme", now, wall) {
            Admission::Write(overdue) => Some(overdue.entries().collect()),
            Admission::Counted => None,
        }
    }

    #[test]
    fn a_key_gets_five_lines_a_minute_and_a_sum() {
        let denials = Denials::default();
        let written = (0..11_410).filter(|_| admit(&denials, 1, START).is_some()).count();
        assert_eq!(written, 5);
        let summed = admit(&denials, 1, START + WINDOW).unwrap();
        assert_eq!(summed.len(), 1);
        assert_eq!(summed[0].key_id, Some(key(1)));
        assert_eq!(
            summed[0].reason.as_deref(),
            Some("and 11405 more denied attempts since 1970-01-01T00:16:40Z")
        );
        assert_eq!(admit(&denials, 1, START + WINDOW), Some(Vec::new()), "written once");
    }

    #[test]
    fn the_denials_of_one_key_use_up_no_lines_of_another() {
        let denials = Denials::default();
        for _ in 0..100 {
            admit(&denials, 1, START);
        }
        assert!(admit(&denials, 2, START).is_some());
        let summed = admit(&denials, 2, START + WINDOW).unwrap();
        assert_eq!(summed[0].key_id, Some(key(1)), "another key's denial writes the count");
    }

    #[test]
    fn many_keys_take_no_more_memory_and_are_summed_up_together() {
        let denials = Denials::default();
        let written = (0..100_000).filter(|number| admit(&denials, *number, START).is_some());
        assert_eq!(written.count(), KEYS + LINES as usize);
        assert_eq!(denials.lock().by_key.len(), KEYS + 1);
        let summed = admit(&denials, 1, START + WINDOW).unwrap();
        let more = 100_000 - KEYS - LINES as usize;
        assert_eq!((summed.len(), summed[0].key_id), (1, None));
        assert!(summed[0].reason.as_ref().unwrap().starts_with(&format!("and {more} more")));
        assert_eq!(denials.lock().by_key.len(), 1);
    }

    #[test]
    fn what_could_not_be_written_is_not_lost() {
        let denials = Denials::default();
        for _ in 0..8 {
            admit(&denials, 1, START);
        }
        let overdue = denials.take_overdue(START + WINDOW);
        assert_eq!(overdue.0.len(), 1);
        denials.restore(overdue);
        assert_eq!(denials.take_overdue(START + WINDOW).0[0].1.more, 3);
        assert!(denials.take_overdue(START + WINDOW).0.is_empty());
    }
}

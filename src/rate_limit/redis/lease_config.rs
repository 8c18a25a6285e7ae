use std::time::Duration;

/// Leases: nodes take units in advance, and decide most requests without asking Redis.
///
/// A node takes a slice of a key's quotas at a time: about as many units as the key used on this
/// node lately, and at most an eighth of the burst or limit, so quotas below 8 are not leased.
/// Unused units are returned when the slice's lifetime is over. A node remembers that a key's quota
/// is exhausted until units may be available, but at most for one lifetime, so such keys do not
/// keep Redis busy.
///
/// The cost: a unit may be used up to one [lifetime](Self::lifetime) after it was taken. In the
/// long run no more requests pass than without leases; in any window, no more than would in a
/// window longer by the lifetime. A client may be denied units that another node holds and does not
/// need, for at most one lifetime; the wait it is told does not account for that.
#[derive(Clone, Debug)]
pub struct Leases {
    pub(super) lifetime: Duration,
    pub(super) most: u32,
}

pub(super) const SHORTEST: Duration = Duration::from_millis(10);
pub(super) const LONGEST: Duration = Duration::from_secs(10);

impl Leases {
    /// How long units are held at most. Default 1 s, at least 10 ms, at most 10 s.
    ///
    /// One second saves nearly all round trips of a busy key, and is too short for clients to
    /// notice units held by another node.
    #[must_use]
    pub fn lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime, ..self }
    }

    /// The maximum number of units in a slice. Default 1,000.
    ///
    /// Above that, the cost of a round trip per request is already negligible.
    #[must_use]
    pub fn most(self, units: u32) -> Self {
        Self { most: units, ..self }
    }
}

impl Default for Leases {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(1), most: 1000 }
    }
}

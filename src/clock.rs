//! Time as an argument: everything that asks what time it is asks a [`Clock`].

use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

/// The two readings of time the library needs.
///
/// Deadlines and buckets run on [`monotonic`](Self::monotonic), so that a step of the wall clock
/// neither prolongs a key nor refills a quota. [`now`](Self::now) only dates what people read.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock.
    fn now(&self) -> SystemTime;

    /// Time since an origin of the clock's own choosing. It never goes backwards.
    fn monotonic(&self) -> Duration;
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn now(&self) -> SystemTime {
        (**self).now()
    }

    fn monotonic(&self) -> Duration {
        (**self).monotonic()
    }
}

/// A monotonic reading in nanoseconds, which fits into an atomic. It stands still after 584 years.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The operating system's clocks. The default.
#[derive(Clone)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic reading starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one home of the system's time")]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one home of the system's time")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

impl fmt::Debug for SystemClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemClock")
    }
}

/// A clock that stands still until a test moves it.
///
/// Clones share one time.
///
/// ```
/// use std::time::Duration;
/// use tower_api_key::clock::{Clock, ManualClock};
///
/// let clock = ManualClock::default();
/// let before = clock.monotonic();
/// clock.advance(Duration::from_secs(61));
/// assert_eq!(clock.monotonic() - before, Duration::from_secs(61));
/// ```
#[cfg(feature = "test-util")]
#[derive(Clone, Debug)]
pub struct ManualClock {
    time: std::sync::Arc<std::sync::Mutex<(SystemTime, Duration)>>,
}

#[cfg(feature = "test-util")]
impl ManualClock {
    /// A clock whose wall reads `now`.
    #[must_use]
    pub fn at(now: SystemTime) -> Self {
        Self { time: std::sync::Arc::new(std::sync::Mutex::new((now, Duration::ZERO))) }
    }

    /// Lets time pass, on the wall and monotonically.
    pub fn advance(&self, by: Duration) {
        let mut time = self.lock();
        time.0 += by;
        time.1 += by;
    }

    /// Steps the wall clock alone, as an administrator or NTP does.
    pub fn set_wall(&self, now: SystemTime) {
        self.lock().0 = now;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (SystemTime, Duration)> {
        self.time.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(feature = "test-util")]
impl Default for ManualClock {
    /// 2026-01-01T00:00:00Z.
    fn default() -> Self {
        Self::at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600))
    }
}

#[cfg(feature = "test-util")]
impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        self.lock().0
    }

    fn monotonic(&self) -> Duration {
        self.lock().1
    }
}

//! Time as an argument: everything that asks what time it is asks a [`Clock`].

#[cfg(not(any(target_os = "linux", target_os = "android")))]
use std::time::Instant;
use std::{
    fmt,
    time::{Duration, SystemTime},
};

#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::time::{ClockId, clock_gettime};

/// The two readings of time the library needs.
///
/// Deadlines and buckets run on [`monotonic`](Self::monotonic), so that a step of the wall clock
/// neither prolongs a key nor refills a quota. [`now`](Self::now) dates what people read, and shows
/// when the monotonic clock has stood still: where the wall clock runs ahead of it by more than a
/// second, everything cached is [confirmed](crate::manual::freshness#clocks).
pub trait Clock: Send + Sync + 'static {
    /// The wall clock.
    fn now(&self) -> SystemTime;

    /// Time since an origin of the clock's own choosing. It never goes backwards, and should go on
    /// while the machine sleeps.
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
///
/// On Linux and Android the monotonic reading is `CLOCK_BOOTTIME`, which goes on while the machine
/// sleeps; elsewhere it is that of [`Instant`](std::time::Instant), which may stand still then.
#[derive(Clone)]
pub struct SystemClock {
    origin: Origin,
}

#[cfg(any(target_os = "linux", target_os = "android"))]
type Origin = Duration;

#[cfg(not(any(target_os = "linux", target_os = "android")))]
type Origin = Instant;

impl SystemClock {
    /// A clock whose monotonic reading starts now.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: origin() }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn origin() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Neither is negative: it is the time since the machine started.
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn since(origin: Duration) -> Duration {
    self::origin().saturating_sub(origin)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[expect(clippy::disallowed_methods, reason = "the one home of the system's time")]
fn origin() -> Instant {
    Instant::now()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since(origin: Instant) -> Duration {
    origin.elapsed()
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
        since(self.origin)
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

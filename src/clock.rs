//! Time as a dependency: all code that needs the time asks a [`Clock`].

#[cfg(not(any(target_os = "linux", target_os = "android")))]
use std::time::Instant;
use std::{
    fmt,
    time::{Duration, SystemTime},
};

#[cfg(any(target_os = "linux", target_os = "android"))]
use nix::time::{ClockId, clock_gettime};

/// The library's two time sources.
///
/// Deadlines and buckets use [`monotonic`](Self::monotonic), so a step of the wall clock neither
/// extends a key's life nor refills a quota. [`now`](Self::now) provides timestamps for people. It
/// also detects that the monotonic clock stopped: if the wall clock advances more than a second
/// further, all cached keys are [confirmed](crate::manual::freshness#clocks).
pub trait Clock: Send + Sync + 'static {
    /// The wall-clock time.
    fn now(&self) -> SystemTime;

    /// Time since an arbitrary origin. It never goes backwards, and should keep running while the
    /// machine sleeps.
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

/// A monotonic reading as nanoseconds, to fit into an atomic. Saturates after 584 years.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The operating system's clocks; the default.
///
/// On Linux and Android the monotonic reading is `CLOCK_BOOTTIME`, which keeps running while the
/// machine sleeps; elsewhere it is [`Instant`](std::time::Instant), which may stop.
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
    // No error: every kernel that Rust supports has this clock.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
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

/// A clock that only advances when a test tells it to.
///
/// Clones share the same time.
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
    time: std::sync::Arc<ManualTime>,
}

#[cfg(feature = "test-util")]
#[derive(Debug)]
struct ManualTime {
    now: std::sync::Mutex<(SystemTime, Duration)>,
    advanced: tokio::sync::Notify,
}

#[cfg(feature = "test-util")]
impl ManualClock {
    /// A clock whose wall-clock time is `now`.
    #[must_use]
    pub fn at(now: SystemTime) -> Self {
        let now = std::sync::Mutex::new((now, Duration::ZERO));
        let advanced = tokio::sync::Notify::new();
        Self { time: std::sync::Arc::new(ManualTime { now, advanced }) }
    }

    /// Advances both the wall clock and the monotonic clock.
    pub fn advance(&self, by: Duration) {
        let mut now = self.lock();
        now.0 += by;
        now.1 += by;
        drop(now);
        self.time.advanced.notify_waiters();
    }

    /// Steps only the wall clock, as an administrator or NTP might.
    pub fn set_wall(&self, now: SystemTime) {
        self.lock().0 = now;
    }

    /// Waits until the clock has been advanced by `by` from now.
    pub async fn sleep(&self, by: Duration) {
        let end = self.monotonic() + by;
        loop {
            // Made before the time is read, so that no advance is missed.
            let advanced = self.time.advanced.notified();
            if self.monotonic() >= end {
                return;
            }
            advanced.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (SystemTime, Duration)> {
        self.time.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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

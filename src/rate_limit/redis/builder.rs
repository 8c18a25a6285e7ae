use std::{error::Error, fmt, num::NonZeroU32, time::Duration};

use redis::{Client, ConnectionInfo, IntoConnectionInfo, RedisResult};

use super::{
    connection::Connection,
    lease_config::{self, Leases},
    name,
    outage_policy::OutagePolicy,
};
#[cfg(any(feature = "tls-rustls-ring", feature = "tls-rustls-aws-lc-rs"))]
use crate::tls;

const PREFIX: &str = "tower-api-key";
const DEADLINE: Duration = Duration::from_millis(25);
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(1);

/// Configures a [`RedisRateLimiter`](super::RedisRateLimiter).
pub struct RedisRateLimiterBuilder {
    url: String,
    settings: Settings,
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) prefix: String,
    pub(super) deadline: Duration,
    pub(super) unavailable: OutagePolicy,
    pub(super) nodes: NonZeroU32,
    pub(super) leases: Option<Leases>,
    pub(super) has_callers_time: bool,
}

impl RedisRateLimiterBuilder {
    pub(super) fn new(url: &str) -> Self {
        let settings = Settings {
            prefix: PREFIX.into(),
            deadline: DEADLINE,
            unavailable: OutagePolicy::default(),
            nodes: NonZeroU32::MIN,
            leases: None,
            has_callers_time: false,
        };
        Self { url: url.into(), settings }
    }

    /// The prefix of the names of all keys in Redis: 1 to 64 letters, digits, `-`, `_`, `.`, `:` or
    /// `/`. Default `tower-api-key`.
    ///
    /// Services with the same prefix share their buckets.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.prefix = prefix.into();
        self
    }

    /// How long a request waits for Redis, including connecting. Default 25 ms, at least 1 ms, at
    /// most 1 s.
    ///
    /// Redis answers in well below a millisecond; the rest allows for a busy network or server. A
    /// request that waits in vain is delayed by this much.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// What to do while Redis does not decide. Default [`OutagePolicy::Local`]: losing the rate
    /// limiter should not take the service down.
    #[must_use]
    pub fn when_unavailable(mut self, unavailable: OutagePolicy) -> Self {
        self.settings.unavailable = unavailable;
        self
    }

    /// The number of nodes that share the quotas while each decides locally. Default 1: each node
    /// then admits the whole quota, and `n` nodes up to `n` times as much.
    ///
    /// With `n`, each node admits an `n`th, rounded up: the fleet keeps the limit even without
    /// Redis, but a client that stays with one node gets less than its quota.
    #[must_use]
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.settings.nodes = NonZeroU32::new(nodes).unwrap_or(NonZeroU32::MIN);
        self
    }

    /// Takes units in advance, so that Redis is asked far less often than once per request.
    /// Default: no leases.
    #[must_use]
    pub fn leases(mut self, leases: Leases) -> Self {
        self.settings.leases = Some(leases);
        self
    }

    /// Uses the caller's clock instead of the clock of Redis.
    #[cfg(feature = "test-util")]
    #[doc(hidden)]
    #[must_use]
    pub fn callers_time(mut self) -> Self {
        self.settings.has_callers_time = true;
        self
    }

    /// The connection and the settings, if the URL and all settings are valid.
    pub(super) fn parts(self) -> Result<(Connection, Settings), InvalidRedisRateLimiter> {
        let Self { url, settings } = self;
        if !name::is_prefix(&settings.prefix) {
            return Err(Reason::Prefix.into());
        }
        check("deadline", settings.deadline, SHORTEST, LONGEST)?;
        if let Some(leases) = &settings.leases {
            check("lifetime", leases.lifetime, lease_config::SHORTEST, lease_config::LONGEST)?;
        }
        let client = client(&url).map_err(Reason::Url)?;
        Ok((Connection::new(client, settings.deadline, &settings.prefix), settings))
    }
}

/// Opens a client for the URL. `TCP_NODELAY` is set, because the deadline is shorter than a delayed
/// acknowledgement.
fn client(url: &str) -> RedisResult<Client> {
    let info: ConnectionInfo = url.into_connection_info()?;
    let settings = info.tcp_settings().clone().set_nodelay(true);
    let info = info.set_tcp_settings(settings);
    #[cfg(any(feature = "tls-rustls-ring", feature = "tls-rustls-aws-lc-rs"))]
    if matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. }) {
        tls::install_provider();
        // Where both kinds of TLS are compiled in, redis uses rustls, but trusts no certificates.
        #[cfg(feature = "tls-native")]
        return Client::build_with_tls(
            info,
            redis::TlsCertificates { client_tls: None, root_cert: Some(tls::system_roots()) },
        );
    }
    Client::open(info)
}

impl fmt::Debug for RedisRateLimiterBuilder {
    /// Omits the URL, which may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRateLimiterBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

fn check(
    setting: &'static str,
    value: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), InvalidRedisRateLimiter> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(Reason::Range { setting, least, most }.into())
    }
}

/// Why a [`RedisRateLimiter`](super::RedisRateLimiter) could not be built.
#[derive(Debug)]
pub struct InvalidRedisRateLimiter(Reason);

#[derive(Debug)]
enum Reason {
    Url(redis::RedisError),
    Prefix,
    Range { setting: &'static str, least: Duration, most: Duration },
}

impl From<Reason> for InvalidRedisRateLimiter {
    fn from(reason: Reason) -> Self {
        Self(reason)
    }
}

impl fmt::Display for InvalidRedisRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Url(_) => f.write_str(
                "the URL of Redis must look like redis://user:password@host:6379/0, rediss:// for TLS (with a feature `tls-…`), or unix:///path",
            ),
            Reason::Prefix => f.write_str(
                "the prefix must be 1 to 64 letters, digits, `-`, `_`, `.`, `:` or `/`",
            ),
            Reason::Range { setting, least, most } => {
                write!(f, "`{setting}` must be at least {least:?} and at most {most:?}")
            }
        }
    }
}

impl Error for InvalidRedisRateLimiter {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Reason::Url(error) => Some(error),
            Reason::Prefix | Reason::Range { .. } => None,
        }
    }
}

//! The usage ledger for billing systems: each closed hour of each key, once.

use std::time::{Duration, SystemTime};

use super::{KeyIssuer, ManageError, change::Attempt, issuer::check_limit};
use crate::store::{BucketWidth, UsageCursor, port::HourlyUse};

/// Which hours to export, and the page of them to read.
///
/// ```
/// # use tower_api_key::{key::KeyFormat, store::MemoryKeyStore};
/// use std::time::SystemTime;
/// use tower_api_key::{manage::{KeyIssuer, UsageExport}, store::UsageCursor};
///
/// # async fn push(event: String) -> Result<(), std::io::Error> { Ok(()) }
/// # async fn load() -> UsageCursor { UsageCursor::at(SystemTime::UNIX_EPOCH) }
/// # async fn save(cursor: UsageCursor) {}
/// async fn bill(issuer: &KeyIssuer) -> Result<(), Box<dyn std::error::Error>> {
///     let mut export = UsageExport::after(load().await);
///     loop {
///         let page = issuer.export_usage(&export).await?;
///         for hour in &page.hours {
///             push(hour.to_cloud_event("https://api.example.com")).await?;
///         }
///         save(page.next).await;
///         if page.is_last {
///             return Ok(());
///         }
///         export = UsageExport::after(page.next);
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = MemoryKeyStore::new();
/// # bill(&KeyIssuer::new(store, KeyFormat::new("sk_live_")?)).await
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct UsageExport {
    /// Cursor: the [`next`](UsageExportPage::next) of the previous page, or where to begin.
    pub after: UsageCursor,
    /// Hours that end at this time or earlier. `None`: all that are settled.
    pub to: Option<SystemTime>,
    /// How long ago an hour must have ended. Default: 15 minutes.
    ///
    /// Nodes write what they counted up to one
    /// [interval](crate::auth::Builder::usage_interval) after it happened, and again after a
    /// failure, so the counts of the last minutes still grow. An hour that was exported before they
    /// were complete is not exported again by itself. Choose more than two intervals and the time
    /// by which the clocks of nodes may differ.
    pub settled_after: Duration,
    /// Page size, 1 to 1,000. Default: 1,000, about 300 KiB.
    pub limit: usize,
}

/// With an interval of 10 seconds, time for a node to reach the database again after an outage.
const SETTLED_AFTER: Duration = Duration::from_secs(900);
const LIMIT: usize = 1000;

impl UsageExport {
    /// The settled hours after a position.
    pub const fn after(cursor: UsageCursor) -> Self {
        Self { after: cursor, to: None, settled_after: SETTLED_AFTER, limit: LIMIT }
    }

    /// Sets [`to`](Self::to).
    pub fn to(self, to: SystemTime) -> Self {
        Self { to: Some(to), ..self }
    }

    /// Sets [`settled_after`](Self::settled_after).
    pub fn settled_after(self, settled_after: Duration) -> Self {
        Self { settled_after, ..self }
    }

    /// Sets [`limit`](Self::limit).
    pub fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// The end of the last hour to export.
    fn end(&self, now: SystemTime) -> SystemTime {
        let settled = now.checked_sub(self.settled_after).unwrap_or(SystemTime::UNIX_EPOCH);
        BucketWidth::Hour.start(self.to.map_or(settled, |to| to.min(settled)))
    }
}

/// A page of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageExportPage {
    /// In the order of hour and key id.
    pub hours: Vec<HourlyUse>,
    /// Cursor: where the next page begins. After the last page, the first hour that is not settled
    /// yet: the position from which to go on later.
    pub next: UsageCursor,
    /// Whether there are no more settled hours for now.
    pub is_last: bool,
}

impl KeyIssuer {
    /// A page of the hours of all keys, for a billing system: see [`UsageExport`].
    ///
    /// A page that was read is the same when it is read again, so a consumer that fails in between
    /// repeats it. Each hour of a key has the same [id](HourlyUse::event_id) each time, by which the
    /// receiver drops what it has. Hours are kept for 35 days by default: export more often.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::key);
    /// [`Invalid`](super::ManageErrorKind::Invalid) for a limit of zero or more than 1,000 hours;
    /// [`Unsupported`](super::ManageErrorKind::Unsupported) if the store does not keep use; or when
    /// the store fails.
    pub async fn export_usage(&self, export: &UsageExport) -> Result<UsageExportPage, ManageError> {
        check_limit(export.limit)?;
        if !self.actor.is_operator() {
            let attempt = Attempt::to("export usage");
            return Err(self.deny(ManageError::operators_only(), attempt).await?);
        }
        let end = export.end(self.now());
        let hours = self.store.usage_hours(export.after, end, export.limit).await?;
        let is_last = hours.len() < export.limit;
        let next = match hours.last() {
            Some(last) if !is_last => UsageCursor::after(last.hour, last.key_id),
            _ => export.after.max(UsageCursor::at(end)),
        };
        Ok(UsageExportPage { hours, next, is_last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn an_hour_is_settled_a_while_after_its_end() {
        let noon = SystemTime::UNIX_EPOCH + 12 * HOUR;
        let export = UsageExport::after(UsageCursor::at(SystemTime::UNIX_EPOCH));
        assert_eq!(export.end(noon + 15 * MINUTE - Duration::from_nanos(1)), noon - HOUR);
        assert_eq!(export.end(noon + 15 * MINUTE), noon);
        let later = export.clone().settled_after(HOUR);
        assert_eq!(later.end(noon + 15 * MINUTE), noon - HOUR);
        let earlier = export.to(noon - HOUR - MINUTE);
        assert_eq!(earlier.end(noon + 15 * MINUTE), noon - 2 * HOUR);
    }
}

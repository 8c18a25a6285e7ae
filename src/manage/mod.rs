//! Key management: issue, import, list, update, rotate, revoke and prune keys.
//!
//! [`KeyIssuer`] is the one service behind the application's own code, the admin router and the
//! command line. [`Authenticator::issuer`](crate::Authenticator::issuer) makes one whose changes
//! that authenticator applies at once; [`KeyIssuer::new`] makes one for a program that only manages
//! keys.
//!
//! ```
//! use std::time::Duration;
//! use tower_api_key::{
//!     Authenticator,
//!     key::KeyFormat,
//!     manage::{Expiry, NewKey, Rotation},
//!     record::Scopes,
//!     store::MemoryKeyStore,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! const DAY: Duration = Duration::from_secs(86_400);
//!
//! let store = MemoryKeyStore::new();
//! let (auth, worker) = Authenticator::builder(store.clone(), KeyFormat::new("sk_live_")?).build();
//! # drop(worker);
//! let issuer = auth.issuer(store);
//! let new = NewKey::new("acme", Expiry::In(90 * DAY))
//!     .name("nightly export")
//!     .scopes(Scopes::parse(["reports:read"])?);
//! let issued = issuer.issue(new).await?;
//! println!("{}", issued.key.expose_secret()); // shown once, never stored
//!
//! let rotated = issuer.rotate(issued.record.id, Rotation::new().grace(DAY)).await?;
//! assert_eq!(rotated.record.rotated_from, Some(issued.record.id));
//!
//! let revoked = issuer.revoke(issued.record.id, Some("no longer used")).await?;
//! assert!(revoked.revoked_at.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! 1. A change and its audit entries are committed in one transaction, or not at all.
//! 2. Every change is made by an [`Actor`]. An operator may do anything. A calling key can grant no
//!    more than it holds itself (scopes, expiry, limits, consumer), and what it holds is read and
//!    locked in the transaction of the change. A signed-in [`Member`] can grant no more than its
//!    [`Grant`], by the same comparison.
//! 3. A calling key or a member gets the same answer for keys of other consumers as for keys that
//!    do not exist.
//! 4. A denied attempt changes nothing and is in the audit under the calling key, or under the
//!    member and, if it manages only one, its consumer. The audit has at most five entries a minute
//!    for the denials of one key or member. Further denials are counted, and the count is written
//!    with the first entry after that minute. A process that ends earlier loses the count, and logs
//!    it.
//! 5. Dropping the future of a change does not cancel it: the change runs to its end in a task of
//!    its own, and the caches of this process are invalidated. This needs a tokio runtime.
//! 6. A revocation is final. The databases themselves refuse to undo it, and to change or delete an
//!    audit entry.
//! 7. Pruning and revoking skip a key that the database refuses, and report it. An import fails and
//!    names the key.
//! 8. Each consumer can have two changes or queries of its keys in progress at once. Further ones
//!    wait for up to a second and are then refused, so that one consumer cannot take all
//!    connections of the store. Operators are exempt.
//! 9. A new or changed key meets the [`IssuePolicy`] of the issuer, for every actor. It is checked in
//!    the same transaction. Only an operator can override it, with a reason for the audit.
//! 10. A request with an idempotency key is carried out once, and only the first response shows the
//!     new key.

mod actor;
mod audit;
mod authority;
mod batch;
mod change;
mod cloud_event;
mod consumer_ids;
mod consumer_semaphores;
mod creation_bounds;
mod creation_limits;
mod denials;
mod duration;
mod erased;
mod error;
mod expiry;
mod grant;
mod idempotency;
mod import;
mod issue;
mod issuer;
mod key_import;
mod leak;
mod leak_policy;
mod legacy_import;
mod member;
mod merge;
mod metadata_patch;
mod new_key;
mod places;
mod plans;
mod policy;
mod policy_check;
mod policy_file;
mod prune;
mod reconcile;
mod revoke;
mod rotate;
mod scopes;
mod text;
mod update;
mod usage;
mod usage_export;

pub use self::{
    actor::Actor,
    consumer_ids::ConsumerIds,
    error::{ManageError, ManageErrorKind},
    expiry::InvalidExpiry,
    grant::Grant,
    import::Imported,
    issue::Issued,
    issuer::KeyIssuer,
    key_import::KeyImport,
    leak::{LeakOutcome, LeakReport},
    leak_policy::{LeakPolicy, LeakResponse},
    member::Member,
    new_key::{Expiry, NewKey},
    policy::{IssuePolicy, IssueRules, NeverExpires},
    policy_file::InvalidPolicy,
    prune::Pruned,
    reconcile::{AuditHistory, ReconcileOutcome, ReconciledKey},
    revoke::{RevocationFilter, Revocations},
    rotate::{Rotated, Rotation},
    update::KeyUpdate,
    usage::UsageReport,
    usage_export::{UsageExport, UsageExportPage},
};
#[cfg(feature = "admin")]
pub(crate) use self::{
    consumer_semaphores::{ConsumerPermit, ConsumerSemaphores},
    idempotency::is_idempotency_key,
    issuer::is_page_limit,
};
#[cfg(feature = "openapi")]
pub(crate) use self::{idempotency::MAX_IDEMPOTENCY_KEY, issuer::MAX_PAGE_LIMIT};

//! The life of a key: issued, listed, changed, rotated, expired, revoked, imported, pruned.
//!
//! One service, [`KeyIssuer`], is behind every way to manage keys: the application's own code, the
//! admin router, the command line.
//!
//! ```
//! use std::time::Duration;
//! use tower_api_key::{
//!     key::KeyFormat,
//!     manage::{Expiry, KeyIssuer, NewKey, Rotation},
//!     record::Scopes,
//!     store::MemoryKeyStore,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! const DAY: Duration = Duration::from_secs(86_400);
//!
//! let issuer = KeyIssuer::new(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?);
//! let new = NewKey::new("acme", Expiry::In(90 * DAY))
//!     .name("nightly export")
//!     .scopes(Scopes::parse(["reports:read"])?);
//! let issued = issuer.issue(new).await?;
//! println!("{}", issued.key.expose_secret()); // shown once, never stored
//!
//! let rotated = issuer.rotate(issued.record.id, Rotation::new().grace(DAY)).await?;
//! assert_eq!(rotated.record.rotated_from, Some(issued.record.id));
//!
//! let revoked = issuer.revoke(issued.record.id, Some("nobody uses it any more")).await?;
//! assert!(revoked.revoked_at.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! 1. A change and the lines of the audit that tell of it are one transaction: both are there, or
//!    neither is.
//! 2. Who changes a key is an [`Actor`]. An operator may do anything. A key can grant no more than
//!    it holds itself (scopes, expiry, limits, consumer), and what it holds is read, and locked, in
//!    the transaction of the change.
//! 3. To a calling key, the keys of other consumers do not exist.
//! 4. What is denied changes nothing, and is in the audit, under the key that tried it. Of each key five
//!    denials a minute get a line; the rest is counted, and the count gets one when the next line is
//!    written after that minute. A process that ends before loses the count, and logs it.
//! 5. Whoever stops waiting for a change does not stop it: it runs in a task of its own, is carried
//!    through, and the caches of this process are told. That takes a tokio runtime.
//! 6. A revocation is for good. The databases themselves refuse to undo it, and to change or delete
//!    a line of the audit.
//! 7. A batch does not fail for one of its keys: where the database refuses a key, pruning and revoking
//!    go on without it and count it, and an import names it.
//! 8. Of each consumer, two changes or questions of its keys are carried out at once, and more wait
//!    for a second before they are refused: one consumer cannot take what there is for all.
//!    Operators are not bounded by that.
//! 9. A request with an idempotency key is carried out once. A key is shown only to who asked first.

mod actor;
mod admission;
mod audit;
mod batch;
mod bounds;
mod change;
mod denials;
mod erased;
mod error;
mod import;
mod issue;
mod issuer;
mod new_key;
mod plans;
mod prune;
mod reconcile;
mod revoke;
mod rotate;
mod text;
mod update;

pub use self::{
    actor::Actor,
    error::{ManageError, ManageErrorKind},
    import::{Imported, KeyImport},
    issue::Issued,
    issuer::KeyIssuer,
    new_key::{Expiry, NewKey},
    prune::Pruned,
    reconcile::{AuditHistory, ReconcileOutcome, ReconciledKey},
    revoke::{RevocationFilter, Revocations},
    rotate::{Rotated, Rotation},
    update::KeyUpdate,
};
#[cfg(feature = "admin")]
pub(crate) use self::{
    admission::{PerConsumer, Turn},
    text::is_plain,
};

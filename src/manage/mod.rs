//! The life of a key: how it is issued.
//!
//! It ends with [`ManageKeys::revoke`](crate::store::ManageKeys::revoke), after which
//! [`Authenticator::invalidate`](crate::Authenticator::invalidate) makes this process forget it.
//!
//! ```
//! use std::time::Duration;
//! use tower_api_key::{
//!     key::KeyFormat,
//!     manage::{KeyIssuer, NewKey},
//!     record::Scopes,
//!     store::MemoryKeyStore,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let issuer = KeyIssuer::new(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?);
//! let new = NewKey::new("acme")
//!     .name("nightly export")
//!     .scopes(Scopes::parse(["reports:read"])?)
//!     .expires_in(Duration::from_secs(90 * 86_400));
//! let issued = issuer.issue(new).await?;
//!
//! println!("{}", issued.key.expose_secret()); // shown once, never stored
//! assert_eq!(issued.record.consumer_id, "acme");
//! # Ok(())
//! # }
//! ```

mod issue;

pub use self::issue::{IssueError, IssueErrorKind, Issued, KeyIssuer, NewKey};

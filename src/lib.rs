#![doc = "API keys for any tower HTTP service."]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used))]

pub mod auth;
pub mod clock;
pub mod key;
pub mod layer;
pub mod manage;
pub mod rate_limit;
pub mod record;
pub mod store;
mod trace;

pub use auth::Authenticator;
pub use layer::{ApiKeyLayer, RequireScope};
pub use record::Consumer;

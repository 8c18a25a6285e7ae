//! What the layer reads from a request: credentials, the client's address, and the consumer that an
//! outer layer attached.

mod authorization;
pub(super) mod caller;
mod client_address;
pub(super) mod credentials;
#[cfg(feature = "axum")]
mod extractor;
mod form;
#[cfg(feature = "axum")]
mod granted;
mod misplaced_key;
mod mistake;
#[cfg(feature = "axum")]
mod original_uri;
mod parts;
mod peer;
mod preflight;
mod scheme;

pub(super) use self::{
    authorization::UserName,
    misplaced_key::find_misplaced,
    mistake::Mistake,
    parts::{parts_without_key, parts_without_keys},
    preflight::is_preflight,
};
pub use self::{
    client_address::ClientAddress,
    peer::PeerAddr,
    scheme::{InvalidScheme, Scheme},
};
#[cfg(feature = "axum")]
pub use self::{extractor::ConsumerRejection, granted::Granted};

//! What the layer reads from a request: credentials, the client's address, and the consumer that an
//! outer layer attached.

pub(super) mod caller;
mod client_address;
pub(super) mod credentials;
#[cfg(feature = "axum")]
mod extractor;
#[cfg(feature = "axum")]
mod granted;
mod misplaced_key;
mod mistake;
#[cfg(feature = "axum")]
mod original_uri;
mod parts;
mod peer;
mod preflight;
mod websocket_protocol;

pub use self::{client_address::ClientAddress, peer::PeerAddr};
#[cfg(feature = "axum")]
pub use self::{extractor::ConsumerRejection, granted::Granted};
pub(super) use self::{
    misplaced_key::find_misplaced,
    mistake::Mistake,
    parts::{parts_without_key, parts_without_keys},
    preflight::is_preflight,
};

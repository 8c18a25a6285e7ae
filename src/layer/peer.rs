#[cfg(feature = "axum")]
use std::net::SocketAddr;
use std::{net::IpAddr, sync::Once};

#[cfg(feature = "axum")]
use axum::extract::ConnectInfo;
use http::Extensions;

use crate::trace;

/// The address at the other end of the connection, as a server knows it that is not axum's: put it
/// into the extensions of its requests.
///
/// It counts before axum's `ConnectInfo`, so that whoever finds out addresses in a way of their own
/// can say so.
///
/// ```
/// # use std::net::SocketAddr;
/// use tower_api_key::layer::PeerAddr;
///
/// # let mut request = http::Request::new(());
/// # let peer = SocketAddr::from(([192, 0, 2, 1], 50_000));
/// // `peer` comes from `TcpListener::accept`.
/// request.extensions_mut().insert(PeerAddr(peer.ip()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(
    /// Without the port.
    pub IpAddr,
);

/// `None` if the server told nobody, of which the operator is told once.
pub(super) fn peer(extensions: &Extensions) -> Option<IpAddr> {
    static TOLD: Once = Once::new();

    let peer = known_peer(extensions);
    if peer.is_none() {
        TOLD.call_once(|| {
            trace::warn!(
                "failures are not throttled: requests have neither a `ConnectInfo<SocketAddr>` \
                 (see `Router::into_make_service_with_connect_info`) nor a `PeerAddr`"
            );
        });
    }
    peer
}

fn known_peer(extensions: &Extensions) -> Option<IpAddr> {
    if let Some(PeerAddr(peer)) = extensions.get() {
        return Some(*peer);
    }
    #[cfg(feature = "axum")]
    if let Some(ConnectInfo(peer)) = extensions.get::<ConnectInfo<SocketAddr>>() {
        return Some(peer.ip());
    }
    None
}

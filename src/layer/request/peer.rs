#[cfg(feature = "axum")]
use std::net::SocketAddr;
use std::{net::IpAddr, sync::Once};

#[cfg(feature = "axum")]
use axum::extract::ConnectInfo;
use http::Extensions;

use crate::trace;

/// The address of the connection's peer, for servers other than axum's: insert it into the
/// extensions of each request.
///
/// It takes precedence over axum's `ConnectInfo`, so that a service that determines addresses
/// itself can override it.
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

/// `None`, with a warning the first time, if the request carries no peer address.
pub(in crate::layer) fn peer(extensions: &Extensions) -> Option<IpAddr> {
    static TOLD: Once = Once::new();

    let peer = known_peer(extensions);
    if peer.is_none() {
        TOLD.call_once(|| {
            trace::warn!(
                "client address unknown, failures not throttled, keys with networks refused: the \
                 request carries neither `ConnectInfo<SocketAddr>` (see \
                 `Router::into_make_service_with_connect_info`) nor `PeerAddr`"
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

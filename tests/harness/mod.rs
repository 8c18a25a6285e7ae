//! What integration tests share: a throwaway PostgreSQL and Redis, and a proxy that breaks connections
//! to them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of the harness")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness that fails must fail its test"
)]

pub mod netns;
#[cfg(feature = "postgres")]
pub mod pgbouncer;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod proxy;
#[cfg(feature = "redis")]
pub mod redis;
pub mod tls;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    net::{Ipv4Addr, SocketAddr},
};

use tokio::net::TcpSocket;

/// A port that stays ours while nobody listens on it.
///
/// A bound socket that never listens refuses connections and keeps the port from being handed to
/// anybody else; on Linux a listener that sets `SO_REUSEADDR`, as tokio's and PostgreSQL's do, may
/// still bind beside it. Elsewhere it may not, and the port is merely likely to stay free.
pub struct Port {
    pub addr: SocketAddr,
    _held: Option<TcpSocket>,
}

impl Port {
    pub fn reserve() -> Self {
        Self::reserve_on(Ipv4Addr::LOCALHOST)
    }

    /// The same of another address of this machine.
    pub fn reserve_on(ip: Ipv4Addr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR");
        socket.bind((ip, 0).into()).expect("a free port");
        let addr = socket.local_addr().expect("the port's address");
        Self { addr, _held: cfg!(target_os = "linux").then_some(socket) }
    }
}

/// A number no other run of any test has drawn.
pub fn unique() -> u64 {
    RandomState::new().build_hasher().finish()
}

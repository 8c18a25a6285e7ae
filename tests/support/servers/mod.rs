//! Shared by integration tests: a throwaway PostgreSQL and Redis, and a proxy that breaks
//! connections to them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of the harness")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness that fails must fail its test"
)]

pub mod netns;
pub mod pgbouncer;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod tls;

use std::{
    env, fs,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
};

use tokio::net::TcpSocket;

/// A port that stays reserved while nothing listens on it.
///
/// A bound socket that never listens refuses connections and keeps the system from assigning the
/// port elsewhere; on Linux a listener that sets `SO_REUSEADDR`, as tokio's and PostgreSQL's do,
/// can still bind beside it. Elsewhere it cannot, and the port is merely likely to stay free.
pub struct Port {
    pub addr: SocketAddr,
    _held: Option<TcpSocket>,
}

impl Port {
    pub fn reserve() -> Self {
        Self::reserve_on(Ipv4Addr::LOCALHOST)
    }

    /// The same on another address of this machine.
    pub fn reserve_on(ip: Ipv4Addr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        // Set only afterwards: the system may assign one port to two sockets that both have it.
        socket.bind((ip, 0).into()).expect("a free port");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR");
        let addr = socket.local_addr().expect("the port's address");
        Self { addr, _held: cfg!(target_os = "linux").then_some(socket) }
    }
}

/// If set, tests that need root are skipped without it.
const WITHOUT_ROOT: &str = "WITHOUT_ROOT";
/// The file to which each skipped test writes a line. `tests/run` counts them.
const LEFT_OUT: &str = "LEFT_OUT";

/// The result of what only root can do for `test`. Without root the test fails, or, if
/// [`WITHOUT_ROOT`] is set, gets `None` and must return.
pub fn as_root<T>(test: &str, done: io::Result<T>) -> Option<T> {
    let error = match done {
        Ok(done) => return Some(done),
        Err(error) => error,
    };
    assert!(
        env::var_os(WITHOUT_ROOT).is_some(),
        "{test} needs root: {error}. `WITHOUT_ROOT=1 tests/run` leaves it out, and says so"
    );
    let line = format!("{test}: {error}\n");
    eprint!("left out: {line}");
    if let Some(file) = env::var_os(LEFT_OUT) {
        let file = fs::OpenOptions::new().append(true).create(true).open(file);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the list of tests");
    }
    None
}

/// A number unique among all tests and runs.
pub fn unique() -> u64 {
    RandomState::new().build_hasher().finish()
}

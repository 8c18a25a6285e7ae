//! Whether the network between this process and the database can read or change traffic.

use std::net::IpAddr;

use sqlx::{
    ConnectOptions as _, Connection as _,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::store::doctor::Finding;

const CHECK: &str = "encryption";
const ADVICE: &str = "append `sslmode=verify-full` to the URL, and `sslrootcert=FILE` if a private \
    CA issued the server's certificate";

/// Loopback and Unix sockets need no TLS. For any other host, the server cannot tell whether this
/// end of the connection is encrypted: a proxy in between would answer for itself.
pub(super) async fn encryption(options: &PgConnectOptions) -> sqlx::Result<Finding> {
    if !is_remote(options) {
        return Ok(Finding::ok(CHECK, "the database is on this machine"));
    }
    let host = options.get_host();
    let plain = format!(
        "connections to {host} are in plain text: passwords, key hashes, scopes and limits can be \
        read and changed in transit"
    );
    Ok(match options.get_ssl_mode() {
        PgSslMode::VerifyFull => {
            Finding::ok(CHECK, format!("connections to {host} are encrypted, and its name checked"))
        }
        PgSslMode::VerifyCa | PgSslMode::Require => {
            let detail = format!(
                "connections to {host} are encrypted, but its name is not checked: \
                use `sslmode=verify-full`"
            );
            Finding::ok(CHECK, detail)
        }
        PgSslMode::Prefer if takes_tls(options).await? => {
            let detail = format!(
                "encryption of connections to {host} is optional: they fall back to plain \
                text if anything in between claims that the server has no TLS"
            );
            Finding::warning(CHECK, detail, ADVICE)
        }
        // sqlx treats `allow` like `disable`.
        PgSslMode::Prefer | PgSslMode::Allow | PgSslMode::Disable => {
            Finding::warning(CHECK, plain, ADVICE)
        }
    })
}

async fn takes_tls(options: &PgConnectOptions) -> sqlx::Result<bool> {
    match options.clone().ssl_mode(PgSslMode::Require).connect().await {
        Ok(connection) => connection.close().await.map(|()| true),
        Err(sqlx::Error::Tls(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_remote(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    if options.get_socket().is_some() || host.starts_with('/') {
        return false;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    match bare.parse::<IpAddr>() {
        Ok(address) => !address.to_canonical().is_loopback(),
        // All of `.localhost` is loopback (RFC 6761).
        Err(_) => bare.rsplit('.').next().is_none_or(|it| !it.eq_ignore_ascii_case("localhost")),
    }
}

#[cfg(test)]
mod tests {
    fn is_remote(url: &str) -> bool {
        super::is_remote(&url.parse().unwrap())
    }

    #[test]
    fn loopback_and_sockets_are_not_remote() {
        for host in [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "db.localhost",
            "127.0.0.1",
            "127.1.2.3",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "%2Fvar%2Frun%2Fpostgresql",
        ] {
            assert!(!is_remote(&format!("postgres://app@{host}/app")), "{host}");
        }
        assert!(!is_remote("postgres:///app?host=/var/run/postgresql"));
    }

    #[test]
    fn every_other_host_is_remote() {
        for host in [
            "db.internal",
            "localhost.example.com",
            "notlocalhost",
            "10.0.0.1",
            "192.168.1.1",
            "128.0.0.1",
            "[fd00::1]",
            "[::ffff:10.0.0.1]",
        ] {
            assert!(is_remote(&format!("postgres://app@{host}/app")), "{host}");
        }
        assert!(is_remote("postgres:///app?host=db.internal"));
    }
}

//! The server: its version, its clock, and a pooler in front of it.

use std::time::{Duration, SystemTime};

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, Row as _, postgres::PgConnectOptions,
    query_scalar, raw_sql,
};

use crate::{clock::Clock, store::doctor::Finding};

/// With a larger skew, `not_before` takes effect noticeably late, and logs are hard to compare.
const SKEW: Duration = Duration::from_secs(1);

/// Whether the server is a standby.
pub(super) async fn server(
    connection: &mut PgConnection,
    findings: &mut Vec<Finding>,
) -> sqlx::Result<bool> {
    let asked = "select current_setting('server_version_num')::int, pg_is_in_recovery()";
    let row = raw_sql(asked).fetch_one(connection).await?;
    let (version, standby): (i32, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (major, minor) = (version / 10_000, version % 10_000);
    findings.push(if major < 14 {
        let detail = format!("PostgreSQL {major}.{minor}");
        Finding::problem("server", detail, "upgrade to PostgreSQL 14 or later")
    } else if standby {
        let advice = "a standby serves only look-ups: change keys on the primary, and use a \
            `PollingChangeFeed` to learn of changes";
        Finding::warning("server", "this is a standby", advice)
    } else {
        Finding::ok("server", format!("PostgreSQL {major}.{minor}"))
    });
    Ok(standby)
}

pub(super) async fn skew(
    connection: &mut PgConnection,
    clock: &impl Clock,
) -> sqlx::Result<Finding> {
    let before = clock.now();
    let asked = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
    let micros: i64 = raw_sql(asked).fetch_one(connection).await?.try_get(0)?;
    let after = clock.now();
    let theirs =
        SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or_default());
    // The database's clock was read at some time in between.
    let behind = before.duration_since(theirs).unwrap_or_default();
    let ahead = theirs.duration_since(after).unwrap_or_default();
    let (skew, which) = if behind > ahead { (behind, "behind") } else { (ahead, "ahead of") };
    let detail = format!("the database's clock is {skew:.1?} {which} this machine's");
    if skew <= SKEW {
        return Ok(Finding::ok("clock", "the database's clock agrees with this machine's"));
    }
    let advice = "synchronise both with NTP: the service's clock dates new keys, and the \
        database's clock decides whether they are valid";
    Ok(Finding::warning("clock", detail, advice))
}

/// Two open client connections with the same backend prove that a pooler shares its server
/// connections.
pub(super) async fn pooler(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
) -> sqlx::Result<Finding> {
    const CHECK: &str = "pooler";
    let mut second = options.connect().await?;
    let mut shared = false;
    for _ in 0..3 {
        shared |= backend(connection).await? == backend(&mut second).await?;
    }
    if !shared {
        second.close().await?;
        return Ok(Finding::ok(CHECK, "each connection has its own session"));
    }
    // The first statement of each connection has the same name.
    let first: sqlx::Result<i32> = query_scalar("select 1").fetch_one(&mut *connection).await;
    let other: sqlx::Result<i32> = query_scalar("select 2").fetch_one(&mut second).await;
    if let Err(error) = first.and(other) {
        let detail = format!("a pooler in transaction mode mixes up statements: {error}");
        let advice = "use PgBouncer 1.21 or later with `max_prepared_statements` above 0, or its \
            session mode";
        return Ok(Finding::problem(CHECK, detail, advice));
    }
    second.close().await?;
    let advice = "fine with PgBouncer 1.21 or later, except that LISTEN does not work";
    Ok(Finding::warning(CHECK, "a pooler reassigns connections after each transaction", advice))
}

async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    raw_sql("select pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

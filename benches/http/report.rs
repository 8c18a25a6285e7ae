//! Results, and the machine they come from.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    contenders::{Contender, Running},
    machine::{self, Machine},
    options::Options,
    stats::median,
    wrk::{self, Seen},
};

/// The baseline of the comparison.
const BARE: &str = "axum";
const LAYER: &str = "layer";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) date: String,
    pub(crate) machine: Machine,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) rounds: usize,
    pub(crate) seconds: u64,
    pub(crate) connections: u32,
    pub(crate) loads: Vec<Load>,
}

/// One kind of load, and the results of each server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) pinned: bool,
    pub(crate) keys: usize,
    pub(crate) servers: Vec<Row>,
}

/// Medians over the rounds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) label: String,
    pub(crate) description: String,
    pub(crate) is_peer: bool,
    pub(crate) requests_per_second: f64,
    pub(crate) slowest_round: f64,
    pub(crate) fastest_round: f64,
    /// Relative to axum alone, in requests per second of the same round.
    pub(crate) share_of_axum: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// CPU time of the server's processes per request.
    pub(crate) cpu_us: f64,
    /// More than axum alone in the same round.
    pub(crate) cpu_us_added: f64,
    /// CPU time of PostgreSQL per request.
    pub(crate) database_cpu_us: f64,
    /// Requests per second of `layer` in the same round, and its CPU time per request, as multiples
    /// of this server's.
    pub(crate) layer_speed: f64,
    pub(crate) layer_cpu: f64,
    pub(crate) resident_bytes: u64,
}

/// One measurement of one server.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
    database_us: f64,
}

impl Round {
    pub(crate) fn new(seen: &Seen, cpu: Duration, database: Duration) -> Self {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / seen.requests as f64;
        Self {
            per_second: seen.requests as f64 / seen.seconds,
            p50_us: seen.p50_us,
            p99_us: seen.p99_us,
            cpu_us: each(cpu),
            database_us: each(database),
        }
    }
}

impl Load {
    pub(crate) fn new(
        pinned: bool,
        keys: usize,
        servers: &[&Running<'_>],
        rounds: &[Vec<Round>],
    ) -> Self {
        let all = || servers.iter().zip(rounds);
        let of = |name| {
            let found = all().find(|(server, _)| server.contender.name() == name);
            found.map_or(&[][..], |(_, rounds)| rounds)
        };
        let (bare, layer) = (of(BARE), of(LAYER));
        let row = |(server, rounds): (&&Running<'_>, &Vec<Round>)| {
            let each = |of: fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<_>>();
            let paired = |others: &[Round], of: fn(&Round, &Round) -> f64| {
                median(rounds.iter().zip(others).map(|(round, other)| of(round, other)).collect())
            };
            let speeds = each(|round| round.per_second);
            Row {
                name: server.contender.name().into(),
                label: server.contender.label().into(),
                description: server.contender.description().into(),
                is_peer: server.contender.is_peer(),
                slowest_round: speeds.iter().copied().fold(f64::INFINITY, f64::min),
                fastest_round: speeds.iter().copied().fold(0.0, f64::max),
                requests_per_second: median(speeds),
                share_of_axum: paired(bare, |round, bare| round.per_second / bare.per_second),
                p50_us: median(each(|round| round.p50_us)),
                p99_us: median(each(|round| round.p99_us)),
                cpu_us: median(each(|round| round.cpu_us)),
                cpu_us_added: paired(bare, |round, bare| round.cpu_us - bare.cpu_us),
                database_cpu_us: median(each(|round| round.database_us)),
                layer_speed: paired(layer, |round, layer| layer.per_second / round.per_second),
                layer_cpu: paired(layer, |round, layer| layer.cpu_us / round.cpu_us),
                resident_bytes: server.process.resident().unwrap_or_default(),
            }
        };
        Self { pinned, keys, servers: all().map(row).collect() }
    }

    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.servers.iter().find(|row| row.name == name)
    }

    pub(crate) fn title(&self) -> String {
        let cores = if self.pinned { "server and wrk on a core each" } else { "any core" };
        match self.keys {
            1 => format!("one key, {cores}"),
            keys => format!("{keys} keys, {cores}"),
        }
    }

    pub(crate) fn print(&self) {
        println!("\n# {}\n", self.title());
        println!(
            "{:<20} {:>9} {:>17} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}",
            "",
            "req/s",
            "slowest..fastest",
            "of axum",
            "p50 us",
            "p99 us",
            "CPU us",
            "added us",
            "PG us",
            "MB",
        );
        for row in &self.servers {
            println!(
                "{:<20} {:>9.0} {:>17} {:>7.1}% {:>9.0} {:>9.0} {:>9.2} {:>+9.2} {:>8.2} {:>7.1}",
                row.name,
                row.requests_per_second,
                format!("{:.0}..{:.0}", row.slowest_round, row.fastest_round),
                row.share_of_axum * 100.0,
                row.p50_us,
                row.p99_us,
                row.cpu_us,
                row.cpu_us_added,
                row.database_cpu_us,
                row.resident_bytes as f64 / 1e6,
            );
        }
        let Some(layer) = self.row(LAYER) else { return };
        println!();
        for row in self.servers.iter().filter(|row| row.name.starts_with("from_fn")) {
            let added = layer.cpu_us_added / row.cpu_us_added;
            println!("layer: {added:.2} x the CPU that {} adds", row.name);
        }
        for row in self.servers.iter().filter(|row| row.is_peer || row.name == "from_fn-query") {
            println!(
                "layer: {:.1} x the requests a second of {}, 1/{:.1} of its CPU",
                row.layer_speed,
                row.name,
                1.0 / row.layer_cpu,
            );
        }
    }
}

/// Crates whose versions matter.
const CRATES: [&str; 9] =
    ["axum", "governor", "hyper", "moka", "sha2", "sqlx", "tokio", "tower", "tower_governor"];

impl Report {
    pub(crate) fn begin(
        options: &Options,
        contenders: &[Contender],
        postgres: &str,
    ) -> Result<Self> {
        // First: its error says what is missing.
        let mut versions = BTreeMap::from([("wrk".into(), wrk::version()?)]);
        versions.insert("postgresql".into(), postgres.into());
        versions.extend(machine::versions(&CRATES)?);
        for contender in contenders {
            if let Contender::Peer(peer) = contender {
                versions.extend(peer.versions()?);
            }
        }
        Ok(Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            machine: Machine::this()?,
            versions,
            rounds: options.rounds,
            seconds: options.seconds.as_secs(),
            connections: wrk::CONNECTIONS,
            loads: Vec::new(),
        })
    }
}

use std::{path::PathBuf, time::Duration};

use crate::Result;

const USAGE: &str = "\
cargo bench --bench http -- [OPTIONS]

  --rounds N     how often each server is loaded, for its median; 15
  --seconds S    how long each time; 1
  --only NAME    only servers with this name prefix, beside axum alone and the layer; repeatable
  --peers        also alternatives in other languages: needs node, npm, python3, registries
  --json FILE    writes the figures to this file
  --plot         measures nothing: draws docs/http.svg from FILE, or from benches/results/http.json";

/// The figures that the README quotes.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/http.json");

pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) seconds: Duration,
    pub(crate) only: Vec<String>,
    pub(crate) peers: bool,
    pub(crate) json: Option<PathBuf>,
    pub(crate) plot: bool,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            rounds: 15,
            seconds: Duration::from_secs(1),
            only: Vec::new(),
            peers: false,
            json: None,
            plot: false,
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--rounds" => options.rounds = value()?.parse::<usize>()?.max(1),
                "--seconds" => {
                    options.seconds = Duration::from_secs(value()?.parse::<u64>()?.max(1))
                }
                "--only" => options.only.push(value()?.clone()),
                "--json" => options.json = Some(value()?.into()),
                "--peers" => options.peers = true,
                "--plot" => options.plot = true,
                // As cargo calls every benchmark.
                "--bench" => {}
                _ => return Err(format!("unknown option {argument}\n{USAGE}").into()),
            }
        }
        Ok(options)
    }

    /// The figures to draw.
    pub(crate) fn figures(&self) -> PathBuf {
        self.json.clone().unwrap_or_else(|| COMMITTED.into())
    }
}

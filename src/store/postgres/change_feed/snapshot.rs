/// Which transactions had ended at some time.
#[derive(Default)]
pub(super) struct Snapshot {
    /// No transaction from this number on had ended.
    end: u64,
    /// These had not ended either. Sorted.
    running: Vec<u64>,
}

impl Snapshot {
    /// Parses a `pg_snapshot` in PostgreSQL's text format: `first_running:end:running,running`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':').skip(1);
        let end = parts.next()?.parse().ok()?;
        let running = parts.next()?.split(',').filter(|number| !number.is_empty());
        let mut running = running.map(|number| number.parse().ok()).collect::<Option<Vec<_>>>()?;
        running.sort_unstable();
        Some(Self { end, running })
    }

    pub(super) fn has_ended(&self, transaction: u64) -> bool {
        transaction < self.end && self.running.binary_search(&transaction).is_err()
    }
}

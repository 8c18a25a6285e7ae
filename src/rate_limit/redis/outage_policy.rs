/// What a node does while Redis does not decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutagePolicy {
    /// Decides locally, continuing from the last known state of the shared buckets.
    #[default]
    Local,
    /// Denies every request that has a quota: 429 with `Retry-After: 1`.
    Deny,
}

/// What became of an attempt, as metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Delivered,
    /// Another status than 2xx and 410.
    Rejected,
    /// No response.
    Failed,
    /// The status 410.
    Gone,
}

impl Outcome {
    pub(super) const ALL: [Self; 4] = [Self::Delivered, Self::Rejected, Self::Failed, Self::Gone];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Gone => "gone",
        }
    }
}

/// An operation of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Operation {
    LookUp,
    Poll,
    Issue,
    Idempotency,
    Get,
    List,
    ListByScope,
    Audit,
    Update,
    Rotate,
    Revoke,
    Prune,
    Import,
    Usage,
    Plans,
}

/// What depends on an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Need {
    /// Look-ups: without them every key is refused.
    LookUps,
    /// Polling: without it a polling service misses changes.
    Feed,
    /// Management: a service that only looks keys up does not need it.
    Management,
}

impl Operation {
    /// In the order of the trial.
    pub(in crate::store) const ALL: [Self; 15] = [
        Self::Issue,
        Self::LookUp,
        Self::Poll,
        Self::Idempotency,
        Self::Get,
        Self::List,
        Self::ListByScope,
        Self::Audit,
        Self::Update,
        Self::Rotate,
        Self::Revoke,
        Self::Prune,
        Self::Import,
        Self::Usage,
        Self::Plans,
    ];

    pub(in crate::store) const fn name(self) -> &'static str {
        match self {
            Self::LookUp => "look-up",
            Self::Poll => "polling for changes",
            Self::Issue => "issue",
            Self::Idempotency => "idempotency keys",
            Self::Get => "get",
            Self::List => "list",
            Self::ListByScope => "list by scope and by tag",
            Self::Audit => "events",
            Self::Update => "update",
            Self::Rotate => "rotate",
            Self::Revoke => "revoke",
            Self::Prune => "prune",
            Self::Import => "import",
            Self::Usage => "usage flush",
            Self::Plans => "plans",
        }
    }

    pub(in crate::store) const fn need(self) -> Need {
        match self {
            Self::LookUp => Need::LookUps,
            Self::Poll => Need::Feed,
            _ => Need::Management,
        }
    }

    pub(super) const fn only_reads(self) -> bool {
        matches!(self, Self::LookUp | Self::Poll | Self::Get | Self::List | Self::ListByScope)
    }
}

use std::{sync::OnceLock, time::SystemTime};

/// When a key expires, and how the layer writes that.
pub(crate) struct ExpiresAt {
    pub(crate) at: SystemTime,
    /// Written once for all requests of the record; empty if it cannot be written.
    text: OnceLock<Box<str>>,
}

impl ExpiresAt {
    pub(super) fn new(at: SystemTime) -> Self {
        Self { at, text: OnceLock::new() }
    }

    /// The time as text. All callers must write it in the same way.
    pub(crate) fn text(&self, write: impl FnOnce(SystemTime) -> String) -> &str {
        self.text.get_or_init(|| write(self.at).into())
    }
}

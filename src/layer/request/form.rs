use std::fmt;

use http::HeaderName;

use super::scheme::Schemes;

/// How a client sends a key: one form for each scheme and each header.
pub(super) struct Form<'a> {
    pub(super) schemes: &'a Schemes,
    pub(super) headers: &'a [HeaderName],
}

impl Form<'_> {
    /// The names of the schemes.
    pub(super) fn schemes(&self) -> String {
        let names = self.schemes.iter().map(|scheme| format!("`{}`", scheme.name()));
        names.collect::<Vec<_>>().join(" or ")
    }

    pub(super) fn has_one_scheme(&self) -> bool {
        self.schemes.iter().count() == 1
    }
}

impl fmt::Display for Form<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schemes = self.schemes.iter().map(|scheme| format!("`{scheme}`"));
        let headers = self.headers.iter().map(|header| format!("`{header}: <key>`"));
        f.write_str(&schemes.chain(headers).collect::<Vec<_>>().join(" or "))
    }
}

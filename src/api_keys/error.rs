use std::{error::Error, fmt};

use crate::{
    key::InvalidFormat,
    store::{StoreError, StoreErrorKind},
};

/// [`ApiKeys`](super::ApiKeys) could not be started.
///
/// It says what was wrong and what to do. It contains neither the URL, which may hold a password,
/// nor the prefix, which may be a URL by mistake; the [`source`](Error::source) is the error of the
/// store.
#[derive(Debug)]
pub struct StartError {
    kind: StartErrorKind,
    detail: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StartError {
    fn new(kind: StartErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), source: None }
    }

    pub(super) fn invalid_prefix(error: InvalidFormat) -> Self {
        let detail = "the prefix of keys is invalid: it must be letters and digits in segments \
            that each end in `_`, such as `sk_live_`";
        Self::new(StartErrorKind::InvalidPrefix, detail).because(error)
    }

    /// The scheme is quoted, unless it is more than a word and may be another part of the URL.
    pub(super) fn unknown_scheme(url: &str) -> Self {
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        let is_word =
            |scheme: &&str| scheme.len() <= 12 && scheme.bytes().all(|b| b.is_ascii_lowercase());
        let begins = match scheme.filter(is_word) {
            Some(scheme) => format!(", not with `{scheme}:`"),
            None => String::new(),
        };
        let detail = format!(
            "the URL of the key store must begin with `postgres:` or `sqlite:`{begins}, such as \
            postgres://app@localhost/app or sqlite:keys.db"
        );
        Self::new(StartErrorKind::InvalidUrl, detail)
    }

    #[cfg(feature = "postgres")]
    pub(super) fn invalid_url(error: StoreError) -> Self {
        let detail = "the URL of the key store is invalid: write it as \
            postgres://app@localhost/app, with `%40` for an `@` in a password";
        Self::new(StartErrorKind::InvalidUrl, detail).because(error)
    }

    #[cfg(any(test, not(all(feature = "postgres", feature = "sqlite"))))]
    pub(super) fn feature_disabled(feature: &str) -> Self {
        let detail = format!(
            "the URL of the key store needs a feature that is not enabled: write \
            `tower-api-key = {{ features = [\"{feature}\"], … }}` in Cargo.toml"
        );
        Self::new(StartErrorKind::FeatureDisabled, detail)
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) fn connection(advice: &str, error: StoreError) -> Self {
        let detail = format!("the key store cannot be opened: {advice}");
        Self::new(StartErrorKind::Connection, detail).because(error)
    }

    pub(super) fn migration(error: StoreError) -> Self {
        match error.kind() {
            StoreErrorKind::Unavailable | StoreErrorKind::Overloaded => {
                let detail = "the key store did not answer while its tables were migrated: nothing \
                    was changed, so try again";
                Self::new(StartErrorKind::Connection, detail).because(error)
            }
            _ => {
                let detail = "the tables of the key store could not be migrated: nothing was \
                    changed. If another role migrates them when the service is deployed, with \
                    `api-key migrate`, turn this off with `migrate(false)`";
                Self::new(StartErrorKind::Migration, detail).because(error)
            }
        }
    }

    pub(super) fn no_runtime(error: impl Error + Send + Sync + 'static) -> Self {
        let detail = "the worker needs a tokio runtime: await this inside of one";
        Self::new(StartErrorKind::NoRuntime, detail).because(error)
    }

    fn because(self, source: impl Error + Send + Sync + 'static) -> Self {
        Self { source: Some(Box::new(source)), ..self }
    }

    /// What went wrong.
    #[must_use]
    pub const fn kind(&self) -> StartErrorKind {
        self.kind
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The kind of a [`StartError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartErrorKind {
    /// The prefix is not one of a [`KeyFormat`](crate::key::KeyFormat).
    InvalidPrefix,
    /// The URL cannot be parsed, or is that of another kind of database.
    InvalidUrl,
    /// The URL is that of a database whose Cargo feature, `postgres` or `sqlite`, is not enabled.
    FeatureDisabled,
    /// The database cannot be reached or opened, or ended the connection. Retrying may help.
    Connection,
    /// The tables could not be migrated.
    Migration,
    /// There is no tokio runtime for the worker.
    NoRuntime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disabled_feature_is_named() {
        let error = StartError::feature_disabled("sqlite");
        assert_eq!(error.kind(), StartErrorKind::FeatureDisabled);
        assert!(error.to_string().contains("features = [\"sqlite\"]"), "{error}");
    }

    #[test]
    fn only_a_scheme_is_quoted_from_a_url() {
        let mysql = StartError::unknown_scheme("mysql://app:hunter2@localhost/app").to_string();
        assert!(mysql.contains("`mysql:`"), "{mysql}");
        for url in ["hunter2@localhost/app", "app:hunter2@localhost", "hunter2://", ""] {
            let said = StartError::unknown_scheme(url).to_string();
            assert!(!said.contains("hunter2") && !said.contains("not with"), "{said}");
        }
    }
}

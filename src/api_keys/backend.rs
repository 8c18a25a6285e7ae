use std::{future::Future, pin::Pin};

use super::StartError;
use crate::{
    auth::{self, Authenticator},
    key::KeyFormat,
    manage::KeyIssuer,
    store::{StoreError, port::Backend},
};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Backend`] as a trait object, so that [`ApiKeys`](super::ApiKeys) has no type parameter.
pub(super) trait DynBackend: Send + Sync {
    fn migrate(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// An authenticator's settings, with the store's feed if it is `followed`.
    fn authenticator(&self, format: KeyFormat, followed: bool) -> auth::Builder;

    fn issuer(&self, auth: &Authenticator) -> KeyIssuer;
}

impl<B: Backend> DynBackend for B {
    fn migrate(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(Backend::migrate(self))
    }

    fn authenticator(&self, format: KeyFormat, followed: bool) -> auth::Builder {
        let builder = Authenticator::builder(self.clone(), format);
        match Backend::change_feed(self).filter(|_| followed) {
            Some(feed) => builder.change_feed(feed),
            None => builder,
        }
    }

    fn issuer(&self, auth: &Authenticator) -> KeyIssuer {
        auth.issuer(self.clone())
    }
}

/// The store at `url`.
pub(super) async fn connect(url: &str) -> Result<Box<dyn DynBackend>, StartError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => postgres(url).await,
        Some("sqlite") => sqlite(url).await,
        _ => Err(StartError::unknown_scheme(url)),
    }
}

#[cfg(feature = "postgres")]
async fn postgres(url: &str) -> Result<Box<dyn DynBackend>, StartError> {
    use crate::store::PgKeyStore;

    // A mistake in the URL is told apart from a server that does not answer.
    drop(PgKeyStore::connect_lazy(url).map_err(StartError::invalid_url)?);
    let advice = "is PostgreSQL running, and are host, role, password and database of the URL \
        right? A service that starts before its database uses `PgKeyStore::connect_lazy` and \
        `ApiKeys::builder`";
    match PgKeyStore::connect(url).await {
        Ok(store) => Ok(Box::new(store)),
        Err(error) => Err(StartError::connection(advice, error)),
    }
}

#[cfg(feature = "sqlite")]
async fn sqlite(url: &str) -> Result<Box<dyn DynBackend>, StartError> {
    let advice = "does the folder of the SQLite file exist, and may this process write to it?";
    match crate::store::SqliteKeyStore::connect(url).await {
        Ok(store) => Ok(Box::new(store)),
        Err(error) => Err(StartError::connection(advice, error)),
    }
}

#[cfg(not(feature = "postgres"))]
async fn postgres(_: &str) -> Result<Box<dyn DynBackend>, StartError> {
    Err(StartError::feature_disabled("postgres"))
}

#[cfg(not(feature = "sqlite"))]
async fn sqlite(_: &str) -> Result<Box<dyn DynBackend>, StartError> {
    Err(StartError::feature_disabled("sqlite"))
}

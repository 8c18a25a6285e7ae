//! Connections reserved for look-ups.

use std::sync::OnceLock;

use sqlx::SqlitePool;
use tokio::select;

use super::error::failed;
use crate::store::StoreError;

/// For concurrent look-ups, and a poll.
const MAX_CONNECTIONS: u32 = 3;

/// The pool for look-ups and polling, created from the management pool.
pub(super) struct LookupPool {
    main: SqlitePool,
    made: OnceLock<SqlitePool>,
}

impl LookupPool {
    pub(super) fn new(main: SqlitePool) -> Self {
        Self { main, made: OnceLock::new() }
    }

    pub(super) fn pool(&self) -> Result<&SqlitePool, StoreError> {
        if self.main.is_closed() {
            return Err(failed(sqlx::Error::PoolClosed));
        }
        let options = self.main.connect_options();
        if options.get_filename().as_os_str() == ":memory:" {
            // Each connection has its own database.
            return Ok(&self.main);
        }
        Ok(self.made.get_or_init(|| {
            let settings = self.main.options().clone().min_connections(0);
            let pool =
                settings.max_connections(MAX_CONNECTIONS).connect_lazy_with((*options).clone());
            let (main_closed, made_closed, closing) =
                (self.main.close_event(), pool.close_event(), pool.clone());
            tokio::spawn(async move {
                select! {
                    () = main_closed => {}
                    () = made_closed => {}
                }
                closing.close().await;
            });
            pool
        }))
    }
}

impl Drop for LookupPool {
    fn drop(&mut self) {
        if let Some(made) = self.made.get() {
            // Marks the pool closed; the task above does the rest.
            drop(made.close());
        }
    }
}

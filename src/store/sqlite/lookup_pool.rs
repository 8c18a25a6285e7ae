//! Connections that management cannot take.

use std::sync::OnceLock;

use sqlx::SqlitePool;
use tokio::select;

use super::error::failed;
use crate::store::StoreError;

/// Look-ups that may be under way at once, and a poll.
const MAX_CONNECTIONS: u32 = 3;

/// The pool that keys are looked up and changes are polled on, made after the one that management
/// uses.
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
            // Each connection is a database of its own.
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
            // Marks it closed; the task above does the rest.
            drop(made.close());
        }
    }
}

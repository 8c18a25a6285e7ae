//! A service with keys, users and migrations of its own, on sqlx 0.8, before and after it takes
//! `tower-api-key` for its keys. `before` is the whole service, `after` is the same one with the
//! change: fewer than 60 lines. `tests/adoption.rs` runs both side by side.
//!
//! ```text
//! diff -ru before after
//! ```

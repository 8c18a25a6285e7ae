//! Keys of other systems move in by the commands of the manual, and keep working in both.

#![cfg(test)]

#[path = "../cli/place.rs"]
#[allow(dead_code, reason = "the tests of commands use the rest")]
mod place;
#[path = "../../../tests/support/servers/mod.rs"]
mod servers;
#[path = "../../../tests/support/wait/mod.rs"]
mod wait;

mod better_auth;
mod django;
mod express;
mod move_in;
mod peer;
mod plaintext;
mod sanctum;
mod service;
mod unkey;

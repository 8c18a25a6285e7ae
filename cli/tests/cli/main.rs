//! The command line: the real program on real databases.

#![cfg(test)]

#[path = "../../../tests/harness/mod.rs"]
mod harness;
#[path = "../../../tests/wait/mod.rs"]
mod wait;

mod cli;
mod doctor;
mod getting_started;
mod restore;

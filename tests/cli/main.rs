//! The command line: the real program on real databases.

#![cfg(test)]

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../wait/mod.rs"]
mod wait;

mod cli;
mod doctor;
mod getting_started;
mod restore;

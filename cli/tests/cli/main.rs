//! The command line: the real program on real databases.

#![cfg(test)]

#[path = "../../../tests/support/servers/mod.rs"]
mod servers;
#[path = "../../../tests/support/wait/mod.rs"]
mod wait;

mod adopt;
mod cli;
mod doctor;
mod getting_started;
mod import;
mod place;
mod restore;
mod rules;
mod scan;
mod usage_command;
mod webhooks;
mod your_tables;

//! Keys in text that is logged.

#![cfg(test)]

mod forms;
mod masking;
mod naive;
mod structured;

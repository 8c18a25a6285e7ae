use std::{
    cell::Cell,
    io::{self, IsTerminal as _},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::output;

/// Reports progress: on a terminal as a bar, otherwise as a line every 100,000 keys.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    keys: Cell<u64>,
    told: Cell<u64>,
    verb: &'static str,
}

/// Keys per line of progress.
const STEP: u64 = 100_000;

impl Progress {
    /// `len` is the total number of bytes, if known.
    pub(crate) fn begin(len: Option<u64>, verb: &'static str) -> Self {
        let bar = io::stderr().is_terminal().then(|| match len {
            Some(len) => {
                let style = "{bar:40} {percent}% {msg}, {eta} to go";
                ProgressBar::new(len).with_style(style_of(style))
            }
            None => ProgressBar::new_spinner().with_style(style_of("{spinner} {elapsed} {msg}")),
        });
        Self { bar, keys: Cell::new(0), told: Cell::new(0), verb }
    }

    /// Adds `keys` to the count.
    pub(crate) fn add(&self, keys: u64) {
        self.set(self.keys.get() + keys, 0);
    }

    /// Sets the total number of keys, and of bytes read.
    pub(crate) fn set(&self, keys: u64, offset: u64) {
        self.keys.set(keys);
        let message = format!("{keys} keys {}", self.verb);
        if let Some(bar) = &self.bar {
            bar.set_message(message);
            if bar.length().is_some() { bar.set_position(offset) } else { bar.tick() }
        } else if keys / STEP > self.told.get() {
            self.told.set(keys / STEP);
            output::note(&message);
        }
    }

    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style_of(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

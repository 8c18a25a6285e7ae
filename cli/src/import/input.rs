//! The bytes of a file or of standard input.

use std::{
    fs::File,
    io::{self, BufRead, Read},
};

use secrecy::zeroize::Zeroizing;

use super::super::failure::Failure;

/// More than standard input's own buffer, which such a read therefore bypasses.
const CHUNK: usize = 64 * 1024;

/// A reader whose buffer is wiped: it may hold keys.
pub(super) struct Input {
    source: Box<dyn Read>,
    buffer: Zeroizing<Vec<u8>>,
    /// The part of the buffer that is still to be read.
    unread: std::ops::Range<usize>,
    consumed: u64,
    len: Option<u64>,
}

impl Input {
    pub(super) fn open(name: &str) -> Result<Self, Failure> {
        let (source, len): (Box<dyn Read>, _) = if name == "-" {
            (Box::new(io::stdin().lock()), None)
        } else {
            let file = File::open(name).map_err(|error| Failure::new(name).because(&error))?;
            let len = file.metadata().ok().filter(|file| file.is_file()).map(|file| file.len());
            (Box::new(file), len)
        };
        let buffer = Zeroizing::new(vec![0; CHUNK]);
        Ok(Self { source, buffer, unread: 0..0, consumed: 0, len })
    }

    /// The number of bytes read so far.
    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The total number of bytes, if known.
    pub(super) fn len(&self) -> Option<u64> {
        self.len
    }
}

impl Read for Input {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(target)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.unread.is_empty() {
            self.unread = 0..self.source.read(&mut self.buffer)?;
        }
        Ok(self.buffer.get(self.unread.clone()).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.unread.start += amount;
        self.consumed += amount as u64;
    }
}

pub(super) fn unreadable(error: &io::Error) -> Failure {
    Failure::new("reading the keys").because(error)
}

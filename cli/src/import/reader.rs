use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
};

use super::super::failure::Failure;

/// The longest line. Metadata has at most 16 KiB.
const MAX_LINE: u64 = 256 * 1024;

/// The lines of a file or a stream. Only one is in memory at a time.
pub(super) struct Source {
    reader: Box<dyn BufRead>,
    len: Option<u64>,
    text: String,
    line: u64,
    offset: u64,
}

impl Source {
    pub(super) fn open(name: &str) -> Result<Self, Failure> {
        let (reader, len): (Box<dyn BufRead>, _) = if name == "-" {
            (Box::new(io::stdin().lock()), None)
        } else {
            let file = File::open(name).map_err(|error| Failure::new(name).because(&error))?;
            let len = file.metadata().ok().filter(|file| file.is_file()).map(|file| file.len());
            (Box::new(BufReader::new(file)), len)
        };
        Ok(Self { reader, len, text: String::new(), line: 0, offset: 0 })
    }

    /// The next line, or what is wrong with it; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Result<&str, String>>, Failure> {
        let mut bytes = std::mem::take(&mut self.text).into_bytes();
        bytes.clear();
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut bytes);
        let read = read.map_err(|error| Failure::new("reading the keys").because(&error))?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        self.offset += bytes.len() as u64;
        if bytes.len() as u64 == MAX_LINE && !bytes.ends_with(b"\n") {
            let skipped = self.skip_line()?;
            self.offset += skipped;
            return Ok(Some(Err("longer than 256 KiB".to_owned())));
        }
        match String::from_utf8(bytes) {
            Ok(text) => {
                self.text = text;
                Ok(Some(Ok(self.text.trim())))
            }
            Err(_) => Ok(Some(Err("not valid UTF-8".to_owned()))),
        }
    }

    /// Skips the rest of a line that is too long.
    fn skip_line(&mut self) -> Result<u64, Failure> {
        let skipped = self.reader.skip_until(b'\n');
        let skipped = skipped.map_err(|error| Failure::new("reading the keys").because(&error))?;
        Ok(skipped as u64)
    }

    /// The number of the last line that was read, starting at 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The number of bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The total number of bytes, if known.
    pub(super) fn len(&self) -> Option<u64> {
        self.len
    }
}

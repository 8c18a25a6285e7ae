/// Maximum bytes of a text stored with a key: consumer ids, names, reasons, prefixes.
pub(crate) const MAX_TEXT: usize = 1024;

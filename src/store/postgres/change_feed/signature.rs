use std::collections::HashSet;

use super::snapshot::Snapshot;
use crate::key::digest;

/// Our payloads are shorter.
const MAX_PAYLOAD: usize = 256;
/// Hexadecimal digits of the digest in a payload: 128 bits.
pub(super) const DIGEST_LEN: usize = 32;

/// Distinguishes the triggers' announcements from forged and replayed ones.
///
/// PostgreSQL delivers notifications in commit order, and those of one transaction consecutively
/// (writers hold a lock from queueing them to the end of the commit). So a transaction's
/// announcements are accepted only in one uninterrupted run, from the process that sent the first;
/// the server adds the process number. Anything later that claims to be of that transaction is a
/// replay, whose sender must have received the original.
///
/// A rejected message costs at most a SHA-256 of 100 bytes and changes nothing.
#[derive(Default)]
pub(super) struct Announcer {
    secret: Vec<u8>,
    /// The announcements of these transactions have been delivered.
    ended: Snapshot,
    /// Transactions accepted since then, at least in part.
    pub(super) taken: HashSet<u64>,
    /// The transaction whose announcements are being delivered, and the process sending them.
    current: Option<(u64, u32)>,
}

impl Announcer {
    pub(super) fn new(secret: &[u8], ended: Snapshot) -> Self {
        Self { secret: secret.to_vec(), ended, ..Self::default() }
    }

    /// The message of an announcement, if it is genuine.
    pub(super) fn open<'p>(&mut self, payload: &'p str, sender: u32) -> Option<&'p str> {
        let current = self.current.take();
        if payload.len() > MAX_PAYLOAD {
            return None;
        }
        let (signed, signature) = payload.rsplit_once(':')?;
        if !self.has_signed(signed, signature) {
            return None;
        }
        let (message, transaction) = signed.rsplit_once(':')?;
        let transaction = transaction.parse().ok()?;
        let sent = Some((transaction, sender));
        let is_copy = self.ended.has_ended(transaction) || !self.taken.insert(transaction);
        if is_copy && current != sent {
            return None;
        }
        self.current = sent;
        Some(message)
    }

    fn has_signed(&self, signed: &str, signature: &str) -> bool {
        let digest = digest(&[&self.secret, signed.as_bytes()]);
        let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let digits = digits.map(|digit| char::from_digit(u32::from(digit), 16));
        // Compares all digits, so that the time taken reveals nothing.
        signature.len() == DIGEST_LEN
            && signature
                .chars()
                .zip(digits)
                .fold(true, |is_same, (given, expected)| is_same & (Some(given) == expected))
    }

    /// Forgets the transactions that had ended before a notification that has arrived: theirs were
    /// delivered before it.
    pub(super) fn forget(&mut self, ended: Snapshot) {
        self.taken.retain(|transaction| !ended.has_ended(*transaction));
        self.ended = ended;
        self.current = None;
    }
}

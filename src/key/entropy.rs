use std::{error::Error, fmt};

use rand::{TryRng, rngs::SysRng};

/// Where the randomness of new keys comes from.
///
/// The default, [`SystemEntropy`], is right for everybody but tests.
pub trait EntropySource: Send + Sync + 'static {
    /// Fills `buffer` with cryptographically secure random bytes.
    ///
    /// # Errors
    ///
    /// When the source fails. No key is made then.
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError>;
}

/// The operating system's random number generator.
///
/// It is asked directly for each key: a generator in user space would save a microsecond and could
/// be copied by a fork.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl EntropySource for SystemEntropy {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
        SysRng.try_fill_bytes(buffer).map_err(RngError::new)
    }
}

/// The random number generator failed, so no key was made and nothing was stored.
#[derive(Debug)]
pub struct RngError {
    source: Box<dyn Error + Send + Sync>,
}

impl RngError {
    /// Wraps the failure of an [`EntropySource`].
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: source.into() }
    }
}

impl fmt::Display for RngError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the random number generator failed")
    }
}

impl Error for RngError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

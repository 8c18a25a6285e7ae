use std::{error::Error, fmt};

/// Source of randomness for new keys.
///
/// The default, [`SystemEntropy`], is right for everything except tests.
pub trait EntropySource: Send + Sync + 'static {
    /// Fills `buffer` with cryptographically secure random bytes.
    ///
    /// # Errors
    ///
    /// When the source fails. No key is generated then.
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError>;
}

/// The operating system's random number generator.
///
/// Called directly for each key: a user-space generator would save a microsecond, but a fork could
/// duplicate its state.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl EntropySource for SystemEntropy {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
        getrandom::fill(buffer).map_err(RngError::new)
    }
}

/// The random number generator failed; no key was generated and nothing was stored.
#[derive(Debug)]
pub struct RngError {
    source: Box<dyn Error + Send + Sync>,
}

impl RngError {
    /// Wraps an error of an [`EntropySource`].
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

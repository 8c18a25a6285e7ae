use std::fmt;

/// Lists names in an error: the first 64, which is more than most services have.
pub(crate) struct ScopeNames<I>(pub(crate) I);

const MAX_NAMED: usize = 64;

impl<I> fmt::Display for ScopeNames<I>
where
    I: Iterator<Item: fmt::Display> + Clone,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, name) in self.0.clone().enumerate() {
            match at {
                0 => write!(f, "{name}")?,
                MAX_NAMED => return f.write_str(", …"),
                _ => write!(f, ", {name}")?,
            }
        }
        Ok(())
    }
}

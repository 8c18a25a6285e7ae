use super::{ConsumerIds, Grant, ManageError};

/// Someone who is signed in to the application and manages keys there, such as a user on a settings
/// page. The application makes one for each request, from its own session.
///
/// A member sees the keys of its consumers and no others: to it, a key of another consumer does not
/// exist. It may revoke any of them, and take anything away from them. What it may give is its
/// [grant](Self::grant).
///
/// ```
/// use std::time::Duration;
/// use tower_api_key::{
///     manage::{Grant, Member},
///     record::Scopes,
/// };
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// const DAY: Duration = Duration::from_secs(86_400);
///
/// let grant = Grant::new(90 * DAY).scopes(Scopes::parse(["orders:read"])?);
/// let ann = Member::new("ann", "acme").grant(grant);
/// # let _ = ann;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Member {
    name: String,
    consumers: ConsumerIds,
    grant: Option<Grant>,
}

impl Member {
    /// A member who manages the keys of `consumers` and may grant nothing: it lists keys, revokes
    /// them and takes rights away.
    ///
    /// `name` is for the audit, as `member:` followed by the name: something that stays the same,
    /// such as the id of the user's row. A name that is empty, longer than 1,000 bytes or has
    /// control characters is refused with each change.
    ///
    /// A list over several consumers reads a page of each, so keep them few.
    pub fn new(name: impl Into<String>, consumers: impl Into<ConsumerIds>) -> Self {
        Self { name: name.into(), consumers: consumers.into(), grant: None }
    }

    /// What it may give to keys.
    pub fn grant(self, grant: Grant) -> Self {
        Self { grant: Some(grant), ..self }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The consumers whose keys it manages.
    #[must_use]
    pub const fn consumers(&self) -> &ConsumerIds {
        &self.consumers
    }

    /// What it may give, if anything.
    #[must_use]
    pub const fn granted(&self) -> Option<&Grant> {
        self.grant.as_ref()
    }

    pub(super) fn check_granted(&self) -> Result<&Grant, ManageError> {
        self.grant.as_ref().ok_or_else(ManageError::grants_nothing)
    }

    /// Whose concurrent requests are counted together: those of its consumer, or its own if it
    /// manages several. A consumer id has no control character, so the two never clash.
    pub(crate) fn admission_key(&self) -> String {
        match self.consumers.only() {
            Some(id) => id.to_owned(),
            None => format!("member\0{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_members_are_counted_by_consumer_or_by_the_member_of_several() {
        let key = |name: &str, consumers: &[&str]| {
            Member::new(name, ConsumerIds::from_iter(consumers.iter().copied())).admission_key()
        };
        assert_eq!(key("ann", &["acme"]), "acme");
        assert_eq!(key("bob", &["acme"]), "acme");
        let ann = key("ann", &["acme", "globex"]);
        assert_eq!(key("ann", &["globex", "initech"]), ann);
        for other in [key("bob", &["acme", "globex"]), key("ann", &["acme"]), key("ann", &["ann"])]
        {
            assert_ne!(other, ann);
        }
    }
}

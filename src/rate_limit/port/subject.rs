/// Whose requests are counted: a key, its consumer, and optionally a class of routes. Stable across
/// evictions, refreshes, rotations and restarts.
///
/// ```
/// use tower_api_key::rate_limit::port::Subject;
///
/// let key = Subject::of_key("acme", 0x0198_c0de);
/// let searches = key.in_class("search");
/// assert_eq!(searches.consumer(), "acme");
/// assert_ne!(searches, key);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject<'a> {
    consumer: &'a str,
    root: u128,
    class: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// A key of a consumer. `root` is the id of the first key in its chain of rotations.
    #[must_use]
    pub const fn of_key(consumer: &'a str, root: u128) -> Self {
        Self { consumer, root, class: None }
    }

    /// The same key on routes of a [class](crate::layer::RateClass), which are counted separately.
    #[must_use]
    pub const fn in_class(self, class: &'a str) -> Self {
        Self { class: Some(class), ..self }
    }

    /// The consumer of the key. Its keys share their [per-consumer](crate::rate_limit::Quota::per_consumer)
    /// quotas.
    #[must_use]
    pub const fn consumer(&self) -> &'a str {
        self.consumer
    }

    /// The id of the first key in the chain of rotations.
    #[must_use]
    pub const fn root(&self) -> u128 {
        self.root
    }

    /// The class of routes, if any.
    #[must_use]
    pub const fn class(&self) -> Option<&'a str> {
        self.class
    }
}

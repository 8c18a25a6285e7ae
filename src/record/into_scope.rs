use super::{InvalidScope, Scope, Scopes};

/// A scope as an argument: a variant of an enum made by [`scopes!`](crate::scopes), a [`Scope`], or
/// text.
///
/// The first two are valid. Text is checked, so what takes text returns a `Result`:
///
/// ```
/// use tower_api_key::{RequireScope, record::InvalidScope};
///
/// tower_api_key::scopes! {
///     enum Scope {
///         OrdersRead = "orders:read",
///     }
/// }
///
/// let typed: RequireScope = RequireScope::one(Scope::OrdersRead);
/// let text: Result<RequireScope, InvalidScope> = RequireScope::one("orders:read");
/// # let _ = (typed, text);
/// ```
pub trait IntoScope: Sized {
    /// `T`, or for text a `Result`.
    type Outcome<T>;

    /// Makes a `T` of `scopes`.
    fn make<T>(
        scopes: impl IntoIterator<Item = Self>,
        make: impl FnOnce(Scopes) -> T,
    ) -> Self::Outcome<T>;
}

impl IntoScope for Scope {
    type Outcome<T> = T;

    fn make<T>(scopes: impl IntoIterator<Item = Self>, make: impl FnOnce(Scopes) -> T) -> T {
        make(scopes.into_iter().collect())
    }
}

/// For each type of text. A blanket implementation would overlap with that of the enums.
macro_rules! of_text {
    ($($text:ty),+) => {$(
        impl IntoScope for $text {
            type Outcome<T> = Result<T, InvalidScope>;

            fn make<T>(
                scopes: impl IntoIterator<Item = Self>,
                make: impl FnOnce(Scopes) -> T,
            ) -> Result<T, InvalidScope> {
                Scopes::parse(scopes).map(make)
            }
        }
    )+};
}

of_text!(&str, String, &String);

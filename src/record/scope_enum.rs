//! [`scopes!`](crate::scopes): the scopes of a service, known to the compiler.

use std::{error::Error, fmt};

use super::{DeclaredScope, ScopeNames};

/// Declares the scopes of a service as an enum. A wrong name does not compile, and a new scope is
/// one line.
///
/// ```
/// tower_api_key::scopes! {
///     /// What a key may do.
///     pub enum Scope {
///         /// Read orders.
///         OrdersRead = "orders:read",
///         /// Create and change orders.
///         OrdersWrite = "orders:write" implies OrdersRead,
///         /// Everything about orders, including scopes that are added later.
///         Orders = "orders:*",
///         /// Close the books of a month.
///         BooksClose = "books:close" implies OrdersRead + OrdersWrite,
///     }
///     /// A type for each scope.
///     pub mod scope;
/// }
///
/// assert_eq!(Scope::OrdersRead.as_str(), "orders:read");
/// assert_eq!(Scope::OrdersRead.description(), "Read orders.");
/// assert_eq!("orders:write".parse(), Ok(Scope::OrdersWrite));
/// assert_eq!(Scope::ALL.len(), 4);
/// ```
///
/// A route requires a scope by [`RequireScope`](crate::RequireScope) or, in axum, by
/// [`Granted`](crate::layer). Both check the name when they are compiled, so there is no `Result`:
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::get};
/// use tower_api_key::{RequireScope, layer::Granted};
///
/// tower_api_key::scopes! {
///     pub enum Scope {
///         OrdersRead = "orders:read",
///         OrdersWrite = "orders:write" implies OrdersRead,
///     }
///     pub mod scope;
/// }
///
/// async fn create(consumer: Granted<scope::OrdersWrite>) -> String {
///     format!("an order of {}", consumer.id())
/// }
///
/// let read = get(async || "orders").layer(RequireScope::one(Scope::OrdersRead));
/// let app: Router = Router::new().route("/orders", read.post(create));
/// # let _ = app;
/// # }
/// ```
///
/// # The declaration
///
/// - The doc comment of a variant is its description, for forms and pages, as one paragraph.
/// - `implies` names variants of the same enum, separated by `+`. A key with the scope also has
///   those, and those that they imply.
/// - A scope that ends in `:*`, `.*` or `/*` is a wildcard: a key with it has all scopes of the
///   enum that begin with what is before the `*`. There are no other wildcards.
/// - `mod scope;` is optional. It makes a module with a type for each scope, for `Granted`.
/// - The enum derives `Clone`, `Copy`, `Debug`, `PartialEq`, `Eq`, `PartialOrd`, `Ord` and `Hash`.
///
/// Implications and wildcards apply where the [catalogue](crate::record::ScopeCatalog) of the enum
/// is given to [`ApiKeys`](crate::ApiKeys), to the [authenticator](crate::auth::Builder::scopes) or
/// to an [issuer](crate::manage::KeyIssuer::scopes):
///
/// ```
/// # tower_api_key::scopes! { pub enum Scope { OrdersRead = "orders:read" } }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_api_key::ApiKeys;
///
/// let keys = ApiKeys::in_memory("sk_live_").scopes(Scope::catalog()).await?;
/// # keys.stop().await;
/// # Ok(())
/// # }
/// ```
///
/// # Compile errors
///
/// A text that is not a [`Scope`](crate::record::Scope), a scope that is declared twice or implies
/// itself, an implied variant that does not exist, a `*` elsewhere than in a wildcard, a wildcard
/// without a scope that it covers, and more than 256 scopes.
#[macro_export]
macro_rules! scopes {
    (
        $(#[$attribute:meta])*
        $vis:vis enum $name:ident {
            $(
                $(#[$($about:tt)*])*
                $variant:ident = $text:literal $(implies $implied:ident $(+ $more:ident)*)?
            ),+ $(,)?
        }
        $($(#[$module_attribute:meta])* $module_vis:vis mod $module:ident;)?
    ) => {
        $(#[$attribute])*
        #[derive(
            ::core::clone::Clone,
            ::core::marker::Copy,
            ::core::fmt::Debug,
            ::core::cmp::PartialEq,
            ::core::cmp::Eq,
            ::core::cmp::PartialOrd,
            ::core::cmp::Ord,
            ::core::hash::Hash,
        )]
        $vis enum $name {
            $($(#[$($about)*])* $variant,)+
        }

        #[allow(dead_code, deprecated, clippy::allow_attributes)]
        impl $name {
            /// All scopes, in the order of their declaration.
            $vis const ALL: &'static [Self] = &[$(Self::$variant),+];

            const DECLARED: &'static [$crate::record::DeclaredScope] = &[$(
                $crate::record::DeclaredScope::new(
                    $text,
                    Self::$variant.description(),
                    &[$(Self::$implied.as_str(), $(Self::$more.as_str(),)*)?],
                ),
            )+];

            /// The scope as text.
            #[must_use]
            $vis const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The doc comment of the scope.
            #[must_use]
            $vis const fn description(self) -> &'static str {
                match self {
                    $(Self::$variant => $crate::scopes!(@description [] $(#[$($about)*])*),)+
                }
            }

            /// The catalogue of these scopes.
            #[must_use]
            $vis fn catalog() -> $crate::record::ScopeCatalog {
                $crate::record::ScopeCatalog::declared(Self::DECLARED)
            }
        }

        const _: () =
            ::core::assert!($name::DECLARED.len() <= 256, "at most 256 scopes can be declared");
        // The compiler limits how long it evaluates a constant, so that each scope has its own.
        $(
            #[allow(deprecated, clippy::allow_attributes)]
            const _: () = {
                use $crate::record::DeclaredScope as Declared;
                let (before, _) = $name::DECLARED.split_at($name::$variant as usize);
                ::core::assert!(
                    Declared::is_scope($text),
                    "{}",
                    ::core::concat!(
                        "`", $text, "` is not a scope: use 1 to 128 printable ASCII characters \
                        without spaces, quotes and backslashes"
                    ),
                );
                ::core::assert!(
                    !Declared::is_among(before, $text),
                    "{}",
                    ::core::concat!("the scope `", $text, "` is declared twice"),
                );
                ::core::assert!(
                    !$name::DECLARED[$name::$variant as usize].implies_itself(),
                    "{}",
                    ::core::concat!("the scope `", $text, "` implies itself"),
                );
                ::core::assert!(
                    !Declared::has_misplaced_star($text),
                    "{}",
                    ::core::concat!(
                        "the `*` in `", $text, "` must be at the end, after `:`, `.` or `/`"
                    ),
                );
                ::core::assert!(
                    Declared::covers_some($name::DECLARED, $text),
                    "{}",
                    ::core::concat!("the wildcard `", $text, "` covers none of the scopes"),
                );
            };
        )+

        impl ::core::fmt::Display for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::core::convert::AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl ::core::str::FromStr for $name {
            type Err = $crate::record::UnknownScope;

            fn from_str(text: &str) -> ::core::result::Result<Self, Self::Err> {
                let mut all = Self::ALL.iter().copied();
                all.find(|scope| scope.as_str() == text)
                    .ok_or($crate::record::UnknownScope::among(Self::DECLARED))
            }
        }

        #[allow(deprecated, clippy::allow_attributes)]
        impl ::core::convert::From<$name> for $crate::record::Scope {
            fn from(scope: $name) -> Self {
                let declared = match scope {
                    $($name::$variant => const { &$name::DECLARED[$name::$variant as usize] },)+
                };
                declared.scope()
            }
        }

        impl $crate::record::IntoScope for $name {
            type Outcome<T> = T;

            fn make<T>(
                scopes: impl ::core::iter::IntoIterator<Item = Self>,
                make: impl ::core::ops::FnOnce($crate::record::Scopes) -> T,
            ) -> T {
                make(::core::iter::Iterator::collect(
                    ::core::iter::IntoIterator::into_iter(scopes),
                ))
            }
        }

        $crate::scopes! {
            @types $name
            [$($(#[$module_attribute])* $module_vis mod $module)?]
            [$($variant = $text)+]
        }
    };

    (@types $name:ident [] $variants:tt) => {};
    (
        @types $name:ident
        [$(#[$attribute:meta])* $vis:vis mod $module:ident]
        [$($variant:ident = $text:literal)+]
    ) => {
        $(#[$attribute])*
        $vis mod $module {
            $(
                #[doc = ::core::concat!("The scope `", $text, "`.")]
                #[derive(::core::fmt::Debug)]
                #[non_exhaustive]
                #[allow(dead_code, clippy::allow_attributes)]
                pub enum $variant {}
            )+
        }

        $(
            impl $crate::record::ScopeType for $module::$variant {
                const NAME: &'static str = $text;
            }
        )+
    };

    (@description [$($line:literal)*]) => {
        ::core::concat!($($line),*).trim_ascii()
    };
    (@description [$($line:literal)*] #[doc = $more:literal] $($rest:tt)*) => {
        $crate::scopes!(@description [$($line)* $more] $($rest)*)
    };
    (@description $lines:tt #[$($other:tt)*] $($rest:tt)*) => {
        $crate::scopes!(@description $lines $($rest)*)
    };
}

/// A scope as a type, for [`Granted`](crate::layer): the types of the module of [`scopes!`].
///
/// [`scopes!`]: crate::scopes
pub trait ScopeType {
    /// The scope as text.
    const NAME: &'static str;
}

/// A text is none of the scopes of an enum made by [`scopes!`](crate::scopes).
#[derive(Clone, Copy, Debug)]
pub struct UnknownScope {
    declared: &'static [DeclaredScope],
}

impl UnknownScope {
    #[doc(hidden)]
    #[must_use]
    pub const fn among(declared: &'static [DeclaredScope]) -> Self {
        Self { declared }
    }
}

impl PartialEq for UnknownScope {
    fn eq(&self, other: &Self) -> bool {
        let names = |it: &Self| it.declared.iter().map(DeclaredScope::name);
        names(self).eq(names(other))
    }
}

impl Eq for UnknownScope {}

impl fmt::Display for UnknownScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.declared.iter().map(DeclaredScope::name);
        write!(f, "not a scope of this service, which has: {}", ScopeNames(names))
    }
}

impl Error for UnknownScope {}

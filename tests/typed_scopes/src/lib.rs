//! The places and forms in which `scopes!` must work outside of its crate. That it compiles without
//! a warning is the test.

use tower_api_key::{RequireScope, record::Scopes};

tower_api_key::scopes! {
    /// With attributes, descriptions of several lines, and a trailing comma.
    #[non_exhaustive]
    pub enum Scope {
        /// Read orders,
        /// also those of last year.
        OrdersRead = "orders:read",
        #[doc = "Create and change orders."]
        OrdersWrite = "orders:write" implies OrdersRead,
        /// Everything about orders.
        #[deprecated]
        Orders = "orders:*",
        /// Close the books of a month.
        BooksClose = "books:close" implies OrdersWrite + OrdersRead,
    }
    /// The types of the scopes.
    pub mod scope;
}

mod inner {
    // Names that an expansion must not mean.
    #[expect(dead_code, reason = "the macro must not use it")]
    enum Option {}
    #[expect(dead_code, reason = "the macro must not use it")]
    struct String;

    tower_api_key::scopes! {
        pub(crate) enum Permission { Read = "read" }
        pub(super) mod permission;
    }
}

/// A declaration in a function, whose scopes no others see.
pub fn local() -> RequireScope {
    tower_api_key::scopes! {
        enum Scope {
            Read = "read",
            Write = "write" implies Read
        }
        mod scope;
    }
    let _ = size_of::<scope::Read>();
    RequireScope::any([Scope::Read, Scope::Write])
}

/// What a service names in its code.
pub fn used() -> (RequireScope, Scopes) {
    let _ = (size_of::<scope::OrdersRead>(), size_of::<inner::permission::Read>());
    let _ = RequireScope::one(inner::Permission::Read);
    (RequireScope::one(Scope::OrdersRead), Scopes::from([Scope::OrdersWrite, Scope::BooksClose]))
}
